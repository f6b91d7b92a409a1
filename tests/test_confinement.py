"""Without any namespace: what the code is kept from all the same, who says so, and that nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from refusals import ENOSYS, EPERM, refused

import nsmagic
from nsmagic import Container, confinement
from nsmagic.native import kinds
from nsmagic.plan import Reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsmagic import Result

pytestmark = [pytest.mark.hosts, pytest.mark.usefixtures("quiet")]

NO_LANDLOCK = confinement.landlock_abi() <= 0
needs_landlock = pytest.mark.skipif(NO_LANDLOCK, reason="host: no Landlock")
SCOPED = confinement.landlock_abi() >= confinement.SCOPE_ABI
needs_scopes = pytest.mark.skipif(not SCOPED, reason="host: Linux older than 6.12")
KINDS_OF_NAMESPACE = 0x7E020000
"""Every CLONE_NEW… flag of clone(2)."""
NO_NAMESPACES = [("clone3", ENOSYS, 0), ("clone", EPERM, KINDS_OF_NAMESPACE), ("unshare", EPERM, 0)]

TRIED = """
import os
def tried(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 0
"""


@pytest.fixture
def confined() -> Callable[..., Result]:
    """Give a function that runs a cell as if no namespace could be made here."""

    def run(code: str, outputs: tuple[str, ...] = (), **given: Any) -> Result:
        container = Container(best_effort=True, keep=False, reach=Reach({}, "a test says so"), **given)
        container.keep = False
        return container.start().run(TRIED + code, outputs=outputs)

    return run


# ---- Who says so ------------------------------------------------------------------------------------


def test_without_best_effort_it_is_an_error_with_the_remedy() -> None:
    code = """
import nsmagic
try:
    nsmagic.run("pass")
except nsmagic.StartError as error:
    print(json.dumps([error.call, error.errno, error.remedy]))
"""
    call, errno, remedy = refused(NO_NAMESPACES, code)
    assert (call.partition("(")[0], errno) == ("clone", EPERM)
    assert "seccomp=unconfined" in remedy
    assert "--best-effort" in remedy


@needs_landlock
def test_with_best_effort_it_runs_and_says_what_is_missing() -> None:
    code = """
import nsmagic
from nsmagic import views
result = nsmagic.run("print(6 * 7)", best_effort=True)
print(json.dumps([result.stdout, result.report()["isolation"], views.stats_rows(result), views.isolation_warning(result)]))
"""
    stdout, isolation, rows, warning = refused(NO_NAMESPACES, code)
    assert stdout == "42\n"
    assert isolation["namespaces"] == []
    assert "Operation not permitted" in isolation["missing"]["namespaces"]
    assert {"files", "network"} <= set(isolation["limits"])
    # Root's code runs under another uid than anybody's, and so reaches nobody's processes without Landlock either.
    assert "processes" in isolation["limits" if SCOPED or os.geteuid() == 0 else "missing"]
    assert any(name == "NOT ENFORCED" and text.startswith("namespaces: none") for name, text in rows)
    assert "namespaces is not enforced" in warning
    assert any("read-only" in note for note in isolation["notes"])


def test_a_namespace_that_others_do_not_need_is_left_out_and_named() -> None:
    try:
        nsmagic.run("pass").check()
    except nsmagic.StartError as error:
        pytest.skip(f"host: no container: {error.call}: {os.strerror(error.errno)}")
    code = """
import nsmagic
inside = "import os, socket; print(os.getpid(), *dict(socket.if_nameindex()).values())"
result = nsmagic.run(inside, best_effort=True)
print(json.dumps([result.stdout, result.isolation.namespaces, result.isolation.missing]))
"""
    stdout, namespaces, missing = refused([("unshare", EPERM, 0)], code)
    assert stdout == "2 lo\n"
    assert set(namespaces) == {"user", "pid", "mount", "net", "uts", "ipc"}
    assert {"cgroup namespace", "time namespace"} <= set(missing)
    assert "unshare(CLONE_NEWTIME): Operation not permitted" in missing["time namespace"]


def test_without_landlock_nobody_runs_as_its_own_user() -> None:
    code = """
import nsmagic
try:
    result = nsmagic.run("print(1)", best_effort=True)
    print(json.dumps([result.stdout, result.isolation.missing.get("files", ""), result.isolation.host_user]))
except nsmagic.HostError as error:
    print(json.dumps(["", str(error), -1]))
"""
    stdout, words, user = refused([*NO_NAMESPACES, ("landlock_create_ruleset", ENOSYS, 0)], code)
    if os.geteuid() == 0:
        assert stdout == "1\n"
        assert "no Landlock" in words
        assert user > 0
    else:
        assert not stdout
        assert "keep the code from your files" in words
        assert "lsm=" in words


@needs_landlock
def test_the_doctor_says_what_best_effort_is() -> None:
    code = """
from nsmagic import host
print(json.dumps([row for row in host.examine() if row.feature in ("--best-effort", "Landlock", "user namespace")]))
"""
    rows = {row[0]: row for row in refused(NO_NAMESPACES, code)}
    assert rows["user namespace"][1] == "missing"
    assert rows["--best-effort"][1] == "weaker"
    assert "Landlock ABI" in rows["--best-effort"][2]
    assert "namespaces" in rows["--best-effort"][2].partition("not enforced")[2]


# ---- Files --------------------------------------------------------------------------------------------


@needs_landlock
def test_only_what_a_container_would_show_can_be_read(
    confined: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory, project: Path
) -> None:
    # Open to everybody, so that nothing but Landlock stands before it.
    secret = Path(tempfile.mkdtemp(dir="/var/tmp")) / "secret"
    secret.parent.chmod(0o755)
    secret.write_text("secret")
    secret.chmod(0o644)
    for folder in (project, *project.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    try:
        result = confined(
            f"""
found = [tried(lambda path=path: open(path).close()) for path in
    ({str(secret)!r}, "/proc/1/cmdline", "/proc/1/status", f"/proc/{{os.getppid()}}/environ", "/proc/version",
     "/proc/self/status", "/etc/passwd", "keep.txt", "/dev/null")]
listed = [tried(lambda path=path: os.listdir(path)) for path in ("/", "/proc", "/tmp", "/home", "/usr", ".")]
""",
            outputs=("found", "listed"),
        )
    finally:
        secret.unlink()
        secret.parent.rmdir()
    assert result.ok, (result.describe(), result.stderr)
    assert result.values["found"] == [13, 13, 13, 13, 0, 0, 0, 0, 0]
    assert result.values["listed"] == [13, 13, 13, 13, 0, 0]


@needs_landlock
def test_nothing_but_the_private_folder_can_be_written(
    confined: Callable[..., Result], project: Path
) -> None:
    project.chmod(0o777)
    (project / "keep.txt").chmod(0o666)
    for folder in project.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    result = confined(
        """
denied = [tried(what) for what in (
    lambda: open("new", "w"), lambda: open("keep.txt", "a"), lambda: os.truncate("keep.txt", 0),
    lambda: os.remove("keep.txt"), lambda: os.rename("keep.txt", "other"), lambda: os.mkdir("folder"),
    lambda: os.symlink("x", "link"), lambda: os.link("keep.txt", os.environ["TMPDIR"] + "/hard"),
    lambda: os.mkfifo("pipe"), lambda: open("/tmp/new", "w"), lambda: open("/dev/shm/new", "w"))]
own = os.environ["TMPDIR"]
assert own == os.environ["HOME"] and os.stat(own).st_mode & 0o777 == 0o700
open(own + "/file", "w").write("x")
os.mkdir(own + "/sub")
os.rename(own + "/file", own + "/sub/moved")
left = os.listdir(own + "/sub")
""",
        outputs=("denied", "left", "own"),
    )
    assert result.ok, (result.describe(), result.stderr)
    assert set(result.values["denied"]) <= {13, 1, 18}, result.values["denied"]
    assert result.values["left"] == ["moved"]
    assert (project / "keep.txt").read_text() == "keep"
    assert sorted(path.name for path in project.iterdir()) == ["edit.txt", "gone.txt", "keep.txt", "sub"]


@needs_landlock
@pytest.mark.ordinary_user
def test_what_landlock_has_no_name_for_is_filtered(confined: Callable[..., Result], project: Path) -> None:
    before = os.stat("keep.txt")
    result = confined(
        """
denied = [tried(what) for what in (
    lambda: os.chmod("keep.txt", 0o777), lambda: os.chown("keep.txt", -1, os.getgid()),
    lambda: os.utime("keep.txt", (0, 0)), lambda: os.setxattr("keep.txt", "user.x", b"1"),
    lambda: os.fchmod(os.open("keep.txt", os.O_RDONLY), 0o777), lambda: os.utime(0, (0, 0)))]
""",
        outputs=("denied",),
    )
    assert result.values["denied"] == [1] * 6
    after = os.stat("keep.txt")
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@needs_landlock
def test_a_landlock_that_knows_no_truncation_is_helped(
    confined: Callable[..., Result], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "landlock_abi", lambda: 2)
    result = confined(
        """
own = os.environ["TMPDIR"] + "/file"
open(own, "w").write("own")
denied = [tried(lambda: os.truncate(own, 0)), tried(lambda: os.open(own, os.O_RDONLY | os.O_TRUNC))]
allowed = [tried(lambda: open(own, "w").close()), tried(lambda: os.open(own + "2", os.O_CREAT | os.O_RDWR, 0o600))]
setuid = tried(lambda: os.open(own + "3", os.O_CREAT | os.O_RDWR, 0o4700))
""",
        outputs=("denied", "allowed", "setuid"),
    )
    assert result.ok, (result.describe(), result.stderr)
    assert result.values == {"denied": [1, 1], "allowed": [0, 0], "setuid": 1}


@needs_landlock
def test_binds_are_at_their_own_places(confined: Callable[..., Result], tmp_path: Path) -> None:
    for name in ("shown", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
        (tmp_path / name / "file").write_text(name)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    result = confined(
        f"""
base = {str(tmp_path)!r}
found = [open(base + "/shown/file").read(), tried(lambda: open(base + "/shown/new", "w")),
         tried(lambda: open(base + "/given/new", "w").close())]
""",
        outputs=("found",),
        bind=[f"{tmp_path}/shown:/elsewhere", f"{tmp_path}/given:{tmp_path}/given:rw"],
    )
    assert result.ok, (result.describe(), result.stderr)
    assert result.values["found"] == ["shown", 13, 0]
    assert any("/elsewhere" in note for note in result.isolation.notes)


# ---- The network and other processes ------------------------------------------------------------------


def test_no_socket_leads_out(confined: Callable[..., Result], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = confined(
            f"""
import socket
denied = [tried(what) for what in (
    lambda: socket.socket().connect(("127.0.0.1", {server.getsockname()[1]})),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), lambda: socket.socket(socket.AF_UNIX),
    lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), lambda: socket.socketpair(type=socket.SOCK_DGRAM))]
