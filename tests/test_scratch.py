"""Scratch processes: what cells in them may do, how they end, and that nothing is left.

Most use the owner's side directly; the magics are tried in a real IPython at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import cgroups, scratch
from nsmagic.errors import HostError, ScratchError, SpecError
from nsmagic.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = os.geteuid() == 0

BECOME_ROOT = """
import os, socket
from nsmagic.linux import *
uid, gid = os.getuid(), os.getgid()
def become_root(flags=0):
    unshare(CLONE_NEWUSER | flags)
    deny_setgroups("self")
    write_id_map("self", "uid", [(0, uid, 1)])
    write_id_map("self", "gid", [(0, gid, 1)])
"""


class Sink:
    """Keeps what comes, and tells a waiting thread."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.came = threading.Event()

    def stream(self, name: str, data: bytes) -> None:
        self.parts.append((name, data))
        self.came.set()

    def text(self, name: str = "stdout") -> str:
        return b"".join(data for each, data in self.parts if each == name).decode()


class Try:
    """A scratch process, and what its last cell said."""

    def __init__(self, **limits: Any) -> None:
        best_effort = limits.pop("best_effort", False)
        self.process = Scratch("lab", limits, best_effort=best_effort)
        self.sink = Sink()

    def run(self, code: str, **options: Any) -> str:
        self.sink = Sink()
        self.process.run(textwrap.dedent(code), self.sink, **options)
        return self.sink.text()

    def fails(self, code: str, **options: Any) -> str:
        """The error as the reader sees it."""
        with pytest.raises(ScratchError) as caught:
            self.run(code, **options)
        return "\n".join(caught.value._render_traceback_())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Try]:
    monkeypatch.chdir(tmp_path)
    found = Try()
    yield found
    found.process.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Try]]:
    """Give a function that starts one with limits of its own."""
    found: list[Try] = []

    def begin(**limits: Any) -> Try:
        found.append(Try(**limits))
        return found[-1]

    yield begin
    for each in found:
        each.process.stop()


def processes_below(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *processes_below(int(child))]
    return found


def all_end(handles: list[int], seconds: float = 10) -> bool:
    """Whether all these processes end in time."""
    deadline = time.monotonic() + seconds
    waiting = list(handles)
    while waiting and time.monotonic() < deadline:
        ended = select.select(waiting, [], [], max(0, deadline - time.monotonic()))[0]
        waiting = [handle for handle in waiting if handle not in ended]
    for handle in handles:
        os.close(handle)
    return not waiting


# ---- cells ------------------------------------------------------------------------------------


def test_variables_last_and_the_last_line_is_shown(lab: Try) -> None:
    assert lab.run("x = 41") == ""
    assert lab.run("print('is', x)\nx + 1") == "is 41\n42\n"
    assert lab.run("_ + 1;") == ""
    assert lab.run("_") == "42\n"
    assert lab.run("__name__, 'os' in globals()") == "('__main__', False)\n"


def test_streams_come_apart_and_while_the_cell_runs(lab: Try) -> None:
    lab.run("import os, sys\nprint('out'); print('err', file=sys.stderr)\nos.write(1, 'ü€\\n'.encode())")
    assert (lab.sink.text(), lab.sink.text("stderr")) == ("out\nü€\n6\n", "err\n")
    sink, failures = Sink(), []

    def work() -> None:
        try:
            lab.process.run("import time\nprint('first')\ntime.sleep(60)", sink)
        except ScratchError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert sink.came.wait(10)  # long before the end
    assert sink.text() == "first\n"
    lab.process.interrupt()
    thread.join(10)
    assert failures[0].startswith("KeyboardInterrupt")


def test_a_flood_is_cut_and_said(lab: Try) -> None:
    lab.run("import os\nfor _ in range(20):\n    _ = os.write(1, b'x' * (1 << 20))")
    assert len(lab.sink.text()) == 16 << 20
    assert "16 MiB of output are enough" in lab.sink.text("stderr")
    assert lab.run("1") == "1\n"


