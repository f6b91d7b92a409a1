"""Containers that are kept, and what joins them: whole or in part, and what is left when they end."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import (
    Container,
    SpecError,
    StoppedError,
    explain,
    names,
    namespaces,
    processes,
    standbys,
    timeline,
)
from nsmagic.launcher import client
from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsmagic import Result

pytestmark = [
    pytest.mark.container,
    pytest.mark.works("all namespaces", "fresh /proc"),
    pytest.mark.usefixtures("quiet"),
]

SECONDS = 30.0
LINKS = "{n: os.readlink('/proc/self/ns/' + n) for n in os.listdir('/proc/self/ns')}"
FILES = namespaces.FILES


@pytest.fixture
def web() -> Iterator[Container]:
    with Container(name="web") as container:
        yield container


class Background:
    """A job in a thread of its own; what it prints can be waited for."""

    def __init__(self, container: Container, code: str, **options: Any) -> None:
        from nsmagic import intake

        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.result: Result | None = None
        self.guest = container.guest().start() if container.held else container
        job = intake.job_from(code, (), options, variables=False)  # type: ignore[arg-type]

        def work() -> None:
            self.result = self.guest.run_job(job, sink=self)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def stream(self, name: str, data: bytes) -> None:
        self.lines.put(f"{name}: {data.decode()}")

    def failure(self, *rest: object) -> None:
        self.lines.put(f"failure: {rest}")

    def line(self) -> str:
        """What it printed next."""
        return self.lines.get(timeout=SECONDS).removeprefix("stdout: ").strip()

    def end(self) -> Result:
        """Wait for its end."""
        self._thread.join(SECONDS)
        assert self.result is not None
        return self.result

    def stop(self) -> Result:
        """End it."""
        self.guest.stop()
        return self.end()


def inside(expression: str, setup: str = "import os", **options: Any) -> Any:
    """The value of an expression, in a container."""
    result = nsmagic.run(f"{setup}\nanswer = {expression}", outputs=["answer"], **options)
    assert result.ok, (result.describe(), result.stderr)
    return result.values["answer"]


def inodes(container: Container) -> dict[str, int | None]:
    return namespaces.of([container])[0].inodes


def descriptors() -> set[str]:
    """What this process has open, but for what comes and goes."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
    return {each for each in found if "/proc/" not in each}


# ---- joined as it is -------------------------------------------------------------------------


@pytest.mark.hosts
def test_what_joins_is_in_all_of_its_namespaces(web: Container) -> None:
    links = inside(LINKS, join="web")
    for kind in NAMESPACES:
        number = int(links[FILES[kind]].partition("[")[2].rstrip("]"))
        assert number == os.fstat(web.offered[kind]).st_ino
        assert number != namespaces.inode("self", kind)


def test_files_and_names_are_seen_by_who_joins_and_by_nobody_else(web: Container) -> None:
    nsmagic.run(
        "open('made.txt', 'w').write('by the first')\nopen('/tmp/made.txt', 'w').close()", join="web"
    ).check()
    look = "(open('made.txt').read() if os.path.exists('made.txt') else '', os.path.exists('/tmp/made.txt'))"
    assert inside(look, join="web") == ("by the first", True)
    assert inside(look) == ("", False)
    name = "socket.gethostname()"
    assert inside(name, "import socket", join="web") == "web"
    assert inside(name, "import socket") != "web"
    assert not Path("made.txt").exists()
    changed = {(each.kind, Path(each.path).name) for each in web.written().changes()}
    assert changed == {("added", "made.txt")}


