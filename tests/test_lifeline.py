"""Who dies when: the owner, the launcher, both; forks and threads of the owner; and that nothing is left."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import cgroups, standbys
from nsmagic.container import live
from nsmagic.launcher import client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("quiet")

OWNER = """
import os, sys, threading
import nsmagic
from nsmagic.container import Container
from nsmagic.launcher import client
from nsmagic.spec import JobSpec

class Sink:
    def stream(self, name, data):
        pids = ' '.join(map(str, [client.start().pid, container.init_pid]))
        directories = ' '.join(container.group.directories)
        print(pids, directories, flush=True)
    def failure(self, *rest): ...

container = Container(**{options!r}).start()
{before}
container.run_job(JobSpec('cell', '''{cell}'''), sink=Sink())
"""
LONG = "import os, time\nif os.fork():\n os.write(1, b'x')\ntime.sleep(60)"


@contextlib.contextmanager
def owner(
    cell: str = LONG, before: str = "", **options: Any
) -> Iterator[tuple[subprocess.Popen[str], int, list[int], list[str]]]:
    """A process that owns a container with a long cell: it, its launcher, the container's processes and groups."""
    code = OWNER.format(options=options, cell=cell, before=before)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 10)[0], "the owner never began"
        words = process.stdout.readline().split()
        assert words, "the owner died at its start"
        launcher, init = int(words[0]), int(words[1])
        yield process, launcher, descendants(launcher), words[2:]
        assert init
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    found: list[int] = []
    wait = [pid]
    while wait:
        try:
            new = [
                int(child) for child in Path(f"/proc/{wait[0]}/task/{wait[0]}/children").read_text().split()
            ]
        except OSError:
            new = []
        found += new
        wait = wait[1:] + new
    return found


def all_end(pids: list[int], seconds: float) -> bool:
    """Whether these processes, of which none is our child, end in time; without a race for their numbers."""
    handles = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    deadline = time.monotonic() + seconds
    try:
        waiting = list(handles)
        while waiting and time.monotonic() < deadline:
            ended = select.select(waiting, [], [], max(0, deadline - time.monotonic()))[0]
            waiting = [handle for handle in waiting if handle not in ended]
        return not waiting
    finally:
        for handle in handles:
            os.close(handle)


def test_when_the_owner_is_killed_all_is_gone_within_a_second(until: Callable[..., bool]) -> None:
    with owner() as (process, launcher, pids, directories):
        assert len(pids) >= 3  # init, the runner, the cell's own child
        process.kill()
        process.wait()
        assert all_end([launcher, *pids], 1)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_a_launcher_may_have_been_ready_for_long_when_somebody_asks() -> None:
    launcher = client.Launcher(warm="programs")
    try:
        assert select.select([launcher._socket], [], [], 30)[0]
        launcher.started -= 1000
        assert launcher.wait_ready().pid == launcher.pid
    finally:
        launcher.stop()


def test_when_the_owner_ends_by_itself_all_is_gone(until: Callable[..., bool]) -> None:
    before = "began = Sink.stream\nSink.stream = lambda *words: (began(*words), threading.Timer(0.3, container.stop).start())"
    with owner(before=before) as (process, launcher, pids, directories):
        assert process.wait(10) == 0
        assert all_end([launcher, *pids], 1)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_a_terminated_owner_leaves_nothing(until: Callable[..., bool]) -> None:
    with owner() as (process, launcher, pids, directories):
        process.terminate()
        process.wait()
        assert all_end([launcher, *pids], 1)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_without_a_pid_namespace_nothing_is_left_either(until: Callable[..., bool]) -> None:
    cell = "import os, time\nfor _ in range(3):\n if os.fork() == 0: os.setsid(); os.fork()\nos.write(1, b'x')\ntime.sleep(60)"
    with owner(cell, ns="all-pid") as (process, launcher, pids, directories):
        assert len(pids) >= 3
        process.kill()
        process.wait()
        assert all_end([launcher, *pids], 1)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_when_owner_and_launcher_are_killed_the_next_start_sweeps(until: Callable[..., bool]) -> None:
    with owner() as (process, launcher, pids, directories):
        os.kill(launcher, signal.SIGKILL)
        process.kill()
        process.wait()
        # Init holds the other end of the owner's lifeline, so processes end in any case.
        assert all_end(pids, 1)
        code = "import nsmagic; assert nsmagic.run('print(1)').ok"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_a_stopped_owner_loses_nothing() -> None:
    with owner() as (process, launcher, pids, _directories):
        process.send_signal(signal.SIGSTOP)
        assert not all_end([launcher, *pids], 0.3)
        process.send_signal(signal.SIGCONT)