def test_an_error_shows_the_cells_lines_and_the_process_lives_on(lab: Try) -> None:
    lab.run("def divide(a):\n    return a / 0")
    text = lab.fails("x = 5\ndivide(x)")
    assert 'File "<scratch lab, cell 2>", line 2, in <module>\n    divide(x)' in text
    assert 'File "<scratch lab, cell 1>", line 2, in divide\n    return a / 0' in text
    assert text.endswith("ZeroDivisionError: division by zero")
    assert "launcher" not in text
    assert "SyntaxError" in lab.fails("x =")
    assert "SystemExit: 3" in lab.fails("import sys\nsys.exit(3)")
    assert lab.run("x") == "5\n"


def test_an_error_whose_own_methods_fail(lab: Try) -> None:
    text = lab.fails("class Odd(Exception):\n    def __str__(self): raise KeyError('no')\nraise Odd")
    assert "Odd" in text
    assert "RecursionError" in lab.fails("def f(): f()\nf()")
    assert len(lab.fails("raise ValueError('y' * 100_000 + '\\udc80')")) < 3000
    text = lab.fails("raise ValueError('\\n'.join(['😀' * 2000] * 1000))")
    assert text.startswith("Traceback")
    assert len(text.splitlines()) < 50
    assert lab.run("1") == "1\n"


def test_it_has_the_users_rights_environment_and_folder(lab: Try, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("here")
    assert lab.run("import os\nprint(open('data.txt').read(), os.getuid(), len(os.environ))") == (
        f"here {os.getuid()} {len(os.environ)}\n"
    )


def test_it_has_one_thread_and_no_input(lab: Try) -> None:
    assert lab.run("import os\nlen(os.listdir('/proc/self/task'))") == "1\n"
    assert "EOFError" in lab.fails("input()")


def test_descriptors_of_ours_are_out_of_the_way(lab: Try) -> None:
    assert lab.run("import os\nsorted(map(int, os.listdir('/proc/self/fd')))") == "[0, 1, 2, 3, 200]\n"
    lab.run("os.closerange(3, 100)\nos.dup2(1, 3)\nos.dup2(1, 5)")
    assert lab.run("1") == "1\n"


def test_a_cell_that_is_too_long_is_refused(lab: Try) -> None:
    assert "at most 131072 bytes" in lab.fails("#" * 200_000)
    assert lab.run("1") == "1\n"


# ---- children that cells fork ---------------------------------------------------------------------


def test_a_child_that_runs_to_the_cells_end_is_ended_there(lab: Try) -> None:
    code = "import os\nx = 1\npid = os.fork()\nif pid:\n    _ = os.waitpid(pid, 0)\nelse:\n    x = 2\n    print('child')\n"
    assert lab.run(code) == "child\n"
    assert "end a child with os._exit(0)" in lab.sink.text("stderr")
    assert lab.run("x") == "1\n"


def test_a_child_that_fails_says_so_and_does_not_answer_for_its_parent(lab: Try) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n    1 / 0\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    assert lab.run(code) == "1\n"
    assert "ZeroDivisionError" in lab.sink.text("stderr")
    assert "that was in the child" in lab.sink.text("stderr")


def test_a_child_cannot_speak_on_the_channel(lab: Try) -> None:
    code = """
        import os
        pid = os.fork()
        if pid == 0:
            try:
                os.write(200, b'forged')
                os.read(200, 10)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)[1]
        """
    assert lab.run(code) == "0\n"
    assert lab.run("7") == "7\n"


def test_a_child_of_clone3_is_a_child_like_any_other(lab: Try) -> None:
    code = "from nsmagic.linux import *\nimport os\nx = 1\npid = clone3()\nif pid == 0:\n    x = 2\nelse:\n    _ = os.waitpid(pid, 0)"
    assert lab.run(code) == ""
    assert "end a child with os._exit(0)" in lab.sink.text("stderr")
    assert lab.run("x") == "1\n"


def test_cells_are_compiled_as_they_are_written(lab: Try) -> None:
    # Not with the future statements of our own files.
    assert lab.run("def f(a: 1 + 1): pass\nf.__annotations__") == "{'a': 2}\n"


def test_what_was_printed_before_a_fork_comes_once(lab: Try) -> None:
    code = "import os, sys\nsys.stdout.write('once')\npid = os.fork()\nif pid == 0:\n    sys.stdout.flush(); os._exit(0)\n_ = os.waitpid(pid, 0)"
    assert lab.run(code) == "once"


def test_a_child_in_the_background_is_ended_with_it(lab: Try) -> None:
    lab.run(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)"
    )
    handles = [os.pidfd_open(pid) for pid in processes_below(lab.process._guard.pid)]
    assert len(handles) >= 2
    lab.process.stop()
    assert all_end(handles)