SERVER = """
import os, socket, threading
from multiprocessing import shared_memory
shared = shared_memory.SharedMemory('told', create=True, size=16)
shared.buf[:5] = b'hello'
def serve(listener):
    while True:
        with listener.accept()[0] as end:
            end.sendall(b'I am here')
tcp = socket.create_server(('127.0.0.1', 8080))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(b'\\0served')
abstract.listen()
threading.Thread(target=serve, args=(tcp,), daemon=True).start()
print(os.getpid(), flush=True)
serve(abstract)
"""
LOOK = """
import os, socket, sys
from multiprocessing import resource_tracker, shared_memory
def tried(call):
    try:
        return call()
    except OSError as error:
        return type(error).__name__
def abstract():
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(b'\\0served')
        return end.recv(100)
def tcp():
    with socket.create_connection(('127.0.0.1', 8080), 10) as end:
        return end.recv(100)
def memory():
    shared = shared_memory.SharedMemory('told')
    resource_tracker.unregister(shared._name, 'shared_memory')
    return bytes(shared.buf[:5])
def server():
    os.kill(PID, 0)
    return b'nsmagic' not in open(f'/proc/{PID}/stat', 'rb').read()
answer = [tried(each) for each in (tcp, abstract, memory, server)]
"""


def look_for(pid: str, **options: Any) -> list[object]:
    result = nsmagic.run(LOOK.replace("PID", pid), outputs=["answer"], **options)
    assert result.ok, (result.describe(), result.stderr)
    return list(result.values["answer"])


@pytest.mark.hosts
def test_a_server_in_the_background_serves_who_joins_and_nobody_else(web: Container) -> None:
    server = Background(web, SERVER)
    pid = server.line()
    assert look_for(pid, join="web") == [b"I am here", b"I am here", b"hello", True]
    assert look_for(pid, join="web:net")[:3] == [b"I am here", b"I am here", "FileNotFoundError"]
    assert look_for(pid, join="web:net,mount,pid") == [b"I am here", b"I am here", b"hello", True]
    assert look_for(pid, join="web:pid")[3] is True
    alone = look_for("4444")
    assert alone[:3] == ["ConnectionRefusedError", "ConnectionRefusedError", "FileNotFoundError"]
    assert alone[3] == "ProcessLookupError"
    assert server.stop().outcome == "stopped"
    # It is gone before anybody is told so.
    assert look_for(pid, join="web")[:2] == ["ConnectionRefusedError", "ConnectionRefusedError"]


def test_system_v_memory_is_shared_by_the_ipc_namespace(web: Container) -> None:
    setup = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)"
    key, create = 4711, 0o1666
    nsmagic.run(f"{setup}\nassert libc.shmget({key}, 4096, {create}) >= 0", join="web").check()
    look = f"libc.shmget({key}, 4096, 0o666) >= 0"
    assert inside(look, setup, join="web")
    assert inside(look, setup, join="web:ipc")
    assert not inside(look, setup, join="web:net")
    assert not inside(look, setup)


@pytest.mark.hosts
def test_what_joins_is_confined_as_the_first_was(web: Container) -> None:
    status = inside("open('/proc/self/status').read()", join="web")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert inside("sorted(map(int, os.listdir('/proc/self/fd')))", join="web")[:4] == [0, 1, 2, 3]
    assert len(inside("os.listdir('/proc/self/fd')", join="web")) == 5  # and the one that lists them
    assert inside("os.getsid(0) == os.getpid()", join="web")
    assert inside("resource.getrlimit(resource.RLIMIT_CORE)", "import resource", join="web") == (0, 0)
    error = "OSError"
    for call in ("unshare(0x10000000)", "setns(3, 0)"):
        code = f"import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nassert l.{call} == 0, {error}(ctypes.get_errno())"
        assert not nsmagic.run(code, join="web").ok


@pytest.mark.hosts
def test_each_job_has_its_own_end(web: Container) -> None:
    assert nsmagic.run("import sys; sys.exit(7)", join="web").exit_status == 7
    assert nsmagic.run(["sh", "-c", "kill -TERM $$"], join="web").signal == signal.SIGTERM
    assert nsmagic.run(["no-such-program"], join="web").exit_status == 127
    assert nsmagic.run("while True: pass", join="web", timeout=0.3).outcome == "timeout"
    assert nsmagic.run("while True: print('x' * 99)", join="web", output_limit=1000).outcome == "output-limit"
    failed = nsmagic.run("1 / 0", join="web")
    assert failed.failure is not None
    assert failed.failure.ename == "ZeroDivisionError"
    assert nsmagic.run("x = y + 1", join="web", variables={"y": 1}, outputs=["x"]).values == {"x": 2}
    assert web.run(["cat"], input="to a program").stdout == "to a program"
    assert not web.ending()