one, other = socket.socketpair()
one.sendall(b"pair")
answer = other.recv(4)
""",
            outputs=("denied", "answer"),
        )
    assert result.ok, (result.describe(), result.stderr)
    assert result.values == {"denied": [1] * 5, "answer": b"pair"}


def test_the_hosts_network_is_there_if_asked_for(confined: Callable[..., Result]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = confined(
            f"import socket; socket.socket().connect(('127.0.0.1', {server.getsockname()[1]}))", net="host"
        )
    assert result.ok, (result.describe(), result.stderr)
    assert "network" not in result.isolation.limits


@needs_landlock
@needs_scopes
def test_other_processes_are_out_of_reach(confined: Callable[..., Result]) -> None:
    with subprocess.Popen(["sleep", "60"]) as mine:
        result = confined(
            f"""
import ctypes, signal, subprocess
library = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    def calls():
        if getattr(library, name)(*words) < 0:
            raise OSError(ctypes.get_errno(), name)
    return calls
denied = [tried(what) for what in (
    lambda: os.kill({mine.pid}, signal.SIGTERM), lambda: os.kill(os.getppid(), signal.SIGTERM),
    lambda: os.kill(-1, signal.SIGKILL), call("ptrace", 16, {mine.pid}, None, None),
    call("shmget", 0x1234, 4096, 0o1666), call("semget", 0x1234, 1, 0o1666), call("msgget", 0x1234, 0o1666),
    call("prlimit64", {mine.pid}, 7, None, ctypes.create_string_buffer(16)),
    lambda: os.setpriority(os.PRIO_PROCESS, {mine.pid}, 19), lambda: os.sched_setaffinity({mine.pid}, {{0}}))]