# ---- the kernel's calls ------------------------------------------------------------------------------


def test_a_host_name_of_its_own_lasts(lab: Try) -> None:
    before = os.uname().nodename
    lab.run(BECOME_ROOT + "become_root(CLONE_NEWUTS)\nsethostname('lab')")
    assert lab.run("import os; os.uname().nodename") == "'lab'\n"
    assert os.uname().nodename == before
    assert os.stat(f"/proc/{lab.process.pid}/ns/uts").st_ino != os.stat("/proc/self/ns/uts").st_ino


def test_chroot_and_the_classic_way_out(lab: Try, tmp_path: Path) -> None:
    (tmp_path / "jail" / "inside").mkdir(parents=True)
    lab.run(BECOME_ROOT + "become_root()\nchroot('jail')\nos.chdir('/')")
    assert lab.run("os.listdir('/')") == "['inside']\n"
    assert lab.run("os.path.exists('/etc')") == "False\n"
    # Behind a chroot nothing can be imported from disk any more, and errors still show the cell's lines.
    text = lab.fails("import json, socket, subprocess\nsubprocess.run(['true'])")
    assert "line 2, in <module>\n    subprocess.run(['true'])" in text
    assert "FileNotFoundError" in text
    text = lab.fails("mount('none', '/', 'tmpfs')")
    assert "line 1, in <module>\n    mount('none', '/', 'tmpfs')" in text
    assert "linux.LinuxError: mount(none, /, tmpfs, 0, None): EPERM" in text
    assert "nsmagic/linux.py" not in text
    assert "no_such" in lab.fails("no_such")
    # Out: a second chroot leaves the working directory outside of it.
    lab.run("chroot('inside')\nfor _ in range(64):\n    os.chdir('..')\nchroot('.')")
    assert lab.run("os.path.exists('/etc')") == "True\n"


def test_pivot_root_has_no_way_out(lab: Try) -> None:
    lab.run(BECOME_ROOT + "become_root(CLONE_NEWNS)\nmount('none', '/', None, MS_REC | MS_PRIVATE)")
    lab.run("os.mkdir('new')\nmount('none', 'new', 'tmpfs')\nos.makedirs('new/old')")
    lab.run("pivot_root('new', 'new/old')\nos.chdir('/')\numount2('/old', MNT_DETACH)")
    lab.run("os.mkdir('x')\nchroot('x')\nfor _ in range(64):\n    os.chdir('..')\nchroot('.')")
    assert lab.run("sorted(os.listdir('/'))") == "['old', 'x']\n"
    assert "division" in lab.fails("1 / 0")
    assert not Path("new/x").exists()


