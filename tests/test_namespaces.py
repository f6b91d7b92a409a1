"""Every namespace, alone and with all others, looked at from inside and from outside; and who the payload is."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import SpecError
from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.container,
    pytest.mark.works("fresh /proc"),  # that is where most of this is seen
    pytest.mark.usefixtures("quiet"),
]

FILES = {"mount": "mnt"}  # where namespaces(7) and /proc differ in the name
LINKS = "{n: os.readlink('/proc/self/ns/' + n) for n in os.listdir('/proc/self/ns')}"


OPEN: dict[str, Any] = {"workdir": "/usr"}
"""For runs without a mount namespace, which see the folders' real owners: root's test folders are closed to them."""


def host_link(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{FILES.get(name, name)}")


def differ(inside: dict[str, str]) -> set[str]:
    """The namespaces that are not the host's."""
    return {name for name in NAMESPACES if inside[FILES.get(name, name)] != host_link(name)}


def test_all_namespaces_by_default(look: Callable[..., Any]) -> None:
    assert differ(look(LINKS)) == set(NAMESPACES)


@pytest.mark.parametrize("name", NAMESPACES)
def test_one_namespace_alone(name: str, added: set[str]) -> None:
    options = OPEN if name == "net" else {"net": "host", **OPEN}
    result = nsmagic.run(f"import os\nlinks = {LINKS}", ns=name, outputs=["links"], **options).check()
    needed = added - {name}
    assert differ(result.values["links"]) == {name} | needed
    assert set(result.isolation.namespaces) == {name} | needed
    assert set(result.isolation.added) == needed


@pytest.mark.parametrize("name", NAMESPACES)
def test_all_namespaces_but_one(name: str, added: set[str]) -> None:
    options = {"net": {"net": "host"}, "mount": OPEN}.get(name, {})
    result = nsmagic.run(
        f"import os\nlinks = {LINKS}", ns=f"all-{name}", outputs=["links"], **options
    ).check()
    kept = {name} - added
    assert differ(result.values["links"]) == set(NAMESPACES) - kept


def test_a_user_namespace_that_was_needed_is_said(added: set[str]) -> None:
    result = nsmagic.run("pass", ns="uts,pid", net="host", **OPEN).check()
    assert set(result.isolation.added) == added
    assert set(result.isolation.namespaces) >= {"uts", "pid"}


def test_two_containers_share_no_namespace(look: Callable[..., Any]) -> None:
    first, second = look(LINKS), look(LINKS)
    same = {name for name in NAMESPACES if first[FILES.get(name, name)] == second[FILES.get(name, name)]}
    # A number may be used again once its namespace is gone; all of them at once would be the same container.
    assert len(same) < len(NAMESPACES)


def test_two_live_containers_share_no_namespace(keep: Any) -> None:
    links = [keep().run(f"import os\nlinks = {LINKS}", outputs=["links"]).values["links"] for _ in range(2)]
    first, second = [container for container in links]  # noqa: C416
    assert not {name for name in NAMESPACES if first[FILES.get(name, name)] == second[FILES.get(name, name)]}


# ---- uts -----------------------------------------------------------------------


def test_hostname(look: Callable[..., Any]) -> None:
    before = socket.gethostname()
    assert look("socket.gethostname()", "import socket") == "container"
    assert look("socket.gethostname()", "import socket", hostname="box-1.example") == "box-1.example"
    assert look("open('/etc/hostname').read()", hostname="box") == "box\n"
    assert look("socket.gethostbyname('box')", "import socket", hostname="box") == "127.0.0.1"
    assert socket.gethostname() == before


def test_without_a_uts_namespace_the_name_is_the_hosts(look: Callable[..., Any]) -> None:
    assert look("socket.gethostname()", "import socket", ns="all-uts") == socket.gethostname()
    assert socket.gethostname() != "container"


# ---- pid ------------------------------------------------------------------------


def test_init_is_process_one(look: Callable[..., Any]) -> None:
    pids = look(
        "{int(p): open(f'/proc/{p}/comm').read().strip() for p in os.listdir('/proc') if p.isdigit()}"
    )
    assert pids[1] == "nsmagic-init"
    assert set(pids) == {1, 2}
    assert look("(os.getpid(), os.getppid())") == (2, 1)


def test_init_seen_from_the_host_is_the_launchers_child(
    keep: Any, children_of: Callable[[int], set[int]]
) -> None:
    from nsmagic.launcher import client

    container = keep()
    container.run("pass").check()
    assert container.init_pid in children_of(client.start().pid)
    assert Path(f"/proc/{container.init_pid}/comm").read_text() == "nsmagic-init\n"
    nspid = [
        line
        for line in Path(f"/proc/{container.init_pid}/status").read_text().splitlines()
        if line.startswith("NSpid")
    ]
    assert nspid[0].split()[-1] == "1"


def test_without_a_pid_namespace_the_hosts_numbers_are_seen(look: Callable[..., Any]) -> None:
    assert look("os.getpid()", ns="all-pid") > 2


