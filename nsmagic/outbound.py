"""``--net outbound``: a way out through pasta, which the user installs; and ports published with it.

pasta(1) runs beside the container, as the user, and turns what the container sends into connections of
ordinary sockets of the host.  So the container reaches what the user reaches, and nothing is set up on the
host for it.  Its guard (``launcher.outbound``) starts it, closes what must not be reached, and ends it with
the container.

What must not be reached: the host's own loopback, whose services trust whoever can speak to them, and
the addresses at which a cloud gives its machines their credentials.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsmagic.attachment import Attachment, pair
from nsmagic.errors import HostError, NetworkError, SpecError
from nsmagic.launcher import client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.ports import Publish

PACKAGE: Final = "passt"
INTERFACE: Final = "eth0"
DNS: Final = {4: "198.51.100.53", 6: "2001:db8::53"}
"""Where the container's resolver asks; pasta hands that on to the host's own.  Addresses that are nobody's:
documentation has them, RFC 5737 and 3849."""
CLOSED: Final = (
    ("127.0.0.0/8", "the host's loopback"),
    ("169.254.0.0/16", "link-local, and the clouds' metadata"),
    ("100.100.100.200/32", "metadata at Alibaba"),
    ("168.63.129.16/32", "metadata at Azure"),
    ("::1/128", "the host's loopback"),
    ("fe80::/10", "link-local, and metadata at OpenStack"),
    ("fd00:ec2::254/128", "metadata at Amazon"),
    ("fd20:ce::254/128", "metadata at Google"),
)
"""What is not reached, and why."""

_BOOT: Final = "import sys; sys.path[:] = {path!r}; from nsmagic.launcher.outbound import main; main()"
_NEEDED: Final = ("--config-net", "--tcp-ns", "--udp-ns", "--no-map-gw", "--no-netns-quit")
_FIRST_SOUND_UDP: Final = "--map-host-loopback"
"""Came a little after UDP was written anew: until then answers to a port under another number got lost."""
_WISHED: Final = ("--no-dhcp", "--no-dhcpv6", "--no-ra")
_END_SECONDS: Final = 5.0
_ASK_SECONDS: Final = 10.0
_MOST_SAID: Final = 1 << 18
_FIRST_FREE: Final = 1024


# ---- the program ---------------------------------------------------------------------------


def program() -> str:
    """Where pasta is.

    Raises:
        HostError: it is not installed, is too old, or may not make its device.
    """
    path = shutil.which("pasta")
    if path is None:
        raise HostError(
            "--net outbound", "pasta is not installed", f"Install its package: sudo apt install {PACKAGE}."
        )
    lacking = [option for option in _NEEDED if option not in _options(path)]
    if lacking:
        raise HostError(
            "--net outbound", f"this pasta knows no {', '.join(lacking)}", f"Install a newer {PACKAGE}."
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        there = Path("/dev/net/tun").exists()
        raise HostError(
            "--net outbound",
            "you may not open /dev/net/tun" if there else "there is no /dev/net/tun",
            "Allow it: sudo chmod 666 /dev/net/tun." if there else "Load it: sudo modprobe tun.",
        )
    return path


@functools.lru_cache(maxsize=4)
def _options(path: str) -> frozenset[str]:
    """The long options that it says it knows."""
    return frozenset(re.findall(r"--[a-z0-9-]+", _said(path, "--help")))


def version() -> str:
    """What it says it is; empty where it is not installed.  Some builds do not know."""
    path = shutil.which("pasta")
    if not path:
        return ""
    found = re.search(r"^pasta (\d\S*)", _said(path, "--version"), re.MULTILINE)
    return f"pasta {found[1]}" if found else "pasta, which does not know its version"


def _said(path: str, option: str) -> str:
    """What it prints, to a terminal: some versions end without writing out what they have for a pipe."""
    ours, theirs = os.openpty()
    said = b""
    try:
        with subprocess.Popen(
            [path, option], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            theirs = -1
            while len(said) < _MOST_SAID and select.select([ours], [], [], _ASK_SECONDS)[0]:
                said += os.read(ours, 1 << 16)
            process.kill()
    except OSError:  # the other side is closed (EIO), or there is no such program any more
        pass
    finally:
        for descriptor in (ours, *([] if theirs < 0 else [theirs])):
            os.close(descriptor)
    return said.decode(errors="replace")


def command(path: str, publish: Sequence[Publish]) -> list[str]:
    """Pasta's words, all but the process id behind them.

    Raises:
        SpecError: it cannot publish a port so.
    """
    words = [path, "--quiet", "--config-net", "--ns-ifname", INTERFACE]
    # Nothing of the host's loopback, neither by the gateway's address nor by the container's own loopback.
    words += ["--no-map-gw", "--tcp-ns", "none", "--udp-ns", "none"]
    # Its guard ends it; itself it may not look into the folder in /proc of a process of another uid.
    words += ["--no-netns-quit"]
    words += [option for option in _WISHED if option in _options(path)]
    for protocol, option in (("tcp", "--tcp-ports"), ("udp", "--udp-ports")):
        ports = [each for each in publish if each.protocol == protocol]
        for each in ports:
            if protocol == "udp" and each.host != each.box and _FIRST_SOUND_UDP not in _options(path):
                raise SpecError(
                    "--publish",
                    f"this pasta loses the answers to a UDP port under another number: publish "
                    f"{each.box}:{each.box}/udp, or install a {PACKAGE} of 2024-08 or newer",
                )
            words += [option, f"{each.address}/{each.host}:{each.box}"]
        if not ports:
            words += [option, "none"]
    for family in resolvers():
        words += ["--dns-forward", DNS[family]]
    if os.geteuid() == 0:
        # Else it becomes nobody, who has no rights over the container's namespaces.  It gives up root's own
        # as it enters the container's user namespace, and then sees an empty root folder.
        words += ["--runas", "0"]
    return words


# ---- names ----------------------------------------------------------------------------------


def resolvers() -> list[int]:
    """4 and 6, for each kind of address that the host has a resolver at."""
    families = []
    with contextlib.suppress(OSError):
        text = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
        found = re.findall(r"^\s*nameserver\s+(\S+)", text, re.MULTILINE)
        families = [family for family in (4, 6) if any((":" in each) == (family == 6) for each in found)]  # noqa: PLR2004
    return families


def resolv_conf() -> str:
    """The container's /etc/resolv.conf; see resolv.conf(5)."""
    lines = [f"nameserver {DNS[family]}" for family in resolvers()]
    with contextlib.suppress(OSError):
        text = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
        lines += re.findall(r"^(?:search|options)\s[ \w.:-]+$", text, re.MULTILINE)
    return "\n".join(lines) + "\n"