def test_what_a_job_leaves_behind_ends_with_it(web: Container) -> None:
    leave = "import subprocess\n"
    leave += (
        "for _ in range(3): subprocess.Popen(['sh', '-c', 'sleep 1000 & sleep 1000'], start_new_session=True)"
    )
    for ending in ("", "\nwhile True: pass", "\nimport os; os.kill(os.getpid(), 9)"):
        nsmagic.run(leave + ending, join="web", timeout=2)
        assert inside("sum(name.isdecimal() for name in os.listdir('/proc'))", join="web") == 3
    assert not web.ending()


def test_many_at_once(web: Container) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        code = f"open('n{number}', 'w').close(); print({number})"
        found[number] = nsmagic.run(code, join="web").check().stdout.strip()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == {number: str(number) for number in range(6)}
    assert inside("sorted(name for name in os.listdir() if name[0] == 'n')", join="web") == [
        f"n{number}" for number in range(6)
    ]


def test_an_interrupted_job_leaves_the_container(web: Container) -> None:
    class Interrupted:
        def stream(self, name: str, data: bytes) -> None:
            raise KeyboardInterrupt

        def failure(self, *rest: object) -> None: ...

    from nsmagic import intake

    job = intake.job_from("print(1, flush=True)\nimport time; time.sleep(60)", (), {}, variables=False)
    with pytest.raises(KeyboardInterrupt):
        web.run_job(job, sink=Interrupted())  # type: ignore[arg-type]
    assert inside("sum(name.isdecimal() for name in os.listdir('/proc'))", join="web") == 3


def test_the_first_run_may_be_the_one_that_keeps_it() -> None:
    try:
        first = nsmagic.run("open('kept', 'w').close()", name="web").check()
        assert any("pivot_root" in step.call for step in first.journal)
        assert [each.path.rpartition("/")[2] for each in first.changes] == ["kept"]
        second = nsmagic.run("import os; print(os.listdir())", join="web").check()
        assert "kept" in second.stdout
        assert not any("pivot_root" in step.call for step in second.journal)
    finally:
        Container.find("web").stop()


def test_a_cell_that_fails_does_not_take_the_container_along() -> None:
    try:
        assert not nsmagic.run("1 / 0", name="web").ok
        assert nsmagic.run("print(1)", join="web").ok
    finally:
        Container.find("web").stop()


# ---- joined in part --------------------------------------------------------------------------


PARTS = [*NAMESPACES, "net,uts", "user,net", "pid,ipc,mount", "all"]


@pytest.mark.hosts
@pytest.mark.parametrize("kinds", PARTS)
def test_just_these_namespaces_are_shared(web: Container, kinds: str, until: Callable[..., bool]) -> None:
    shared = set(NAMESPACES) if kinds == "all" else set(kinds.split(","))
    other = Container(join=f"web:{kinds}", keep=False).start()
    try:
        other.wait_built()
        assert until(lambda: other.payload_pid is not None)
        theirs, ours, host = inodes(other), inodes(web), namespaces.column("host").inodes
        assert {kind for kind in NAMESPACES if theirs[kind] == ours[kind]} == shared
        assert all(theirs[kind] != host[kind] for kind in NAMESPACES)
        assert set(other.isolation.namespaces) == set(NAMESPACES) - shared
        assert other.isolation.joined == f"{', '.join(kind for kind in NAMESPACES if kind in shared)} of web"
    finally:
        other.stop()
    assert not web.ending()


@pytest.mark.parametrize("kinds", [*(kind for kind in NAMESPACES if kind != "mount"), "net,uts", "all"])
def test_a_new_container_runs_as_any_other(web: Container, kinds: str) -> None:
    result = nsmagic.run(
        "import os, subprocess\nprint(os.getcwd() != '/', subprocess.call(['true']))", join=f"web:{kinds}"
    ).check()
    assert result.stdout == "True 0\n"
    with Container(join=f"web:{kinds}") as box:
        box.run("open('/dev/shm/x', 'w').close()").check()
        assert box.run(["ls", "/dev/shm"]).stdout == "x\n"