# ---- the launcher dies ------------------------------------------------------------


class KillLauncher:
    """A sink that kills the launcher when the cell has begun."""

    def __init__(self) -> None:
        self.pid = client.start().pid

    def stream(self, name: str, data: bytes) -> None:
        with contextlib.suppress(ProcessLookupError):  # there may be more output
            os.kill(self.pid, signal.SIGKILL)

    def failure(self, *rest: object) -> None: ...


def test_when_the_launcher_dies_the_running_cell_ends_or_goes_on_and_the_next_says_so(
    keep: Any, until: Callable[..., bool]
) -> None:
    from nsmagic.spec import JobSpec

    container = keep()
    dead = client.start()
    result = container.run_job(JobSpec("cell", "print(1, flush=True)\nprint(2)"), sink=KillLauncher())
    assert result.outcome in {"exited", "signaled", "stopped"}
    container.stop()
    assert until(lambda: not dead.alive())
    following = nsmagic.run("print('next')").check()
    assert following.stdout == "next\n"
    assert any("launcher was killed by signal 9" in note for note in following.isolation.notes)
    assert not any("launcher" in note for note in nsmagic.run("pass").check().isolation.notes)
    directories = container.group.directories if container.group else ()
    assert until(lambda: not os.path.exists(directories[0]) if directories else True)


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "dying"])
def test_when_the_launcher_dies_between_runs_the_next_run_works(dead: bool) -> None:  # noqa: FBT001
    nsmagic.run("pass").check()
    launcher = client.start()
    os.kill(launcher.pid, signal.SIGKILL)
    assert not dead or all_end([launcher.pid], 5)
    assert nsmagic.run("print(1)").check().stdout == "1\n"
    assert client.start() is not launcher


def test_a_launcher_that_has_closed_its_channel_counts_as_dead() -> None:
    """One that is killed does so while it cannot be waited for yet."""
    nsmagic.run("pass").check()
    dying = client.start()
    os.kill(dying.pid, signal.SIGSTOP)  # it shall not end by itself when it sees this
    dying._socket.shutdown(socket.SHUT_RDWR)
    assert not dying.alive()
    threading.Timer(0.1, os.kill, (dying.pid, signal.SIGKILL)).start()
    result = nsmagic.run("print(1)").check()
    assert result.stdout == "1\n"
    assert any("launcher was killed by signal 9" in note for note in result.isolation.notes)


