"""Lab networks, with real containers: who reaches whom, whose names and addresses, and that nothing is left."""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import NetworkError, SpecError, StartError, explain, labs, networks, standbys, timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsmagic import Container, Network, Result

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.works("lab networks")]

SERVE = """
import socket
with socket.create_server(("", 80)) as server:
    print("serving", flush=True)
    while True:
        theirs, whence = server.accept()
        theirs.sendall(f"{socket.gethostname()} to {whence[0]}".encode())
        theirs.close()
"""
ASK = """
import socket
def ask(place):
    try:
        with socket.create_connection((place.encode(), 80), timeout=3) as ours:
            return ours.recv(100).decode()
    except OSError as error:
        return type(error).__name__
"""
_numbers = itertools.count()


class Serving:
    """A container that serves on port 80, in a thread that waits for its end."""

    def __init__(self, **options: Any) -> None:
        self.box = nsmagic.Container(keep=False, **options)
        self.errors: list[Exception] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.box.run(SERVE)
        except nsmagic.NsmagicError as error:
            self.errors.append(error)

    def __enter__(self) -> Container:
        self.box.start()
        self.thread.start()
        return self.box

    def __exit__(self, *error: object) -> None:
        self.box.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()
        if not any(error):
            assert not self.errors


@pytest.fixture
def lab() -> Iterator[Network]:
    with nsmagic.Network(f"lab{next(_numbers)}") as lab:
        yield lab


@pytest.fixture
def serves(until: Callable[..., bool]) -> Callable[[Network, str], bool]:
    """Give a function: whether a member serves on port 80 before long."""

    def served(lab: Network, name: str) -> bool:
        return until(lambda: any(m.name == name and "80/tcp" in m.listens for m in lab.view().members), 30)

    return served


def asked(*places: str, **options: Any) -> list[str]:
    """What a fresh container hears at these places."""
    answers = f"answers = [ask(place) for place in {places!r}]"
    result: Result = nsmagic.run(ASK + answers, outputs=["answers"], **options)
    assert result.ok, (result.describe(), result.stderr)
    found: list[str] = result.values["answers"]
    return found


def parts(lab: Network) -> tuple[int, str]:
    """Its holder's process id, and the folder with the hosts file."""
    return lab._lab.pid, lab._lab.hosts_folder


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- who reaches whom ----------------------------------------------------------------------