def test_a_kept_one_may_share_and_be_shared_in_turn(web: Container) -> None:
    with Container(name="second", join="web:net"), Container(name="third", join="second:net,uts") as third:
        web_net = os.fstat(web.offered["net"]).st_ino
        links = inside(LINKS, join="third")
        assert links["net"] == f"net:[{web_net}]"
        assert inside("socket.gethostname()", "import socket", join="third") == "second"
        assert inside(LINKS, join="third:net")["net"] == links["net"]
        web.stop()
        Container.find("second").stop()
        # What is shared lives as long as one who shares it.
        assert inside(LINKS, join="third") == links
        assert not third.ending()


def test_the_name_of_the_host_is_known_to_the_files(web: Container) -> None:
    look = "(open('/etc/hostname').read(), 'web' in open('/etc/hosts').read())"
    assert inside(look, join="web:uts") == ("web\n", True)
    assert inside(look, join="web:net")[1] is False


@pytest.mark.hosts
@pytest.mark.limits
def test_a_new_container_has_its_own_limits_and_a_guest_those_of_its_host() -> None:
    hungry = "x = bytearray(60 << 20); x[::4096] = b'x' * len(x[::4096])"
    with Container(name="web", mem="128M", pids=20) as web:
        small = nsmagic.run(hungry, join="web:net,ipc,pid", mem="32M", pids=5)
        assert small.outcome == "out-of-memory"
        assert "32 MiB" in small.describe()
        assert nsmagic.run(hungry, join="web:net", mem="128M").ok
        assert nsmagic.run(hungry, join="web").ok
        more = nsmagic.run(hungry.replace("60", "160"), join="web")
        assert more.outcome == "out-of-memory"
        assert "128 MiB" in more.describe()
        assert nsmagic.run("print(1)", join="web").ok
        assert not web.ending()
        limits = nsmagic.run("pass", join="web").isolation.limits
        assert limits == web.isolation.limits


@pytest.mark.limits
def test_a_job_is_not_blamed_for_the_memory_of_another() -> None:
    with Container(name="web", mem="96M") as web:
        waiting = Background(
            web,
            "import os, time\nprint('on', flush=True)\nwhile not os.path.exists('/tmp/end'): time.sleep(.01)\n1 / 0",
        )
        assert waiting.line() == "on"
        hungry = nsmagic.run("x = bytearray(160 << 20); x[::4096] = b'x' * len(x[::4096])", join="web")
        assert hungry.outcome == "out-of-memory"
        nsmagic.run("open('/tmp/end', 'w').close()", join="web").check()
        assert waiting.end().outcome == "exited"


# ---- what cannot be joined ---------------------------------------------------------------------


def test_a_name_that_nobody_has(web: Container) -> None:
    for join in ("wep", "wep:net"):
        with pytest.raises(
            SpecError, match=r"no container has the name wep; there are web; did you mean web\?"
        ):
            nsmagic.run("pass", join=join)
    with pytest.raises(SpecError, match="no container has the name other"):
        Container.find("other")
    web.stop()
    with pytest.raises(SpecError, match="none is kept; make one with --name"):
        nsmagic.run("pass", join="other")


def test_a_name_that_somebody_has(web: Container) -> None:
    for start in (lambda: Container(name="web").start(), lambda: nsmagic.run("pass", name="web")):
        with pytest.raises(SpecError, match=r"web is the name of a container that is there; .*stop web"):
            start()
    assert names.live() == {"web": web}
    web.stop()
    with Container(name="web"):
        assert nsmagic.run("pass", join="web").ok


def test_one_that_was_stopped_says_so(web: Container) -> None:
    web.stop()
    for join in ("web", "web:net"):
        with pytest.raises(StoppedError, match="web is no longer there: it was stopped"):
            nsmagic.run("pass", join=join)
    with pytest.raises(StoppedError, match="it was stopped"):
        web.run("pass")


def test_one_that_was_killed_says_so(web: Container, until: Callable[..., bool]) -> None:
    server = Background(web, "print('on', flush=True)\nimport time; time.sleep(60)")
    assert server.line() == "on"
    assert web.init_pid is not None
    os.kill(web.init_pid, signal.SIGKILL)
    result = server.end()
    assert result.outcome == "stopped"
    assert "web ended, and all in it: its first process, PID 1, was killed" in result.describe()
    with pytest.raises(StoppedError, match="PID 1, was killed"):
        nsmagic.run("pass", join="web")
    assert not names.live()