def test_a_mount_is_seen_inside_only(lab: Try, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    lab.run(BECOME_ROOT + "become_root(CLONE_NEWNS)\nmount('none', '/', None, MS_REC | MS_PRIVATE)")
    lab.run("mount('none', '/mnt', 'tmpfs')\nopen('/mnt/mine', 'w').close()")
    assert lab.run("os.listdir('/mnt')") == "['mine']\n"
    assert Path("/proc/self/mountinfo").read_text() == before
    assert " /mnt " in Path(f"/proc/{lab.process.pid}/mountinfo").read_text()


def test_the_first_child_is_pid_1_and_after_it_nobody_is_born(lab: Try) -> None:
    lab.run(BECOME_ROOT + "become_root(CLONE_NEWPID)")
    lab.run(
        "pid = fork()\nif pid == 0:\n    print('I am', os.getpid(), flush=True)\n    os._exit(0)\n_ = os.waitpid(pid, 0)"
    )
    assert lab.sink.text() == "I am 1\n"
    for code in ("fork()", "os.fork()", "import subprocess\nsubprocess.run(['true'])"):
        text = lab.fails(code)
        assert "Cannot allocate memory" in text
        assert "PID 1 of the PID namespace" in text
    assert lab.run("'alive'") == "'alive'\n"


def test_a_child_that_is_pid_1_lives_on_between_cells_and_ends_with_it(lab: Try) -> None:
    lab.run(
        BECOME_ROOT
        + "import signal\nbecome_root(CLONE_NEWPID)\npid = fork()\nif pid == 0:\n    signal.pause()"
    )
    assert lab.run("int(os.path.exists(f'/proc/{pid}'))") == "1\n"
    handles = [os.pidfd_open(pid) for pid in processes_below(lab.process.pid)]
    assert len(handles) == 1
    lab.process.stop()
    assert all_end(handles)


# ---- limits -----------------------------------------------------------------------------------------


def test_time_is_up_and_the_process_lives_on(lab: Try) -> None:
    text = lab.fails("x = 1\nimport time\ntime.sleep(60)", timeout=0.3)
    assert "line 3, in <module>\n    time.sleep(60)" in text
    assert "time limit: the cell ran longer than 300 ms (--timeout)" in text
    assert lab.run("x") == "1\n"


def test_a_cell_that_ignores_the_interrupt_is_killed(lab: Try) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    text = lab.fails(code, timeout=0.3)
    assert "did not end within 300 ms (--timeout), nor when it was interrupted" in text
    assert "the next %%scratch lab starts a new one" in text
    assert not lab.process.alive


def test_memory_has_a_limit(start: Callable[..., Try]) -> None:
    lab = start(mem=96 << 20, best_effort=True)
    if "cgroup" in lab.process.enforced["mem"]:
        text = lab.fails("data = bytearray(1 << 29)\nfor i in range(0, len(data), 4096): data[i] = 1")
        assert "ran out of memory: it needed more than its limit of 96 MiB (--mem)" in text
    else:
        assert "RLIMIT_AS" in lab.process.enforced["mem"]
        assert "MemoryError" in lab.fails("data = bytearray(1 << 31)")
        assert lab.run("1") == "1\n"


def test_it_is_in_its_groups_and_its_guard_is_not(lab: Try) -> None:
    directories = lab.process._group.directories
    leaves = [each for each in directories if os.path.basename(each).startswith("c")]
    if not leaves:
        pytest.skip("host: no cgroup that may be written to")
    for leaf in leaves:
        assert Path(leaf, "cgroup.procs").read_text().split() == [str(lab.process.pid)]
    lab.process.stop()
    assert not any(map(os.path.exists, leaves))


def test_processes_have_a_limit(start: Callable[..., Try]) -> None:
    lab = start(pids=5, best_effort=True)
    if "pids" in lab.process.missing:
        pytest.skip("host: no limit of processes for root without a cgroup")
    code = """
        import os, signal
        pids = []
        try:
            for _ in range(200):
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                    os._exit(0)
                pids.append(pid)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        """
    text = lab.fails(code)
    assert "BlockingIOError" in text
    assert "a limit of processes is reached" in text


def test_a_fork_bomb_is_ended_with_it(start: Callable[..., Try]) -> None:
    lab = start(pids=20, best_effort=True)
    if "pids" in lab.process.missing:
        pytest.skip("host: no limit of processes for root without a cgroup")
    code = """
        import os
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        """
    lab.run(code)
    guard = os.pidfd_open(lab.process._guard.pid)
    lab.process.stop()
    assert all_end([guard])
    assert not any(map(os.path.exists, lab.process._group.directories[:1]))


def test_what_was_asked_for_and_cannot_be_enforced_is_an_error(start: Callable[..., Try]) -> None:
    lost = cgroups.choose(cgroups.Limits(mem=1 << 30, pids=10), userns=False, best_effort=True).missing
    for each in lost:
        if each.what in ("mem", "pids"):
            with pytest.raises(HostError, match="--best-effort"):
                start(**{each.what: 64 << 20})
    lab = start(mem=256 << 20, pids=10, best_effort=True)
    assert set(lab.process.enforced) | set(lab.process.missing) >= {"mem", "pids"}
    for each in lost:
        assert each.what not in lab.process.enforced or "RLIMIT" in lab.process.enforced[each.what]


# ---- deaths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nos._exit(3)", "ended with status 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9 (SIGKILL)"),
        ("import ctypes\nctypes.string_at(0)", "was killed by signal 11 (SIGSEGV)"),
        (
            "import os\nos.execv('/bin/echo', ['echo', 'other'])",
            "became another program, 'echo' (execve), which ended",
        ),
        ("import os\nos.closerange(3, 300)", "cannot answer any more"),
    ],
)
def test_the_reason_of_a_death_is_said(lab: Try, code: str, reason: str) -> None:
    text = lab.fails(code)
    assert f"scratch process 'lab' {reason}" in text
    assert "Its variables are gone; the next %%scratch lab starts a new one" in text
    assert not lab.process.alive
    assert lab.sink.text() == ("other\n" if "echo" in code else "")


