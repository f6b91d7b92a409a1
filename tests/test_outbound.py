"""The way out through pasta, on a host of the tests' own: what is reached, what is not, and that pasta ends."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fake_host
import pytest

import nsmagic
from nsmagic import HostError, SpecError, StartError, outbound
from nsmagic.ports import parse_publish

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
PRELUDE = """
import json, os, sys, threading, time
sys.path.insert(0, {here!r})
import fake_host
import nsmagic
os.chdir("/")

def say(**found):
    print(json.dumps(found), flush=True)
"""


@pytest.fixture
def there(quiet: Path) -> Callable[..., dict[str, Any]]:
    """Give a function that runs Python on a host of its own; what it said, as JSON, on its last line."""
    _needs_pasta()

    def run(code: str, *, status: int = 0) -> dict[str, Any]:
        result = subprocess.run(
            _command(code), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False
        )
        assert result.returncode == status, result.stderr
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found

    return run


def _needs_pasta() -> None:
    try:
        outbound.program()
    except HostError as error:
        missing = "not installed" in error.reason
        pytest.skip("host: no program pasta" if missing else f"host: {error.feature}: {error.reason}")


def _command(code: str) -> list[str]:
    script = PRELUDE.format(here=str(HERE)) + textwrap.dedent(code)
    return [sys.executable, str(HERE / "fake_host.py"), sys.executable, "-c", script]


# ---- what is reached, and what is not ------------------------------------------------------------


def test_what_is_elsewhere_is_reached_by_name_too(there: Callable[..., dict[str, Any]]) -> None:
    found = there("""
        witness = fake_host.Witness(*fake_host.ELSEWHERE)
        fake_host.resolve_everything(fake_host.ELSEWHERE[0])
        import textwrap
        result = nsmagic.run(textwrap.dedent(f'''
        import socket
        answers = {{}}
        for place in {(*fake_host.ELSEWHERE, "some.where.test")!r}:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                whole = socket.getaddrinfo(place, {witness.port}, type=kind)[0]
                with socket.socket(*whole[:3]) as ours:
                    ours.settimeout(10)
                    ours.connect(whole[4])
                    if kind == socket.SOCK_DGRAM:
                        ours.send(b"x")
                    answers[f"{{place}} {{kind.name}}"] = ours.recv(10).decode()
        names = [name for _, name in socket.if_nameindex()]
        '''), net="outbound", timeout=60, outputs=["answers", "names"])
        assert result.ok, result.stderr
        say(**result.values, network=result.isolation.network, seen=sorted(witness.seen))
        """)
    assert set(found["answers"].values()) == {"reached"}
    assert len(found["answers"]) == 6
    assert found["names"] == ["lo", "eth0"]
    assert found["network"] == "outbound"
    assert len(found["seen"]) == 4


HOSTILE = """
import errno, socket, struct
V4, V6 = socket.AF_INET, socket.AF_INET6
index = socket.if_nametoindex("eth0")
def bound(ours, family): ours.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
def unicast_if(ours, family):
    if family == V4: ours.setsockopt(socket.IPPROTO_IP, 50, struct.pack("!I", index))
    else: ours.setsockopt(socket.IPPROTO_IPV6, 76, struct.pack("!I", index))
def direct(ours, family): ours.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
def source_route(ours, family):
    if family == V4: ours.setsockopt(socket.IPPROTO_IP, 4, bytes([131, 7, 4]) + socket.inet_aton("127.0.0.1") + bytes(1))