def test_two_serve_on_port_80_and_a_third_outside_reaches_neither(
    lab: Network, serves: Callable[[Network, str], bool]
) -> None:
    with Serving(net=lab.name, hostname="web"), Serving(net=lab.name, hostname="db"):
        assert serves(lab, "web")
        assert serves(lab, "db")
        members = {member.name: member for member in lab.view().members}
        assert {member.up for member in members.values()} == {True}
        addresses = [members["web"].address, members["db"].address]
        assert len(set(addresses)) == 2
        assert all(address.startswith(lab.subnet.removesuffix("0/24")) for address in addresses)

        (own, web, db, by_address) = asked("third", "web", "db", addresses[1], net=lab.name, hostname="third")
        assert own == "ConnectionRefusedError"
        assert web.startswith("web to ")
        assert db.startswith("db to ")
        assert by_address == db

        for elsewhere in ({"net": "none"}, {}):
            assert set(asked("web", "db", **elsewhere)) == {"gaierror"}
            assert set(asked(*addresses, **elsewhere)) == {"OSError"}  # no route
        with nsmagic.Network("other") as other:
            assert set(asked("web", "db", net=other.name)) == {"gaierror"}
            assert "web" not in str(asked(*addresses, net=other.name))
        # Nor does the host itself: it has no cable.
        ours = subprocess.run(
            [sys.executable, "-c", f"{ASK}\nprint(ask({addresses[0]!r}))"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "web" not in ours.stdout


def test_members_reach_nothing_of_the_host(lab: Network) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
            import socket
            answers = []
            for place in ("127.0.0.1", {lab.subnet.replace("0/24", "254")!r}, "192.0.2.1"):
                with socket.socket() as ours:
                    ours.settimeout(3)
                    answers.append(ours.connect_ex((place, {port})))
            """
        import textwrap

        result = nsmagic.run(textwrap.dedent(code), net=lab.name, outputs=["answers"]).check()
        assert result.values["answers"][0] == errno.ECONNREFUSED
        assert result.values["answers"][2] == errno.ENETUNREACH
        assert 0 not in result.values["answers"]


def test_those_who_run_know_those_who_come_later(lab: Network, keep: Callable[..., Container]) -> None:
    first = keep(net=lab.name, hostname="first")
    look = "import os\nprint(open('/etc/hosts').read(), os.uname().nodename)"
    assert "second" not in first.run(look).check().stdout
    second = keep(net=lab.name, hostname="second")
    assert second.run("pass").ok
    said = first.run(look).check().stdout
    assert "second" in said
    assert said.split()[-1] == "first"
    second.stop()
    standbys.current()  # it has none of a lab's
    assert first.run("import socket; socket.gethostbyname('first')").ok


def test_the_names_cannot_be_written(lab: Network) -> None:
    code = """
import os
answers = []
for path in ("/etc/hosts", "/run/lab/hosts", "/run/lab/new"):
    try:
        open(path, "a").write("192.0.2.1 web")
        answers.append("written")
    except OSError as error:
        answers.append(error.errno)
"""
    result = nsmagic.run(code, net=lab.name, outputs=["answers"]).check()
    assert set(result.values["answers"]) <= {errno.EROFS, errno.EACCES}
    assert result.values["answers"]


def test_a_container_without_a_name_gets_one(lab: Network) -> None:
    result = nsmagic.run(
        "import os; print(os.uname().nodename, open('/etc/hosts').read())", net=lab.name
    ).check()
    name = result.stdout.split()[0]
    assert name.startswith("box")
    assert f"{lab.subnet.removesuffix('0/24')}1 {name}" in result.stdout
    assert result.isolation.network == lab.name


def test_without_a_mount_namespace_there_are_addresses(
    lab: Network, serves: Callable[[Network, str], bool]
) -> None:
    with Serving(net=lab.name, hostname="web"):
        assert serves(lab, "web")
        (answer,) = asked(lab.view().members[0].address, net=lab.name, ns="all-mount", workdir="/")
        assert answer.startswith("web to ")


# ---- what a hostile member can do ----------------------------------------------------------------


def test_a_member_cannot_take_anothers_address(lab: Network, keep: Callable[..., Container]) -> None:
    web = keep(net=lab.name, hostname="web")
    assert web.run("pass").ok
    address = lab.view().members[0].address
    code = f"""
import errno, fcntl, socket, struct
answers = {{}}
def attempt(name, function):
    try:
        answers[name] = repr(function())
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]

def packet(): return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
def raw(): return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def ioctl(number, more):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        return fcntl.ioctl(ours, number, struct.pack("16s", b"eth0") + more)
def new_address():
    body = struct.pack("=BBBBI", 2, 24, 0, 0, socket.if_nametoindex("eth0"))
    body += struct.pack("=HH", 8, 2) + socket.inet_aton({address!r})
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), 20, 0x605, 1, 0) + body)
        number = struct.unpack_from("=i", kernel.recv(4096), 16)[0]
        if number: raise OSError(-number, "")
def bind():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(({address!r}, 5000))
def freebind():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND takes no right
        ours.bind(({address!r}, 5000))
        ours.sendto(b"x", ({address.rpartition(".")[0] + ".200"!r}, 9))
def transparent():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.setsockopt(socket.IPPROTO_IP, 19, 1)
sockaddr = struct.pack("=HH4s8x", 2, 0, socket.inet_aton({address!r}))
for name, function in dict(
    packet=packet, raw=raw, new_address=new_address, bind=bind, freebind=freebind, transparent=transparent,
    set_address=lambda: ioctl(0x8916, sockaddr), down=lambda: ioctl(0x8914, bytes(16)),
    mac=lambda: ioctl(0x8924, struct.pack("=H14s", 1, bytes(14))),
).items():
    attempt(name, function)