with subprocess.Popen(["sleep", "60"]) as own:
    own.terminate()
ended = own.returncode
""",
            outputs=("denied", "ended"),
        )
        assert mine.poll() is None
        mine.kill()
    assert result.ok, (result.describe(), result.stderr)
    assert result.values == {"denied": [1] * 10, "ended": -signal.SIGTERM}


# ---- Limits and lifetimes -------------------------------------------------------------------------------


def test_a_hog_is_stopped_without_a_group(
    confined: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsmagic import cgroups
    from nsmagic.cgroups import rlimits

    monkeypatch.setattr(cgroups, "mechanisms", lambda: [rlimits.Rlimits()])
    result = confined("held = []\nwhile True: held.append(bytearray(1 << 20))", mem="96M")
    assert result.outcome == "out-of-memory" or "MemoryError" in result.describe()
    assert "mem" in result.isolation.missing
    result = confined(
        """
count = 0
end, mine = os.pipe()
try:
    while count < 400:
        if os.fork() == 0:
            os.close(mine)
            os._exit(len(os.read(end, 1)))
        count += 1
except BlockingIOError:
    pass
""",
        outputs=("count",),
        pids=40,
    )
    assert result.ok, (result.describe(), result.stderr)
    assert result.values["count"] < 200
    assert "pids" in result.isolation.missing


def private_folders() -> set[Path]:
    return {path for path in Path(tempfile.gettempdir()).glob("nsmagic-*") if f"-{os.getpid()}-" in path.name}


def test_the_private_folder_goes_with_the_container(
    confined: Callable[..., Result], until: Callable[..., bool]
) -> None:
    result = confined(
        """