@pytest.mark.root
@pytest.mark.limits
def test_one_that_ran_out_of_memory_says_so() -> None:
    with Container(name="web", mem="64M") as web:
        job = Background(
            web,
            "import os, time\nprint('on', flush=True)\nwhile not os.path.exists('/tmp/go'): time.sleep(.01)\n"
            # Many who take a little each: a single one would have the higher score.
            "for _ in range(8):\n if os.fork() == 0:\n  x = bytearray(16 << 20); x[::4096] = b'x' * len(x[::4096])\n"
            "  time.sleep(60)\ntime.sleep(60)",
        )
        assert job.line() == "on"
        # Else the kernel would choose the job, and the container would go on.
        for each in processes.tree(web.root_pids()):
            score = "1000" if each.pid == web.init_pid else "0"
            Path(f"/proc/{each.pid}/oom_score_adj").write_text(score)
        nsmagic.run("open('/tmp/go', 'w').close()", join="web")
        result = job.end()
        assert result.outcome in {"out-of-memory", "stopped"}
        assert "memory" in result.describe()
        with pytest.raises(StoppedError, match=r"ran out of memory: it needed more than its limit of 64 MiB"):
            nsmagic.run("pass", join="web")


def test_a_namespace_that_it_has_not_got() -> None:
    with Container(name="web", ns="all-net-uts", net="host"):
        with pytest.raises(SpecError, match="web has no net namespace of its own to share; it has user, ipc"):
            nsmagic.run("pass", join="web:net")
        with pytest.raises(SpecError, match="web has no uts namespace"):
            nsmagic.run("pass", join="web:ipc,uts")
        assert inside(LINKS, join="web")["net"] == os.readlink("/proc/self/ns/net")


def test_a_pid_namespace_without_its_own_proc_is_not_joined() -> None:
    with Container(name="web", ns="user,pid", net="host", workdir="/usr"):
        with pytest.raises(SpecError, match="web has no mount namespace, and so no /proc"):
            nsmagic.run("pass", join="web:pid")
        with pytest.raises(nsmagic.StartError, match="readlink") as error:
            nsmagic.run(
                "pass",
                join="web",
            )
        assert "/proc" in error.value.remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"join": "web", "mem": "1G"}, "--mem: was settled when web was made"),
        ({"join": "web", "bind": "/usr"}, "--bind: was settled"),
        ({"join": "web", "name": "more"}, "--name: web has its name already"),
        ({"join": "web:uts", "hostname": "x"}, "--hostname: is settled already"),
        ({"join": "web:user", "user": "root"}, "--user: is settled already"),
        ({"join": "web:mount", "disk": "1M"}, "--disk: is settled already"),
        ({"join": "web:mount", "workdir": "/"}, "--workdir: is that of the container"),
        ({"join": "web:mount", "bind": "/usr:/x"}, "--bind: needs a mount namespace"),
        ({"join": "web:net", "net": "host"}, "--net: is settled already"),
        (
            {"join": "web:net", "ns": "uts,net"},
            "--join: shares the net namespace, but --ns asks for a new one",
        ),
        ({"join": "web:"}, "join: '' is not a namespace"),
        ({"join": "web:net,what"}, "join: 'what' is not a namespace"),
        ({"join": "4:net"}, "join: '4' is not a container's name"),
        ({"name": "7up"}, "name: '7up' is not a container's name"),
        ({"name": "x" * 33}, "is not a container's name"),
        ({"name": "a b"}, "is not a container's name"),
    ],
)
def test_what_makes_no_sense_starts_nothing(options: dict[str, Any], words: str) -> None:
    before = set(names.live())
    with pytest.raises(SpecError) as error:
        nsmagic.run("pass", **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert set(names.live()) == before


def test_a_container_object_is_not_a_job() -> None:
    with pytest.raises(SpecError, match=r"nsmagic.run\(…, join='web'\)"):
        Container(join="web")


def test_a_container_that_cannot_be_built_has_no_name() -> None:
    with pytest.raises(nsmagic.StartError):
        nsmagic.run("pass", name="web", bind="/usr/share:/usr/no-such/x")
    assert not names.live()
    with pytest.raises(StoppedError, match="could not be made"):
        nsmagic.run("pass", join="web")


def test_a_fork_has_names_of_its_own(web: Container) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"none" if not names.live() else b"some")
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 10) == b"none"
    os.waitpid(child, 0)
    os.close(reader)
    assert not web.ending()