"""
    result = nsmagic.run(code, net=lab.name, hostname="mallory", outputs=["answers"]).check()
    answers = result.values["answers"]
    refused = {"EPERM", "EACCES"}
    for name in ("packet", "raw", "new_address", "set_address", "down", "mac", "transparent"):
        assert answers[name] in refused, answers
    assert answers["bind"] == "EADDRNOTAVAIL"
    assert answers["freebind"] in {"ENETUNREACH", "EINVAL"}, answers


def test_a_member_has_one_address_and_it_is_the_labs(lab: Network) -> None:
    code = """
addresses = [line.split()[-1] for line in open("/proc/net/if_inet6")]
import socket
names = [name for _, name in socket.if_nameindex()]
routes = [line.split()[:3] for line in open("/proc/net/route")][1:]
"""
    result = nsmagic.run(code, net=lab.name, outputs=["addresses", "names", "routes"]).check()
    assert result.values["names"] == ["lo", "eth0"]
    assert set(result.values["addresses"]) <= {"lo"}  # no IPv6 address that the kernel would make up
    assert [route[0] for route in result.values["routes"]] == ["eth0"]
    assert result.values["routes"][0][1] != "00000000"  # no default route: no way out


# ---- names and addresses are given once ------------------------------------------------------------


def test_no_name_is_given_twice(
    lab: Network, keep: Callable[..., Container], until: Callable[..., bool]
) -> None:
    web = keep(net=lab.name, hostname="web")
    assert web.run("pass").ok
    with pytest.raises(NetworkError, match=rf"the name 'web' is container {web.number}'s; .*--hostname"):
        nsmagic.run("pass", net=lab.name, hostname="web")
    web.stop()
    assert until(lambda: not lab.view().members)
    assert nsmagic.run("pass", net=lab.name, hostname="web").ok


def test_no_address_is_given_twice_and_all_are_given(lab: Network, until: Callable[..., bool]) -> None:
    given = [lab._lab.attach(f"taken{number}", number) for number in range(254)]
    try:
        addresses = [member.address for member in lab.view().members]
        assert len(set(addresses)) == 254
        with pytest.raises(
            NetworkError, match=r"all 254 addresses of .*/24 are taken; stop a container first"
        ):
            nsmagic.run("pass", net=lab.name)
        given[100].close()  # as a container that could not be built
        assert until(lambda: len(lab.view().members) == 253)
        result = nsmagic.run("import socket; print(socket.gethostbyname(socket.gethostname()))", net=lab.name)
        assert result.check().stdout.strip() == addresses[100]
    finally:
        for each in given:
            each.close()


def test_containers_of_several_threads_at_once(lab: Network) -> None:
    found: list[str] = []

    def work() -> None:
        result = nsmagic.run("import socket; print(socket.gethostbyname(socket.gethostname()))", net=lab.name)
        found.append(result.check().stdout.strip())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(found) == 6


def test_no_standby_holds_a_name(lab: Network, until: Callable[..., bool]) -> None:
    for _ in range(2):
        nsmagic.run("pass", net=lab.name, hostname="only").check()
        assert until(lambda: not lab.view().members)


def test_kept_containers_are_one_member_each_however_many_jobs_they_have(lab: Network) -> None:
    boxes = [nsmagic.Container(name=name, net=lab.name).start() for name in ("kept-web", "kept-mail")]
    try:
        for name in ("kept-web", "kept-mail"):
            for _ in range(2):
                nsmagic.run("pass", join=name).check()
        assert sorted(member.name for member in lab.view().members) == ["kept-mail", "kept-web"]
        there = "import socket; print(socket.gethostbyname('kept-web'))"
        address = nsmagic.run(there, join="kept-mail").check().stdout.strip()
        assert address.startswith(lab.subnet.rpartition(".")[0])
    finally:
        for box in boxes:
            box.stop()


# ---- networks come and go ----------------------------------------------------------------------


def test_a_network_with_members_is_not_removed(keep: Callable[..., Container]) -> None:
    lab = nsmagic.Network("busy")
    pid, folder = parts(lab)
    web = keep(net="busy", hostname="web")
    assert web.run("pass").ok
    with pytest.raises(
        NetworkError, match=rf"busy: it has members: web \(container {web.number}\); stop them first"
    ):
        lab.remove()
    assert alive(pid)
    web.stop()
    lab.remove()
    assert not alive(pid)
    assert not Path(folder).parent.exists()
    lab.remove()  # once more does no harm
    with pytest.raises(NetworkError, match="busy: it is gone"):
        lab.view()
    with pytest.raises(SpecError, match="'busy' is not a network here"):
        nsmagic.run("pass", net="busy")


def test_a_network_that_is_there_is_taken_again(lab: Network) -> None:
    assert nsmagic.Network(lab.name)._lab is lab._lab
    with pytest.raises(SpecError, match="there is a network"):
        labs.create(lab.name)


@pytest.mark.parametrize("name", ["none", "host", "outbound", "", "1st", "a b", "a/b", "ä", "x" * 31, "<b>"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SpecError):
        nsmagic.Network(name)


def test_an_unknown_network_is_told_with_those_that_are_there(lab: Network) -> None:
    with pytest.raises(SpecError, match=rf"'{lab.name}x' is not a network here; did you mean {lab.name}\?"):
        nsmagic.run("pass", net=lab.name + "x")


def test_a_fork_of_the_owner_has_no_networks(lab: Network) -> None:
    child = os.fork()
    if child == 0:
        lab._lab.close()
        os._exit(0 if not labs.living() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert nsmagic.run("pass", net=lab.name).ok


@pytest.mark.ordinary_user
def test_members_user_namespaces_are_below_the_labs(
    lab: Network, serves: Callable[[Network, str], bool]
) -> None:
    """NS_GET_PARENT in ioctl_ns(2)."""
    import fcntl

    with Serving(net=lab.name, hostname="web") as web:
        assert serves(lab, "web")
        with open(f"/proc/{web.payload_pid}/ns/user", "rb") as inside:
            parent = fcntl.ioctl(inside, 0xB702)
    try:
        assert os.fstat(parent).st_ino == os.fstat(lab._lab.userns).st_ino
    finally:
        os.close(parent)


# ---- what fails ----------------------------------------------------------------------------------


def test_a_holder_that_dies_meanwhile_is_a_start_error(lab: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = networks.attach

    def attach_and_kill(spec: Any, number: int) -> Any:
        attachment = attach(spec, number)
        os.kill(lab._lab.pid, signal.SIGKILL)
        return attachment

    monkeypatch.setattr(networks, "attach", attach_and_kill)
    with pytest.raises(StartError, match=r"create the network again") as caught:
        nsmagic.run("print('ran')", net=lab.name)
    assert caught.value.step == "net"
    assert caught.value.errno in {errno.ECONNRESET, errno.EPIPE}
    monkeypatch.undo()
    with pytest.raises(NetworkError, match="its holder was killed by signal 9; create it again"):
        nsmagic.run("pass", net=lab.name)
    with nsmagic.Network(lab.name):
        assert nsmagic.run("pass", net=lab.name).ok


IN_ITS_NETWORK = """
import os, sys
from pyroute2 import IPRoute
from nsmagic.linux import setns
user, net = (os.open(f"/proc/{sys.argv[1]}/ns/{kind}", os.O_RDONLY) for kind in ("user", "net"))
if os.geteuid():
    setns(user)