deep = os.environ["TMPDIR"]
for _ in range(300):
    deep += "/d"
    os.mkdir(deep)
shut = os.environ["TMPDIR"] + "/shut"
os.mkdir(shut, 0)
own = os.environ["TMPDIR"]
""",
        outputs=("own",),
    )
    assert result.ok, (result.describe(), result.stderr)
    assert until(lambda: not os.path.exists(result.values["own"]))
    assert until(lambda: not private_folders())


OWNER = """
import os, sys
from nsmagic.container import Container
from nsmagic.launcher import client
from nsmagic.plan import Reach
from nsmagic.spec import JobSpec

class Sink:
    def stream(self, name, data):
        print(client.start().pid, container.init_pid, container.plan.view.private, data.decode(), flush=True)
    def failure(self, *rest): ...

container = Container(best_effort=True, keep=False, reach=Reach({}, "a test says so"), workdir="/usr").start()
container.run_job(JobSpec("cell", '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(1, str(os.getpid()).encode())
    time.sleep(60)
time.sleep(60)
'''), sink=Sink())
"""


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], int, int, Path, int]]:
    """An owner with a confined cell that has made a daemon: it, its launcher, init, the folder, the daemon."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert len(words) == 4, "the owner died at its start"
        yield process, int(words[0]), int(words[1]), Path(words[2]), int(words[3])
        process.kill()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_when_the_owner_is_killed_all_is_gone_within_a_second(
    owner: tuple[subprocess.Popen[str], int, int, Path, int], until: Callable[..., bool]
) -> None:
    process, launcher, init, folder, daemon = owner
    assert not gone(daemon)
    process.kill()
    assert until(lambda: all(map(gone, (launcher, init, daemon))), 1)
    assert until(lambda: not folder.exists(), 1)


def test_a_killed_init_leaves_no_daemon(
    owner: tuple[subprocess.Popen[str], int, int, Path, int], until: Callable[..., bool]
) -> None:
    process, launcher, init, folder, daemon = owner
    os.kill(init, signal.SIGKILL)
    assert until(lambda: gone(daemon), 1)
    assert process.wait(10) == 0
    assert until(lambda: gone(launcher), 2)
    assert until(lambda: not folder.exists(), 1)


def test_what_killed_owners_left_is_swept(
    owner: tuple[subprocess.Popen[str], int, int, Path, int], until: Callable[..., bool]
) -> None:
    process, launcher, init, folder, daemon = owner
    os.kill(launcher, signal.SIGKILL)
    process.kill()
    process.wait()
    assert until(lambda: all(map(gone, (init, daemon))), 2)
    confinement.sweep()
    assert not folder.exists()


def test_time_is_up_here_too(confined: Callable[..., Result]) -> None:
    container = Container(best_effort=True, keep=False, reach=Reach({}, "a test says so"))
    result = container.start().run("import time; time.sleep(60)", timeout=0.2)
    assert result.outcome == "timeout"


def test_flags_follow_who_it_is() -> None:
    plan = Container(best_effort=True, reach=Reach({}, "why")).plan
    assert plan.view is not None
    assert bool(plan.view.confine & kinds.CONFINE_METADATA) == (os.geteuid() != 0)
    assert plan.view.confine & kinds.CONFINE_OTHERS
    assert plan.view.missing["namespaces"].endswith("why")