def test_a_launcher_that_dies_as_it_is_asked_is_replaced(
    monkeypatch: pytest.MonkeyPatch, until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    settle(until, children_of)  # a clone of it that is just being made would hold its channel open
    started: Callable[[], client.Launcher] = client.start
    dead: list[client.Launcher] = []

    def start_and_kill() -> client.Launcher:
        launcher = started()
        if not dead:
            dead.append(launcher)
            os.kill(launcher.pid, signal.SIGKILL)
            assert all_end([launcher.pid], 5)
        return launcher

    monkeypatch.setattr(client, "start", start_and_kill)
    with nsmagic.Container() as container:
        assert container.run("print(1)").check().stdout == "1\n"
    assert dead
    assert started() is not dead[0]


@pytest.mark.limits
def test_what_a_launcher_left_half_way_is_removed(keep: Any, until: Callable[..., bool]) -> None:
    container = keep()
    container.run("pass").check()
    launcher, group = client.start(), container.group
    os.kill(launcher.pid, signal.SIGSTOP)
    container.stop()
    assert until(lambda: not group.pids())
    for leaf in group.leaves[:-1] or group.leaves:
        os.rmdir(leaf)
    os.kill(launcher.pid, signal.SIGKILL)
    assert all_end([launcher.pid], 5)
    nsmagic.run("pass").check()
    assert not [leaf for leaf in group.leaves if os.path.exists(leaf)]


def test_a_forgotten_container_of_a_dead_launcher_is_removed(until: Callable[..., bool]) -> None:
    container = nsmagic.Container().start()
    container.run("pass").check()
    assert container.group is not None
    directories = [name for name in container.group.directories if os.path.basename(name).startswith("c")]
    launcher = client.start()
    os.kill(launcher.pid, signal.SIGKILL)
    assert all_end([launcher.pid], 5)
    del container
    gc.collect()

    def gone() -> bool:
        nsmagic.run("pass").check()
        return not any(map(os.path.exists, directories))

    assert until(gone)


def test_a_launcher_that_died_leaves_no_standby_of_its_own(
    until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    before = settle(until, children_of)
    nsmagic.run("pass").check()
    assert until(lambda: any(standbys.current()._waiting.values()))
    (standby,) = [each for waiting in standbys.current()._waiting.values() for each in waiting]
    assert until(lambda: standby.init_pid is not None)
    init = standby.init_pid
    assert init is not None
    launcher = client.start()
    os.kill(launcher.pid, signal.SIGKILL)
    assert all_end([launcher.pid], 5)
    nsmagic.run("print(1)").check()
    assert all_end([init], 2), "the dead launcher's standby lives on"
    assert settle(until, children_of) == before


def test_a_stopped_launcher_does_not_lose_a_timeout(keep: Any) -> None:
    from nsmagic.spec import JobSpec

    container = keep()
    launcher = client.start()

    class Stop:
        def stream(self, name: str, data: bytes) -> None:
            os.kill(launcher.pid, signal.SIGSTOP)

    try:
        began = time.monotonic()
        job = JobSpec("cell", "print(1, flush=True)\nwhile True: pass", timeout=0.3)
        assert container.run_job(job, sink=Stop()).outcome == "timeout"
        assert time.monotonic() - began < 3
    finally:
        os.kill(launcher.pid, signal.SIGCONT)


# ---- interrupts ------------------------------------------------------------------------


def test_an_interrupt_stops_the_container_and_returns() -> None:
    code = """
import os, signal, sys
import nsmagic
from nsmagic.container import Container
from nsmagic.spec import JobSpec
class Sink:
    def stream(self, name, data): os.kill(os.getpid(), signal.SIGINT)
container = Container().start()
try:
    container.run_job(JobSpec('cell', 'print(1, flush=True)\\nimport time; time.sleep(60)'), sink=Sink())
except KeyboardInterrupt:
    print(container.init_pid)
try:
    container.run('pass')
except nsmagic.StoppedError:
    print('stopped')
print(nsmagic.run('print(7)').stdout)
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    pid, *rest = done.stdout.split()
    assert rest == ["stopped", "7"]
    assert time.monotonic() - began < 10
    assert not Path(f"/proc/{pid}").exists()


def test_an_interrupt_while_waiting_for_poll_stops_the_container() -> None:
    code = """
import signal, threading, os, _thread
import nsmagic
nsmagic.run('pass')
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
try:
    nsmagic.run('import time; time.sleep(60)')
except KeyboardInterrupt:
    from nsmagic.container import live
    print('interrupted', len(live))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "interrupted 0\n"


# ---- forks and threads of the owner --------------------------------------------------------


def test_a_fork_of_the_owner_does_not_hold_the_lifeline(until: Callable[..., bool]) -> None:
    before = "if os.fork() == 0: import time; time.sleep(5); os._exit(0)"
    with owner(before=before) as (process, launcher, pids, directories):
        process.kill()
        process.wait()
        assert all_end([launcher, *pids], 1)
        assert until(lambda: not any(map(os.path.exists, directories)), 1), directories


def test_a_program_started_by_the_owner_does_not_hold_the_lifeline() -> None:
    before = "import subprocess; subprocess.Popen(['sleep', '5'], close_fds=False)"
    with owner(before=before) as (process, launcher, pids, _directories):
        process.kill()
        process.wait()
        assert all_end([launcher, *pids], 1)


def _run_in_child(number: int) -> str:
    return nsmagic.run(f"print({number})").check().stdout


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forks_of_the_owner_run_their_own() -> None:
    nsmagic.run("pass").check()
    mine = client.start().pid
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_run_in_child, range(6)) == [f"{number}\n" for number in range(6)]
        pool.close()
        pool.join()
    assert client.start().pid == mine
    assert nsmagic.run("print('mine')").check().stdout == "mine\n"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_that_ends_leaves_the_owners_container_alone(keep: Any) -> None:
    container = keep()
    container.run("pass").check()
    child = os.fork()
    if child == 0:
        container.stop()
        del container
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert container.run("print('alive')").check().stdout == "alive\n"


def test_many_threads_run_at_once() -> None:
    outs: dict[int, list[str]] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            outs[number] = [nsmagic.run(f"print({number}, {turn})").check().stdout for turn in range(3)]
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert outs == {number: [f"{number} {turn}\n" for turn in range(3)] for number in range(16)}


def test_threads_that_start_the_launcher_at_once_start_one(children_of: Callable[[int], set[int]]) -> None:
    client.stop()
    others = children_of(os.getpid())  # such as the kernel of another module's tests
    threads = [threading.Thread(target=lambda: nsmagic.run("pass")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert children_of(os.getpid()) - others == {client.start().pid}


# ---- nothing is left behind ------------------------------------------------------------------


def settle(
    until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> tuple[list[str], int, list[str]]:
    """With no standby and nothing in the launcher: our descriptors, how many the launcher has, and our groups."""
    nsmagic.run("pass")
    keeper = standbys.current()
    keeper.stop()
    assert keeper._keeper is not None
    keeper._keeper.join(10)  # now it builds no more
    standbys._standbys = standbys.Standbys()
    launcher = client.start()
    gc.collect()
    assert until(lambda: not children_of(launcher.pid)), f"the launcher still has containers: {list(live)}"
    until(lambda: not leftover_groups(), 1)
    # The launcher opens a file now and then, so the least of several looks counts.
    launchers = min(len(os.listdir(f"/proc/{launcher.pid}/fd")) for _ in range(20))
    return sorted(descriptors(os.getpid()).values()), launchers, leftover_groups()


def descriptors(pid: int) -> dict[str, str]:
    """What each descriptor is, without the numbers that differ each time."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0]
    return found


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("print(1)", {}),
        ("1/0", {}),
        ("import os; os.kill(os.getpid(), 9)", {}),
        ("while True: pass", {"timeout": 0.02}),
        ("while True: print('x' * 1000)", {"output_limit": "10K"}),
        ("import os\nfor _ in range(5): os.fork()", {}),
        ("print(1)", {"workdir": "/usr/share"}),
    ],
    ids=["plain", "failed", "killed", "timeout", "output", "forks", "workdir"],
)
def test_fifty_runs_leave_nothing(
    code: str, options: dict[str, Any], until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    nsmagic.run(code, **options)
    before, mounts = settle(until, children_of), Path("/proc/self/mountinfo").read_text()
    nsmagic.run(code, **options)
    threads = threading.active_count()
    for _ in range(50 if code == "print(1)" and not options else 10):
        nsmagic.run(code, **options)
    assert threading.active_count() == threads
    assert settle(until, children_of) == before
    assert Path("/proc/self/mountinfo").read_text() == mounts


def leftover_groups() -> list[str]:
    """Groups of containers of this process."""
    return [
        str(group)
        for mechanism in cgroups.mechanisms()
        for tree in getattr(mechanism, "trees", {}).values()
        for group in Path(tree.base).glob("c[0-9]*")
    ]


def test_runs_that_cannot_start_leave_nothing(
    until: Callable[..., bool], children_of: Callable[[int], set[int]], tmp_path: Path
) -> None:
    before = settle(until, children_of)
    for _ in range(5):
        with pytest.raises(nsmagic.NsmagicError):
            nsmagic.run("pass", variables={"bad": lambda: 0})
        with pytest.raises(nsmagic.NsmagicError):
            # The target lies in a folder that is read-only inside: it cannot be built.
            nsmagic.run("pass", bind=f"{tmp_path}:/usr/no-such-folder/x")
    assert settle(until, children_of) == before


def test_a_forgotten_container_is_ended(
    until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    before = settle(until, children_of)
    container = nsmagic.Container().start()
    container.run("pass").check()
    del container
    gc.collect()
    assert settle(until, children_of) == before


def test_a_result_keeps_its_files_and_nothing_else(
    project: Path, until: Callable[..., bool], children_of: Callable[[int], set[int]]
) -> None:
    before = settle(until, children_of)
    results = [nsmagic.run("open('f', 'w').write('x')") for _ in range(3)]
    during = settle(until, children_of)
    assert len(during[0]) == len(before[0]) + 3
    for result in results:
        assert len(result.changes) == 1
        result.close()
    assert len(settle(until, children_of)[0]) == len(before[0])