def test_a_strict_filter_kills_and_that_is_said(lab: Try) -> None:
    text = lab.fails("from nsmagic.linux import *\nseccomp(SECCOMP_SET_MODE_STRICT)\nimport os\nos.getppid()")
    assert "(SIGSYS): a seccomp filter forbids what it did" in text or "signal 9" in text


def test_a_closed_stream_costs_no_time(lab: Try) -> None:
    begun = time.process_time()
    lab.run("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1)")
    assert time.process_time() - begun < 0.5
    lab.run("x = 1")


def test_a_death_between_two_cells_is_noticed(lab: Try) -> None:
    os.kill(lab.process.pid, signal.SIGKILL)
    assert "was killed by signal 9" in lab.fails("1")
    assert "takes no more cells" in lab.fails("1")


def test_a_killed_guard_takes_all_along(lab: Try) -> None:
    lab.run("x = 1")
    handle = os.pidfd_open(lab.process.pid)
    os.kill(lab.process._guard.pid, signal.SIGKILL)
    assert select.select([lab.process.ends.report], [], [], 10)[0]
    assert not lab.process.alive
    assert "lost its guard" in lab.process.reason
    assert all_end([handle])


def test_stopping_ends_a_running_cell(lab: Try) -> None:
    sink, failures = Sink(), []

    def work() -> None:
        try:
            lab.process.run("import time\nprint('on')\ntime.sleep(60)", sink)
        except ScratchError as error:
            failures.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    assert sink.came.wait(10)
    lab.process.stop()
    thread.join(10)
    assert "was killed by signal 9" in failures[0]


OWNER = """
import os, sys, time
from nsmagic import scratch

class Sink:
    def stream(self, name, data):
        print(process._guard.pid, process.pid, data.decode().strip(), *process._group.directories[:1], flush=True)

process, _ = scratch.start("lab", {})
process.run('''
import os, signal
child = os.fork()
if child == 0:
    os.setsid()
    signal.pause()
print(child)
while True: pass
''', Sink())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_owner_and_leaves_nothing(number: int, until: Callable[..., bool]) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        assert select.select([owner.stdout], [], [], 30)[0], "the owner never began"
        *pids, last = owner.stdout.readline().split()
        directory = last if last.startswith("/") else ""
        pids += [] if directory else [last]
        handles = [os.pidfd_open(int(pid)) for pid in pids]
        assert len(handles) == 3
    finally:
        owner.send_signal(number)
        owner.wait(10)
        owner.stdout.close()
    assert all_end(handles)
    assert until(lambda: not directory or not os.path.exists(directory), 10)


FORKED = """
import os, select
from nsmagic import scratch
process, _ = scratch.start("lab", {})
handle = os.pidfd_open(process.pid)
if os.fork() == 0:
    assert scratch.all_living() == []
    assert scratch.find("lab") is None
    print("gone" if select.select([handle], [], [], 20)[0] else "left", flush=True)
