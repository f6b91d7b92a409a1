"""The guard of one container's pasta: starts it, closes what must not be reached, and ends it.

    owner ── lifeline ── guard ── pasta ══ tap device eth0 ══ the container's network namespace
                           └────── init: "it is there" / "your network is ready"

pasta(1) goes into the background when it has set up the container's network; the guard is a subreaper, so it
stays its parent.  It ends pasta when init or the owner is gone: pasta itself would stay.

An address is closed by making it the container's own: a route of type *local* over the tap device, in the
table that the kernel looks into first.  A socket that is bound to that device finds it, too; an *unreachable*
route, or the loopback's own, it would pass by, and pasta would connect to the host's 127.0.0.1.  The
container has no capability to change its routes.  See rtnetlink(7), ip-route(8), socket(7) (SO_BINDTODEVICE).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from nsmagic.launcher import wiring
from nsmagic.launcher.wiring import Journal, StepError
from nsmagic.linux import prctl, setns
from nsmagic.linux_constants import CLONE_NEWNET, CLONE_NEWUSER, PR_SET_CHILD_SUBREAPER, PR_SET_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_START_SECONDS: Final = 30.0
_MOST_SAID: Final = 300
# See rtnetlink(7) and linux/rtnetlink.h.
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr, before its four bytes
_NLMSG_ERROR: Final = 2
_RTM_NEWROUTE: Final = 24
_REQUEST: Final = 0x1 | 0x4 | 0x400  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
_RT_TABLE_LOCAL: Final = 255
_RTPROT_STATIC: Final = 4
_RT_SCOPE_HOST: Final = 254
_RTN_LOCAL: Final = 2
_RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 4, 6
_BEHIND_THE_KERNELS_OWN: Final = 100


class PastaError(Exception):
    """Pasta ended; its words and the errno that they name."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        numbers = {os.strerror(number): number for number in errno.errorcode}
        self.errno = next((number for text, number in numbers.items() if text in said), errno.EPROTO)


def start(words: list[str]) -> None:
    """Start pasta; it is in the background when this returns.

    Raises:
        PastaError: it ended instead.
        OSError: it could not be started.
    """
    with open(os.memfd_create("pasta"), "w+b") as said:  # noqa: PTH123 - no pipe: the one in the background may hold it
        try:
            status = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=_START_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise PastaError(os.strerror(errno.ETIMEDOUT)) from None
        said.seek(0)
        text = said.read(1 << 16).decode(errors="replace")
    if status:
        lines = [line.strip() for line in text.splitlines() if "syslog" not in line]
        raise PastaError(" ".join(filter(None, lines))[:_MOST_SAID] or f"status {status}")


def local_route(network: str, device: int) -> bytes:
    """A request: the addresses of ``network`` are the own ones of the machine, over this device."""
    address = ipaddress.ip_network(network)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    body = _ROUTE.pack(
        family, address.prefixlen, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0
    )
    for kind, value in (
        (_RTA_DST, address.network_address.packed),
        (_RTA_OIF, struct.pack("=I", device)),
        (_RTA_PRIORITY, struct.pack("=I", _BEHIND_THE_KERNELS_OWN)),
    ):
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWROUTE, _REQUEST, 1, 0) + body


def index_of(interface: str) -> int:
    """A device's number in the network namespace that we are in; see if_nametoindex(3).

    Raises:
        OSError: there is none of that name.
    """
    try:
        return socket.if_nametoindex(interface)
    except OSError:  # some Pythons give no errno with it
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def ask_kernel(request: bytes) -> None:
    """Send one request over rtnetlink, in the network namespace that we are in.

    Raises:
        OSError: the kernel's answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, 0))
        kernel.send(request)
        answer = kernel.recv(1 << 16)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    (number,) = struct.unpack_from("=i", answer, _HEADER.size)
    if kind != _NLMSG_ERROR or number:
        raise OSError(-number or errno.EPROTO, os.strerror(-number or errno.EPROTO))


def close_addresses(pid: int, interface: str, networks: list[str], journal: Journal) -> None:
    """Close addresses in a process's network namespace, which is entered for good.

    Raises:
        StepError: one could not be closed.
    """
    user, net = (wiring.open_namespace(pid, kind) for kind in ("user", "net"))
    # The rights over its network are its own user namespace's.
    journal.attempt("setns(the container's user namespace)", lambda: setns(user, CLONE_NEWUSER))
    journal.attempt("setns(the container's network namespace)", lambda: setns(net, CLONE_NEWNET))
    device = journal.attempt(f'if_nametoindex("{interface}")', lambda: index_of(interface))
    for network in networks:
        call = f'RTM_NEWROUTE(type=local, destination={network}, name="{interface}", table=local)'
        request = local_route(network, device)
        bearable = wiring.NO_IPV6 if ":" in network else frozenset()
        journal.attempt_or_not(call, functools.partial(ask_kernel, request), bearable)


def in_child(work: Callable[[Journal], None], journal: Journal) -> None:
    """Do something in a child, who can go where nobody comes back from.

    Raises:
        StepError: it failed; the child's lines are in the journal.
    """
    lines, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status, own = 1, Journal()
        try:
            status = 0 if own.guard(lambda: work(own)) else 1
        finally:
            os.write(theirs, own.text.encode(errors="replace"))
            os._exit(status)
    os.close(theirs)
    with open(lines, encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        journal.add(file.read())
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise StepError(errno.EPROTO)


def build(pid: int, config: dict[str, Any], journal: Journal) -> None:
    """Give a process's network namespace its way out.

    Raises:
        StepError: a step failed.
    """
    words = [*config["pasta"], str(pid)]
    journal.attempt(f"execve({' '.join(words)})", lambda: start(words))
    in_child(
        lambda own: close_addresses(pid, config["interface"], config["closed"], own),
        journal,
    )


def end_children() -> None:
    """SIGKILL and reap every child, and what they leave to us, until nobody is left."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123 - of /proc
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def main() -> NoReturn:
    """Run it; the last argument is JSON.

    ``init``: the socket.  ``lifeline``: a pipe whose end means that nobody wants the container any more.
    ``pasta``: its words.  ``interface``: its device's name inside.  ``closed``: networks not to be reached.
    """
    config: dict[str, Any] = json.loads(sys.argv[-1])
    init = socket.socket(fileno=config["init"])
    lifeline: int = config["lifeline"]
    prctl(PR_SET_NAME, "nsmagic-pasta")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    poll = select.poll()
    poll.register(lifeline, select.POLLHUP)
    poll.register(init.fileno(), select.POLLIN)
    try:
        ready = {descriptor for descriptor, _ in poll.poll()}
        pid = 0 if lifeline in ready else wiring.take_call(init)
        if pid:
            journal = Journal()
            pidfd = os.pidfd_open(pid)
            done = journal.guard(lambda: build(pid, config, journal))
            journal.answer(init, done=done)
            if done:
                poll.unregister(init.fileno())
                poll.register(pidfd, select.POLLIN)
                init.close()
                poll.poll()
    finally:
        end_children()
    sys.exit(0)