def plain(ours, family): pass
reached = []
for place in PLACES:
    for how in (plain, bound, unicast_if, direct, source_route):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                whole = socket.getaddrinfo(place, PORT, type=kind)[0]
                with socket.socket(*whole[:3]) as ours:
                    ours.settimeout(0.3)
                    how(ours, whole[0])
                    ours.connect(whole[4])
                    ours.send(b"x")
                    if ours.recv(10): reached.append((place, how.__name__, kind.name))
            except OSError:
                pass
    # With the device named beside the packet: IP_PKTINFO.
    try:
        whole = socket.getaddrinfo(place, PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(*whole[:3]) as ours:
            info = (0, 8, struct.pack("=I4s4s", index, bytes(4), bytes(4)))
            if whole[0] == V6: info = (41, 50, bytes(16) + struct.pack("=I", index))
            ours.sendmsg([b"x"], [info], 0, whole[4])
    except OSError:
        pass
import time
time.sleep(0.5)
"""


def test_the_hosts_loopback_and_metadata_are_not_reached_however_one_tries(
    there: Callable[..., dict[str, Any]],
) -> None:
    """The witness on the host says so, not the container: a blind packet would be enough to do harm."""
    found = there(f"""
        import socket, subprocess
        link_local = next(line.split()[0] for line in open("/proc/net/if_inet6") if line.split()[-1] == "uplink"
                          and line.startswith("fe80"))
        link_local = ":".join(link_local[i:i + 4] for i in range(0, 32, 4))
        for _ in range(200):  # until its address is known to be nobody else's
            try:
                own = fake_host.Witness("127.0.0.1", "127.0.0.2", "::1", fake_host.METADATA, link_local + "%uplink",
                                        fake_host.UPLINK[0], *fake_host.ELSEWHERE)
                break
            except OSError as error:
                time.sleep(0.05)
        places = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", fake_host.METADATA,
                  "192.0.2.1", fake_host.UPLINK[0], link_local + "%eth0", "fe80::1%eth0"]
        code = f"PLACES, PORT = {{places!r}}, {{own.port}}\\n" + {HOSTILE!r}
        result = nsmagic.run(code, net="outbound", timeout=90, outputs=["reached"])
        assert result.ok, result.describe() + result.stderr
        seen = sorted(own.seen)
        # The witness is there, and sees who comes.
        nsmagic.run(f"import socket; socket.create_connection(({{fake_host.ELSEWHERE[0]!r}}, {{own.port}}), 10)",
                    net="outbound").check()
        say(seen=seen, reached=result.values["reached"], after=sorted(own.seen))
        """)
    assert found["reached"] == []
    assert found["seen"] == []
    assert found["after"] == [[fake_host.ELSEWHERE[0], "tcp"]]


def test_what_is_closed_is_closed_for_good(there: Callable[..., dict[str, Any]]) -> None:
    """Who is inside cannot take the routes away."""
    found = there("""
        result = nsmagic.run('''
        import socket, struct
        index = socket.if_nametoindex("eth0")
        body = struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 255, 0, 254, 2, 0)
        body += struct.pack("=HH", 8, 1) + socket.inet_aton("169.254.0.0") + struct.pack("=HHI", 8, 4, index)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
            kernel.send(struct.pack("=IHHII", 16 + len(body), 25, 5, 1, 0) + body)  # RTM_DELROUTE
            answer = -struct.unpack_from("=i", kernel.recv(4096), 16)[0]
        try:
            with open("/dev/net/tun") as tun: answer = 0
        except OSError:
            pass
        '''.replace("\\n        ", "\\n"), net="outbound", outputs=["answer"])
        assert result.ok, result.stderr
        say(**result.values)
        """)
    assert found["answer"] == errno.EPERM


# ---- ports -----------------------------------------------------------------------------------------

SERVER = """
import socket
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 5353))
with socket.create_server(("", 80)) as server:
    print("serving", flush=True)
    while True:
        theirs, _ = server.accept()
        theirs.sendall(b"inside")
        theirs.close()
        datagrams.setblocking(False)
        try:
            data, whence = datagrams.recvfrom(100)
            datagrams.sendto(data + b" inside", whence)
        except BlockingIOError:
            pass
"""

ASK = """
import socket
def ask(address, port):
    try:
        with socket.create_connection((address, port), 5) as ours:
            return ours.recv(100).decode()
    except OSError as error:
        return type(error).__name__

def until(function, wanted):
    for _ in range(300):
        if function() == wanted:
            return True
        time.sleep(0.05)
    return False