setns(net)
IPRoute().link("add", ifname="port1", kind="bridge")
"""


def test_a_cable_that_cannot_be_laid_is_a_start_error(lab: Network, until: Callable[..., bool]) -> None:
    """Its name is taken, by another device: no container runs without its network."""
    subprocess.run([sys.executable, "-c", IN_ITS_NETWORK, str(lab._lab.pid)], check=True)
    with pytest.raises(StartError) as caught:
        nsmagic.run("print('ran')", net=lab.name)
    assert (caught.value.step, caught.value.errno) == ("network", errno.EEXIST)
    assert caught.value.call.startswith("RTM_NEWLINK(kind=veth")
    assert any(step.call.startswith("recv(network") for step in caught.value.journal)
    assert until(lambda: not lab.view().members)


def test_explain_tells_of_the_network(lab: Network) -> None:
    journal = nsmagic.run("pass", net=lab.name).check().journal
    rows = explain.rows(journal)
    assert {row.who for row in rows} >= {"launcher", "init", "network", "payload"}
    for row in rows:
        if row.step in {"net", "network"}:
            assert row.why, row.call
            assert row.page
    calls = [row.call.partition("(")[0] for row in rows if row.who == "network"]
    assert calls.index("RTM_NEWLINK") < calls.index("RTM_NEWADDR") < calls.index("rename")
    assert "network" in timeline.drawing(journal)


def test_best_effort_is_no_way_around_it(lab: Network) -> None:
    from nsmagic.plan import Reach

    with pytest.raises(nsmagic.HostError, match="no container can be made here"):
        nsmagic.Container(net=lab.name, best_effort=True, reach=Reach({}, "for a test"))
    assert nsmagic.run("pass", net=lab.name, best_effort=True).ok


# ---- nothing is left -------------------------------------------------------------------------------

OWNER = """
import os, sys, threading
import nsmagic
lab = nsmagic.Network("lab")
web = nsmagic.Container(net="lab", hostname="web").start()
threading.Thread(target=lambda: web.run("import time; time.sleep(100)"), daemon=True).start()
web2 = nsmagic.Container(net="lab").start()
web2.run("pass")
web.init_pid or web.wait_built()
from nsmagic.launcher import client
print(lab._lab.pid, client.start().pid, web.init_pid, web2.init_pid, lab._lab.hosts_folder, flush=True)
{more}
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_an_owner_that_is_killed(
    number: signal.Signals, until: Callable[..., bool]
) -> None:
    with started("import time; time.sleep(100)") as (process, pids, folder):
        assert all(map(alive, pids))
        process.send_signal(number)
        process.wait(30)
        assert until(lambda: not any(map(alive, pids)), 30), [pid for pid in pids if alive(pid)]
        assert until(lambda: not Path(folder).parent.exists(), 30)