def test_without_a_pid_namespace_what_a_job_started_ends_with_it(until: Callable[..., bool]) -> None:
    code = """
import os, time
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0: pass
        time.sleep(60)
    pids.append(pid)
print(*pids)
"""
    pids = nsmagic.run(code, ns="all-pid").check().stdout.split()
    assert len(pids) == 3
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 2)


# ---- time --------------------------------------------------------------------------


def test_clocks_begin_with_the_container(look: Callable[..., Any]) -> None:
    if time.monotonic() < 30:
        pytest.skip("host: it was started less than half a minute ago")
    clocks = look(
        "(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), float(open('/proc/uptime').read().split()[0]))",
        "import time",
    )
    assert all(0 <= clock < 25 for clock in clocks), clocks
    assert look("time.monotonic()", "import time", ns="all-time") > 25


def test_the_date_is_the_hosts(look: Callable[..., Any]) -> None:
    assert abs(look("time.time()", "import time") - time.time()) < 5


# ---- net -----------------------------------------------------------------------------


def test_only_a_loopback(look: Callable[..., Any]) -> None:
    assert look("socket.if_nameindex()", "import socket") == [(1, "lo")]
    assert look("open('/proc/net/route').read().count('\\n')") == 1  # a heading and no route
    flags = look("int(open('/sys/class/net/lo/flags').read(), 16) if os.path.exists('/sys/class/net') else 1")
    assert flags & 1


def test_the_loopback_answers(look: Callable[..., Any]) -> None:
    setup = """
import socket
def answers(family, address):
    server = socket.socket(family); server.bind((address, 0)); server.listen()
    client = socket.socket(family); client.settimeout(2); client.connect(server.getsockname())
    server.accept()[0].sendall(b'yes')
    return client.recv(3)
"""
    assert look("answers(socket.AF_INET, '127.0.0.1')", setup) == b"yes"
    if Path("/proc/net/if_inet6").exists():
        assert look("answers(socket.AF_INET6, '::1')", setup) == b"yes"


def test_no_way_out(look: Callable[..., Any]) -> None:
    setup = """
import socket, errno
def attempt(address):
    s = socket.socket(); s.settimeout(3)
    try: s.connect(address)
    except OSError as error: return errno.errorcode.get(error.errno, str(error))
    return 'out'
"""
    for address in ("192.0.2.1", "8.8.8.8", "169.254.169.254"):
        assert look(f"attempt(({address!r}, 80))", setup) == "ENETUNREACH"


def test_a_server_of_the_host_is_not_reached(look: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        setup = f"import socket\ndef attempt():\n try: socket.create_connection(('127.0.0.1', {port}), 2)\n except OSError as e: return type(e).__name__\n return 'reached'"
        assert look("attempt()", setup) == "ConnectionRefusedError"
        assert look("attempt()", setup, net="host") == "reached"


def test_names_can_be_looked_up_only_with_the_hosts_network(look: Callable[..., Any]) -> None:
    assert not look("os.path.exists('/etc/resolv.conf')")
    if Path("/etc/resolv.conf").exists():
        assert look("os.path.exists('/etc/resolv.conf')", net="host")


@pytest.mark.parametrize("user", [None, "root"])
def test_the_network_cannot_be_changed(look: Callable[..., Any], user: str | None) -> None:
    setup = """
import fcntl, socket, struct, errno
def attempt(number, data):
    try: fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), number, data)
    except OSError as error: return errno.errorcode[error.errno]
    return 'done'
"""
    assert look("attempt(0x8914, struct.pack('16sh', b'lo', 0))", setup, user=user) == "EPERM"  # SIOCSIFFLAGS
    raw = "import socket\ndef attempt(*a):\n try: socket.socket(*a)\n except OSError as e: return e.errno\n return 'done'"
    assert look("attempt(socket.AF_INET, socket.SOCK_RAW, 1)", raw, user=user) == 1
    assert look("attempt(socket.AF_PACKET, socket.SOCK_RAW, 0)", raw, user=user) == 1


# ---- cgroup -----------------------------------------------------------------------------


def test_the_group_looks_like_the_root(look: Callable[..., Any]) -> None:
    from nsmagic import cgroups

    groups = [line.split(":", 2)[1:] for line in look("open('/proc/self/cgroup').read()").splitlines()]
    used = {name for mechanism in cgroups.mechanisms()[:1] for name in getattr(mechanism, "trees", {})}
    for names, path in groups:
        if set(names.split(",")) & used or not used:
            assert path == "/", (names, path)


def test_cgroup_files_are_not_there(look: Callable[..., Any]) -> None:
    assert not look("os.path.exists('/sys/fs/cgroup')")
    assert look("[line for line in open('/proc/self/mountinfo') if ' - cgroup' in line]") == []


# ---- ipc ----------------------------------------------------------------------------------


def test_without_an_ipc_namespace_the_hosts_queues_are_seen(look: Callable[..., Any]) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.msgget(0, 0o1666)
    if queue < 0:
        pytest.skip("host: no System V queues")
    try:
        lines = "[int(line.split()[1]) for line in open('/proc/sysvipc/msg').read().splitlines()[1:]]"
        assert look(lines) == []
        assert queue in look(lines, ns="all-ipc")
    finally:
        libc.msgctl(queue, 0, None)


# ---- who the payload is ----------------------------------------------------------------------


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    "options",
    [{}, {"user": "root"}, {"user": 4242}, {"ns": "all-user"}, {"ns": "uts", "net": "host", **OPEN}, {"ns": "all-pid"},
     {"ns": "all-mount", **OPEN}, {"fresh_exec": True}],
    ids=str,
)  # fmt: skip
def test_the_payload_has_no_rights(look: Callable[..., Any], options: dict[str, Any]) -> None:
    if options.get("ns") == "all-user" and os.geteuid() != 0:
        options = {}
    inside = status(look("open('/proc/self/status').read()", **options))
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(inside[name], 16) == 0, name
    assert inside["NoNewPrivs"] == "1"
    assert inside["Seccomp"] == "2"
    assert inside["Seccomp_filters"].strip() >= "1"
    # Of an ordinary user without setgroups: at most his own groups, shown as nobody's.
    groups = set(inside["Groups"].split())
    assert groups <= {"65534", inside["Gid"].split()[0]} if os.geteuid() else groups <= {"65534", "0"}
    assert len(set(inside["Uid"].split())) == 1
    assert inside["SigBlk"].strip("0") == ""