"""


def test_a_published_port_leads_inside_and_is_the_loopbacks(there: Callable[..., dict[str, Any]]) -> None:
    found = there(f"""
        {textwrap.indent(ASK, "        ").strip()}
        box = nsmagic.Container(net="outbound", publish=["18080:80", "127.0.0.2:18081:80", "5353:5353/udp"]).start()
        threading.Thread(target=lambda: box.run({SERVER!r}), daemon=True).start()
        assert until(lambda: ask("127.0.0.1", 18080), "inside")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.settimeout(0.2)
            for _ in range(50):
                ours.sendto(b"to", ("127.0.0.1", 5353))
                ask("127.0.0.1", 18080)
                try:
                    datagram = ours.recv(100).decode()
                    break
                except OSError:
                    datagram = ""
        found = dict(own=ask("127.0.0.1", 18080), named=ask("127.0.0.2", 18081), not_published=ask("127.0.0.1", 80),
                     other_address=ask("127.0.0.2", 18080), datagram=datagram)
        box.stop()
        found["gone"] = until(lambda: ask("127.0.0.1", 18080), "ConnectionRefusedError")
        say(**found)
        """)
    assert found["own"] == found["named"] == "inside"
    assert found["datagram"] == "to inside"
    assert found["not_published"] == found["other_address"] == "ConnectionRefusedError"
    assert found["gone"]


def test_a_port_that_is_in_use_is_one_clear_line(there: Callable[..., dict[str, Any]]) -> None:
    found = there("""
        import socket
        held = socket.create_server(("127.0.0.1", 18080))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 18080))
        said = []
        for publish in ("18080:80", "18080:18080/udp", "203.0.113.7:80:80"):
            try:
                nsmagic.run("pass", net="outbound", publish=publish)
                said.append("ran")
            except nsmagic.SpecError as error:
                said.append(str(error))
        say(said=said)
        """)
    assert found["said"] == [
        "--publish: port 18080/tcp of 127.0.0.1 is in use; take another",
        "--publish: port 18080/udp of 127.0.0.1 is in use; take another",
        "--publish: 203.0.113.7 is no address of this host",
    ]


@pytest.mark.ordinary_user
def test_a_low_port_is_roots() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80:
        pytest.skip("host: port 80 is for everybody")
    with pytest.raises(SpecError, match=r"port 80/tcp of 127\.0\.0\.1 is for root; take one from 1024 up"):
        outbound.check_ports([parse_publish("--publish", "80:80")])


def test_an_old_pasta_publishes_datagrams_under_their_own_number_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "_options", lambda path: frozenset())
    with pytest.raises(SpecError, match="publish 53:53/udp, or install"):
        outbound.command("/usr/bin/pasta", [parse_publish("--publish", "5353:53/udp")])
    monkeypatch.setattr(outbound, "_options", lambda path: frozenset({"--map-host-loopback"}))
    words = outbound.command("/usr/bin/pasta", [parse_publish("--publish", "5353:53/udp")])
    assert words[words.index("--udp-ports") + 1] == "127.0.0.1/5353:53"
    assert words[words.index("--tcp-ports") + 1] == "none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "add --net outbound"),
        ({"net": "host"}, "the host's own network has the container's ports already"),
        ({"net": "outbound", "publish": ["1:1", "1:2"]}, "given twice"),
        ({"net": "outbound", "publish": [f"{n}:1" for n in range(1, 66)]}, "at most 64"),
        ({"net": "outbound", "ns": "all-user"}, "outbound needs a user namespace"),
        ({"net": "outbound", "ns": "all-net"}, "outbound needs a network namespace"),
    ],
)
def test_what_goes_together_and_what_not(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        nsmagic.run("pass", **{"publish": "8080:80", **options})


@pytest.mark.works("lab networks")
def test_a_lab_publishes_nothing() -> None:
    with nsmagic.Network("unpublished"), pytest.raises(SpecError, match="take --net outbound instead"):
        nsmagic.run("pass", net="unpublished", publish="8080:80")


# ---- pasta itself ------------------------------------------------------------------------------------


def test_without_pasta_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        HostError, match=r"pasta is not installed\. Install its package: sudo apt install passt"
    ):
        nsmagic.run("pass", net="outbound")


def _stand_in(folder: Path, does: str) -> None:
    """A pasta that knows all that we ask for, and then does this."""
    path = folder / "pasta"
    words = "--config-net --tcp-ns --udp-ns --no-map-gw --no-netns-quit"
    path.write_text(f'#!/bin/sh\n[ "$1" = --help ] && {{ echo {words}; exit 0; }}\n{does}\n')
    path.chmod(0o755)


@pytest.fixture
def with_device() -> None:
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("host: /dev/net/tun may not be opened")


@pytest.mark.container
@pytest.mark.usefixtures("quiet", "with_device")
@pytest.mark.parametrize(
    ("does", "number", "said", "remedy"),
    [
        ("echo 'No external routable interface for IPv4/6, exiting' >&2; exit 1", errno.EPROTO, "No external routable", "default route"),
        ("echo 'Failed to bind port 80 (Address already in use)' >&2; exit 1", errno.EADDRINUSE, "Failed to bind", "ss -tulnp"),
        ("exit 3", errno.EPROTO, "status 3", ""),
        ("exit 0", errno.ENODEV, "if_nametoindex", ""),
    ],
)  # fmt: skip
def test_a_pasta_that_fails_is_a_start_error(
    does: str, number: int, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never a container without its network, or with one that is open where it should be closed."""
    _stand_in(tmp_path, does)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StartError) as caught:
        nsmagic.run("print('ran')", net="outbound")
    assert (caught.value.step, caught.value.errno) == ("network", number)
    assert said in caught.value.call
    assert remedy in caught.value.remedy