# ---- hostile jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_that_does_away_with_its_init_ends_the_container(web: Container, number: int) -> None:
    code = f"""
import os, time
init = os.getppid()
if os.fork() == 0:
    os.setsid()
    os.kill(init, {number})
time.sleep(1000)
"""
    result = nsmagic.run(code, join="web", timeout=2)
    assert not result.ok
    with pytest.raises(StoppedError, match="a process in it killed the one that ends what a job has left"):
        nsmagic.run("pass", join="web")


def test_in_a_joined_pid_namespace_such_a_container_ends_alone_where_it_has_a_group(web: Container) -> None:
    code = "import os, time\nif os.fork():\n os.kill(os.getppid(), 9)\nos.setsid()\ntime.sleep(1000)"
    other = Container(join="web:pid", keep=False).start()
    grouped = bool(other.group and other.group.directories)
    assert not other.run(code).ok
    if grouped:
        assert inside("sum(name.isdecimal() for name in os.listdir('/proc'))", join="web") == 3
    else:
        assert web.ending()


def test_who_is_about_to_join_cannot_be_looked_into(web: Container) -> None:
    """Between its capabilities' end and the filter's beginning nobody may write to its memory."""
    watch = """
import os, time
def unfiltered(pid):
    return 'Seccomp:\\t0' in open(f'/proc/{pid}/status').read()
print('on', flush=True)
seen = reached = 0
while not os.path.exists('/tmp/end'):
    for name in os.listdir('/proc'):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            if unfiltered(name):
                seen += 1
                with open(f'/proc/{name}/mem', 'r+b'):
                    reached += unfiltered(name)
        except OSError:
            pass
print(seen, reached, flush=True)
"""
    watcher = Background(web, watch)
    assert watcher.line() == "on"
    for _ in range(15):
        nsmagic.run("pass", join="web").check()
    nsmagic.run("open('/tmp/end', 'w').close()", join="web").check()
    seen, reached = map(int, watcher.line().split())
    watcher.end()
    assert reached == 0
    assert seen > 0, "nobody was seen before the filter: the test shows nothing"


def test_names_of_processes_are_shown_harmless(web: Container) -> None:
    from nsmagic import views

    code = """
import os, sys, time
if os.fork() == 0:
    os.execv('/bin/sh', ['<script>alert(1)</script>\\x1b[2J\\n', '-c', 'while :; do read x; done'])
print('on', flush=True)
time.sleep(1000)
"""
    job = Background(web, code)
    assert job.line() == "on"
    (child,) = [each for each in processes.tree(web.root_pids()) if each.depth == 2]
    shown = views.containers_bundle([web])
    assert "<script>" not in shown["text/html"]
    for text in shown.values():
        assert "\x1b" not in text
    assert child.inside == 4
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert f"NSpid:\t{child.pid}\t{child.inside}\n" in status or str(child.inside) in status
    job.stop()


# ---- what is left -----------------------------------------------------------------------------------