def test_groups_of_root_are_given_up(look: Callable[..., Any]) -> None:
    if os.geteuid() != 0:
        pytest.skip("host: not root")
    for namespaces in ("all", "all-user"):
        assert look("os.getgroups()", ns=namespaces) == []


@pytest.mark.parametrize("user", [None, "root", 0, 1234, 65535])
def test_who_it_is_inside(look: Callable[..., Any], user: Any) -> None:
    expected = {None: 1000 if os.geteuid() == 0 else os.geteuid(), "root": 0}.get(user, user)
    assert (
        look("os.getresuid() + (os.stat('/tmp').st_uid, os.stat('.').st_uid)", user=user)[:3]
        == (expected,) * 3
    )
    name = "root" if expected == 0 else "user"
    assert look("pwd.getpwuid(os.getuid()).pw_name", "import os, pwd", user=user) == name
    home = look(
        "(os.environ['HOME'], os.path.expanduser('~'), os.access(os.path.expanduser('~'), os.W_OK))",
        user=user,
    )
    assert home == (home[0], home[0], True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "root"},
        {"ns": "uts", "net": "host", **OPEN},
        {"ns": "all-user"},
        {"ns": "all-mount", **OPEN},
    ],
    ids=str,
)
def test_who_it_is_outside_is_never_root(keep: Any, options: dict[str, Any]) -> None:
    container = keep(**options)
    result = container.run("pass").check()
    outside = {os.geteuid()} if os.geteuid() else set()
    for pid in (container.init_pid, *container.pids()):
        found = status(Path(f"/proc/{pid}/status").read_text())
        uids = {int(uid) for uid in found["Uid"].split()}
        assert 0 not in uids
        assert not outside or uids == outside
        assert int(found["CapEff"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
    assert result.isolation.host_user != 0


def test_its_session_is_its_own(look: Callable[..., Any]) -> None:
    assert look("os.getsid(0) == os.getpgrp() == os.getpid()")


@pytest.mark.parametrize("fresh", [False, True])
def test_only_four_descriptors(look: Callable[..., Any], fresh: bool) -> None:  # noqa: FBT001
    """One more is the folder that is being listed."""
    fds = look("sorted(int(name) for name in os.listdir('/proc/self/fd'))", fresh_exec=fresh)
    assert fds[:4] == [0, 1, 2, 3]
    assert len(fds) == 5


def test_a_program_has_only_its_streams() -> None:
    result = nsmagic.run(["sh", "-c", "ls -l /proc/self/fd"]).check()
    names = [line.split()[8] for line in result.stdout.splitlines()[1:]]
    assert names == ["0", "1", "2", "3"]  # 3 is ls's own, the folder
    assert "socket" not in result.stdout


def test_streams_are_pipes_and_nothing_of_the_owner(look: Callable[..., Any]) -> None:
    modes = look("[os.fstat(fd).st_mode for fd in (0, 1, 2, 3)]")
    assert [stat.S_ISFIFO(mode) for mode in modes] == [True, True, True, False]
    assert stat.S_ISSOCK(modes[3])


def test_umask_and_working_directory(look: Callable[..., Any], quiet: Path) -> None:
    assert look("os.getcwd()") == str(quiet)
    assert look("(os.umask(0), 0)[0]") in {0o22, os.umask(0o22)}


def test_nice_value_and_scheduling_are_ordinary(look: Callable[..., Any]) -> None:
    assert look("(os.sched_getscheduler(0), os.nice(0))") == (os.SCHED_OTHER, os.nice(0))


# ---- options at odds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"ns": "all", "net": "host"}, {"ns": "uts", "net": "none"}, {"ns": "uts", "bind": "/usr:/x"}]
)
def test_options_at_odds(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        nsmagic.run("pass", **options)