def test_a_pasta_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _stand_in(tmp_path, "exit 1")
    (tmp_path / "pasta").write_text("#!/bin/sh\necho --config-net\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match=r"this pasta knows no --tcp-ns, .*Install a newer passt"):
        outbound.program()


PIDS = """
import pathlib
def below(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in children for each in (int(child), *below(child))]
def carriers():
    # The guard, and the pasta that it started; not the launcher's containers.
    found = []
    for pid in below(os.getpid()):
        try:
            name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name.startswith(("nsmagic-pasta", "pasta", "passt")):
            found.append(pid)
    return found
"""


def test_pasta_ends_with_its_container(there: Callable[..., dict[str, Any]]) -> None:
    found = there(f"""
        {textwrap.indent(PIDS, "        ").strip()}
        {textwrap.indent(ASK, "        ").strip()}
        box = nsmagic.Container(net="outbound").start()
        box.run("pass").check()
        during = len(carriers())
        box.stop()
        stopped = until(lambda: len(carriers()), 0)
        nsmagic.run("pass", net="outbound").check()
        ran = until(lambda: len(carriers()), 0)
        box = nsmagic.Container(net="outbound", keep=False).start()
        threading.Thread(target=lambda: box.run("import time; time.sleep(100)"), daemon=True).start()
        assert until(lambda: box.payload_pid is not None and len(carriers()) >= 2, True)
        os.kill(box.init_pid, 9)
        killed = until(lambda: len(carriers()), 0)
        say(during=during, stopped=stopped, ran=ran, killed=killed)
        """)
    assert found == {"during": 2, "stopped": True, "ran": True, "killed": True}


def test_pasta_ends_with_an_owner_that_is_killed(until: Callable[..., bool]) -> None:
    _needs_pasta()
    code = f"""
        {textwrap.indent(PIDS, "        ").strip()}
        box = nsmagic.Container(net="outbound", publish="18090:80").start()
        box.run("pass").check()
        say(pids=[*carriers(), box.init_pid])
        time.sleep(100)
        """
    with subprocess.Popen(_command(code), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = json.loads(owner.stdout.readline())["pids"]
        assert len(pids) == 3
        owner.send_signal(signal.SIGKILL)
        assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)


def test_the_command_line(there: Callable[..., dict[str, Any]]) -> None:
    found = there(f"""
        import subprocess
        {textwrap.indent(ASK, "        ").strip()}
        words = [sys.executable, "-m", "nsmagic.cli", "run", "--net", "outbound", "--publish", "18080:80"]
        with subprocess.Popen([*words, "-c", {SERVER!r}], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            answer = ask("127.0.0.1", 18080)
            process.terminate()
        text = subprocess.run([*words, "--explain", "-c", "print(1)"], capture_output=True, text=True).stderr
        say(answer=answer, status=process.returncode, text=text)
        """)
    assert found["answer"] == "inside"
    assert found["status"] == 143
    assert re.search(r"^network +network ", found["text"], re.MULTILINE)
    assert "pasta --quiet --config-net" in found["text"]
    assert "RTM_NEWROUTE(type=local, destination=127.0.0.0/8" in found["text"]


def test_the_resolver_is_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(outbound.resolvers()) <= {4, 6}
    for line in outbound.resolv_conf().splitlines():
        assert line.split()[0] in {"nameserver", "search", "options"}


def test_the_closed_addresses_are_networks() -> None:
    import ipaddress

    for network, why in outbound.CLOSED:
        assert ipaddress.ip_network(network)
        assert why
    assert socket.AF_INET6