@pytest.mark.hosts
def test_nothing_is_left_after_its_end(
    until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    launcher = client.start()
    launcher.wait_ready()
    standbys.current().drop()
    before = descriptors()

    def ours() -> set[int]:
        return {pid for pid in children_of(launcher.pid) if b"nsmagic-init" not in name_of(pid)}

    with Container(name="web") as web:
        server = Background(web, "print('on', flush=True)\nimport time; time.sleep(60)")
        assert server.line() == "on"
        other = Background(
            Container(join="web:net,pid", keep=False).start(),
            "print('on', flush=True)\nimport time; time.sleep(60)",
        )
        assert other.line() == "on"
        nsmagic.run("pass", join="web:user,mount").check()
        roots = web.root_pids()
        directories = web.group.directories[:1] if web.group else ()
        web.stop()
        assert server.end().outcome == "stopped"
        assert other.end().outcome in {"signaled", "stopped"}
        for result in (server.end(), other.end()):
            result.close()  # results keep the files
    assert until(lambda: not any(map(lives, roots)))
    assert until(lambda: not any(map(os.path.exists, directories)))
    assert until(lambda: descriptors() <= before), descriptors() - before
    assert not ours()


def name_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes()
    return b"nsmagic-init"


OWNER = """
import sys, threading, time
import nsmagic
web = nsmagic.Container(name="web", ns={ns!r}, net={net!r}, workdir="/usr").start()
other = nsmagic.Container(name="other", join={join!r}, workdir="/usr").start()
class Sink:
    def stream(self, name, data):
        pids = [client.start().pid, *web.root_pids(), *other.root_pids(), *web.pids(), *other.pids()]
        groups = [*(web.group.directories or [])[:1], *(other.group.directories or [])[:1]]
        print(' '.join(map(str, pids)), *groups, flush=True)
    def failure(self, *rest): print(rest, flush=True)
from nsmagic.launcher import client
from nsmagic import intake
code = "import os, time\\nif os.fork() == 0: os.setsid(); os.fork()\\nelse: os.write(1, b'x')\\ntime.sleep(100)"
job = intake.job_from(code, (), {{}}, variables=False)
threading.Thread(target=other.run_job, args=(job,), daemon=True).start()
time.sleep(0.5)
web.run_job(job, sink=Sink())
"""


@pytest.mark.hosts
@pytest.mark.parametrize("ns", ["all", "user,uts,ipc"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_owner_dies_all_is_gone(ns: str, number: int, until: Callable[..., bool]) -> None:
    import select
    import subprocess

    net, join = ("none", "web:net,pid") if ns == "all" else ("host", "web:ipc")
    code = OWNER.format(ns=ns, net=net, join=join)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], SECONDS)[0], "the owner never began"
        words = process.stdout.readline().split()
        pids = {int(word) for word in words if word.isdecimal()}
        groups = [word for word in words if word.startswith("/")]
        assert len(pids) >= 5, words
        pids |= below(pids)
        process.send_signal(number)
        process.wait(SECONDS)
        assert until(lambda: not any(map(lives, pids)), 10)
        assert until(lambda: not any(map(os.path.exists, groups)), 10), groups
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended; whose child it is, and who reaps it, is all one."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def below(pids: set[int]) -> set[int]:
    """These processes and their descendants."""
    found = set()
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        with contextlib.suppress(OSError):
            waiting += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def test_it_outlives_the_launcher_that_made_it(web: Container, until: Callable[..., bool]) -> None:
    nsmagic.run("open('/dev/shm/kept', 'w').close()", join="web").check()
    first = client.start()
    os.kill(first.pid, signal.SIGKILL)
    assert until(lambda: not first.alive())
    assert nsmagic.run(["ls", "/dev/shm"], join="web").check().stdout == "kept\n"
    assert client.start() is not first
    roots = web.root_pids()
    web.stop()
    assert until(lambda: not any(map(lives, roots)))


# ---- how it is explained -----------------------------------------------------------------------------


def test_each_step_of_joining_is_explained(web: Container) -> None:
    for join in ("web", "web:net,uts,pid", "web:user,mount"):
        journal = nsmagic.run("pass", join=join).check().journal
        without = {f"{step.step} {step.call}" for step in journal if not all(explain.why(step))}
        assert not without
        rows = explain.rows(journal)
        entered = [row.call for row in rows if row.call.startswith("setns(")]
        kinds = NAMESPACES if join == "web" else {"user", *join.partition(":")[2].split(",")}
        assert len(entered) == len(kinds)
        assert "CLONE_NEWUSER" in entered[0]
        assert {row.who for row in rows} == set(timeline.LANES) - {"network"}
        assert {row.who for row in rows if row.call.startswith("setns(")} == {"joiner"}
    first = nsmagic.run("pass", name="first").check().journal
    Container.find("first").stop()
    assert not [step for step in first if not all(explain.why(step))]