# ---- ports ----------------------------------------------------------------------------------


def check_ports(publish: Sequence[Publish]) -> None:
    """See that they can be had, before anything is started; pasta would say so later, and less plainly.

    Raises:
        SpecError: one is in use, or is root's.
    """
    for each in publish:
        family = socket.AF_INET6 if ":" in each.address else socket.AF_INET
        kind = socket.SOCK_STREAM if each.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as trial:
            if kind == socket.SOCK_STREAM:  # as pasta does: what is only about to close is not in the way
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((each.address, each.host))
                if kind == socket.SOCK_STREAM:
                    trial.listen(1)
            except OSError as error:
                raise SpecError("--publish", _refused(each, error)) from None


def _refused(each: Publish, error: OSError) -> str:
    what = f"port {each.host}/{each.protocol} of {each.address}"
    if error.errno == errno.EADDRINUSE:
        return f"{what} is in use; take another"
    if error.errno == errno.EACCES and each.host < _FIRST_FREE:
        return f"{what} is for root; take one from {_FIRST_FREE} up"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{each.address} is no address of this host"
    return f"{what} cannot be had: {error.strerror}"


# ---- one container's --------------------------------------------------------------------------


def attach(publish: Sequence[Publish]) -> Attachment:
    """Start the guard of a pasta for one container.

    Raises:
        HostError: there is no pasta.
        SpecError: a port cannot be had.
        NetworkError: the guard could not be started.
    """
    words = command(program(), publish)
    check_ports(publish)
    init, theirs = pair()
    lifeline_end, lifeline = os.pipe()
    config = {
        "init": theirs.fileno(),
        "lifeline": lifeline_end,
        "pasta": words,
        "interface": INTERFACE,
        "closed": [network for network, _ in CLOSED],
    }
    client.owned.add(lifeline)
    path = [*client.python_path()]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT.format(path=path), json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), lifeline_end],
            cwd="/",
            start_new_session=True,  # a Ctrl-C in our terminal is for us alone
        )
    except OSError as error:
        init.close()
        client.owned.discard(lifeline)
        os.close(lifeline)
        raise NetworkError("outbound", f"pasta's guard could not be started: {error}") from error
    finally:
        theirs.close()
        os.close(lifeline_end)

    def close() -> None:
        client.owned.discard(lifeline)
        os.close(lifeline)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return Attachment(init, let_go=close)