os._exit(0)
"""


def test_a_fork_of_the_owner_holds_no_lifeline() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "gone\n", done.stderr


# ---- the magics ----------------------------------------------------------------------------------------


@pytest.fixture
def ipython(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A real IPython with the magics; its own process could not be watched from inside."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    from nsmagic import scratch_magics

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    scratch_magics.load(shell)
    yield shell
    scratch_magics.unload()
    InteractiveShell.clear_instance()


def test_the_cell_magic_introduces_once_and_keeps_state(
    ipython: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ipython.run_cell_magic("scratch", "a", "x = 6\nprint(x * 7)")
    first = capsys.readouterr().out
    assert "It is not a container" in first
    assert ("You are root" in first) == ROOT
    assert "Limits: memory 1 GiB (" in first
    assert first.endswith("42\n")
    ipython.run_cell_magic("scratch", "a --timeout 20", "x")
    assert capsys.readouterr().out == "6\n"
    with pytest.raises(ScratchError, match="division"):
        ipython.run_cell_magic("scratch", "a", "1 / 0")
    ipython.run_line_magic("scratch", "")
    assert capsys.readouterr().out.splitlines()[1].startswith("a ")
    ipython.run_line_magic("scratch", "stop a")
    ipython.run_line_magic("scratch", "")
    assert "no scratch process lives" in capsys.readouterr().out


def test_after_a_death_there_is_a_new_one(ipython: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ipython.run_cell_magic("scratch", "a", "x = 1")
    with pytest.raises(ScratchError, match="ended with status 3"):
        ipython.run_cell_magic("scratch", "a", "import os; os._exit(3)")
    capsys.readouterr()
    ipython.run_cell_magic("scratch", "a", "'x' in globals()")
    text = capsys.readouterr().out
    assert "started" in text
    assert "before" not in text  # it was told already
    assert text.endswith("False\n")
    process = scratch.find("a")
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert select.select([process.ends.report], [], [], 10)[0]
    ipython.run_cell_magic("scratch", "a", "1")
    assert "'a' before was killed by signal 9 (SIGKILL); its variables are gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "needs a name"),
        ("--mem 1G", "needs a name"),
        ("a bash", "takes options only"),
        ("a --mme 1G", "did you mean --mem"),
        ("a --timeout never", "not a duration"),
        ("'", "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_said(ipython: Any, line: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        ipython.run_cell_magic("scratch", line, "1")
    assert scratch.all_living() == []


def test_limits_of_a_living_one_do_not_change(ipython: Any) -> None:
    ipython.run_cell_magic("scratch", "a --pids 20 --best-effort", "1")
    ipython.run_cell_magic("scratch", "a --pids 20", "1")
    with pytest.raises(SpecError, match="%scratch stop a"):
        ipython.run_cell_magic("scratch", "a --pids 30", "1")
    with pytest.raises(SpecError, match="no scratch process 'aa'; did you mean a"):
        ipython.run_line_magic("scratch", "stop aa")
    with pytest.raises(SpecError, match="lists what lives"):
        ipython.run_line_magic("scratch", "halt a")


# ---- in a real notebook's kernel ---------------------------------------------------------------------------


class Notebook:
    """A real ipykernel, and what its cells send."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "IPYTHONDIR": str(folder / ".ipython")})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, on_text: Callable[[str], None] = str) -> tuple[str, str]:
        """What the cell printed on stdout, and its error."""
        text: list[str] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                text.append(message["content"]["text"])
                on_text(text[-1])

        reply = self.client.execute_interactive(textwrap.dedent(code), output_hook=take, timeout=60)
        return "".join(text), "\n".join(reply["content"].get("traceback", []))

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    found = Notebook(tmp_path)
    yield found
    found.stop()


def test_a_notebook_interrupts_a_cell_and_its_death_ends_all(notebook: Notebook) -> None:
    assert notebook.run("%load_ext nsmagic")[1] == ""
    assert notebook.run("%%scratch a\nimport os\nx = 5\nos.getpid()")[1] == ""

    def interrupt(text: str) -> None:
        if "waiting" in text:
            notebook.manager.interrupt_kernel()

    text, error = notebook.run("%%scratch a\nimport time\nprint('waiting')\ntime.sleep(60)", interrupt)
    assert text == "waiting\n"
    assert 'File "<scratch a, cell 2>", line 3' in error
    assert "KeyboardInterrupt" in error
    text, error = notebook.run(
        "%%scratch a\nchild = os.fork()\nif not child:\n    time.sleep(600)\nprint(x, os.getpid(), child)"
    )
    assert error == ""
    x, *pids = text.split()
    assert x == "5"
    handles = [os.pidfd_open(int(pid)) for pid in pids]
    notebook.manager.signal_kernel(signal.SIGKILL)
    assert all_end(handles)


def test_what_the_docs_show_is_what_happens(notebook: Notebook, request: pytest.FixtureRequest) -> None:
    page = request.path.parents[1] / "docs" / "scratch.md"
    blocks = page.read_text().split("```")[1::2]
    cells = [block.removeprefix("python\n") for block in blocks if block.startswith("python\n")]
    shown = [block.strip() for block in blocks if not block.startswith("python\n")]
    assert len(cells) == len(shown) == 3
    notebook.run("%load_ext nsmagic")
    for cell, expected in zip(cells, shown, strict=True):
        text, error = notebook.run(cell)
        if "Error" in expected:
            assert expected in error
        else:
            assert (text.strip(), error) == (expected, "")