def test_nothing_is_left_of_an_owner_that_ends(until: Callable[..., bool]) -> None:
    with started("") as (process, pids, folder):
        assert process.wait(60) == 0
        assert until(lambda: not any(map(alive, pids)), 30)
        assert until(lambda: not Path(folder).parent.exists(), 30)


def test_members_go_when_the_launcher_is_killed(until: Callable[..., bool]) -> None:
    more = "os.kill(client.start().pid, 9)\nfor each in (web, web2): each.stop()\n"
    more += "print(nsmagic.run('pass', net='lab').ok, flush=True)\nlab.remove()\nprint('removed', flush=True)"
    with started(more) as (process, pids, folder):
        assert process.stdout is not None
        assert process.stdout.read().split() == ["True", "removed"]
        assert process.wait(60) == 0
        assert until(lambda: not any(map(alive, pids)), 30)
        assert not Path(folder).parent.exists()


class started:  # noqa: N801 - reads as a function
    """An owner in a process of its own: it, the processes that it has, and its lab's folder."""

    def __init__(self, more: str) -> None:
        self.code = OWNER.format(more=more)

    def __enter__(self) -> tuple[subprocess.Popen[str], list[int], str]:
        self.process = subprocess.Popen([sys.executable, "-c", self.code], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "the owner never began"
        *pids, folder = self.process.stdout.readline().split()
        assert pids, "the owner died at its start"
        return self.process, [int(pid) for pid in pids], folder

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
