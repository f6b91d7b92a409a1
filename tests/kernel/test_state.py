"""A cell that dies takes no variables along: the kernel's snapshot goes on from before it."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# One kernel serves most of the module.
pytestmark = pytest.mark.xdist_group("kernel_state")

KEPT = "Variables are as they were before this cell."
GONE = "all variables are gone"
DIE = "import os; os._exit(7)"


def ok(kernel: Any, code: str) -> Any:
    cell = kernel.run(code)
    assert cell.reply["status"] == "ok", cell
    return cell


def idle(kernel: Any, until: Callable[..., bool], count: int = 2) -> None:
    """Wait until the snapshot behind the last cell is made, beside the one before it."""
    assert until(lambda: len(snapshots(kernel)) >= count, 60.0)


def processes(kernel: Any) -> list[tuple[int, str]]:
    """What runs beside the container's init, as pid and name, the oldest first."""

    def children(pid: int) -> list[int]:
        try:
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def name(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return ""

    # The kernel's own container, not the standby's, is the one that has had a cell.
    todo, inits = [kernel.pid], []
    while todo:
        pid = todo.pop()
        if name(pid) == "nsmagic-init":
            inits.append(pid)
        else:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                todo += children(int(task.name)) if int(task.name) != pid else children(pid)
    found = [[(child, name(child)) for child in children(init)] for init in inits]
    return max(found, key=len) if found else []


def snapshots(kernel: Any) -> list[int]:
    return [pid for pid, name in processes(kernel) if name == "nsmagic-kept"]


def payload(kernel: Any) -> int:
    return next(pid for pid, name in processes(kernel) if name != "nsmagic-kept")


@pytest.fixture
def kernel(safe: Any) -> Any:
    """The module's kernel."""
    ok(safe, "kept = 1")
    return safe


# ---- what survives -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param("import ctypes; ctypes.string_at(0)", "Crashed: .*SIGSEGV", id="segv"),
        pytest.param("import os; os.abort()", "Crashed: .*SIGABRT", id="abort"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "Crashed: .*SIGKILL", id="kill"),
        pytest.param("import os; os._exit(7)", "KernelExited: exit status 7", id="exit"),
        pytest.param("import os; os._exit(0)", r"KernelExited: .*\(exit status 0\)", id="exit-0"),
    ],
)
def test_variables_are_as_before_the_cell(kernel: Any, code: str, reason: str) -> None:
    ok(
        kernel,
        "data, kind, where = list(range(1000)), type('Kind', (), {'x': 5}), {}\ndef double(n): return 2 * n",
    )
    ok(kernel, "item = kind()")
    cell = kernel.run(f"data.clear(); item.x = 6; del double; new = 1\n{code}")
    assert re.match(reason, cell.error), cell.error
    assert KEPT in cell.error
    states = [content["execution_state"] for content in cell.of("status")]
    assert states == ["busy", "idle"]
    assert len(cell.of("execute_input")) == 1
    cell = ok(kernel, "print(len(data), item.x, double(4), 'new' in globals(), isinstance(item, kind), kept)")
    assert cell.text == "1000 5 8 False True 1\n"


def test_it_goes_on_many_times(kernel: Any) -> None:
    ok(kernel, "count = 0")
    for number in range(8):
        assert KEPT in kernel.run(f"count += 100\n{DIE}").error
        assert ok(kernel, "count += 1; print(count)").text == f"{number + 1}\n"
    # Each goes on from the same place: the stack does not grow, descriptors are not left open.
    deep = "import inspect, os; print(len(inspect.stack()), len(os.listdir('/proc/self/fd')))"
    depth, files = map(int, ok(kernel, deep).text.split())
    kernel.run(DIE)
    again, more = map(int, ok(kernel, deep).text.split())
    assert depth == again
    assert more <= files + 2


def test_numbers_history_and_results_are_as_before(kernel: Any) -> None:
    first = ok(kernel, "6 * 7").reply["execution_count"]
    assert kernel.run(f"'lost'\n{DIE}").reply["execution_count"] == first + 1
    cell = ok(kernel, "print(_, Out[max(Out)], In[-2], len(In))")
    assert cell.reply["execution_count"] == first + 1
    assert cell.text == f"42 42 6 * 7 {first + 2}\n"
    assert "ERROR" not in cell.said
    cell = ok(kernel, "%history -n -l 2")
    assert "lost" not in cell.text
    assert "os._exit" not in cell.text
    reply = kernel.ask("shell", "history_request", {
        "hist_access_type": "tail", "n": 3, "output": False, "raw": True, "session": 0, "start": 0, "stop": 0,
        "pattern": "*", "unique": False,
    })  # fmt: skip
    assert [line[2] for line in reply["history"]][-1] == "%history -n -l 2"


def test_surroundings_are_as_before(kernel: Any) -> None:
    ok(
        kernel,
        "import os, sys, random\nos.makedirs('sub', exist_ok=True); os.chdir('sub'); os.environ['MINE'] = 'a'",
    )
    ok(
        kernel,
        "from IPython.core.magic import register_line_magic\n@register_line_magic\ndef hello(line): print('hi', line)",
    )
    ok(kernel, "random.seed(5); first = random.random(); random.seed(5)")
    assert KEPT in kernel.run(f"os.chdir('/'); os.environ['MINE'] = 'b'; random.random()\n{DIE}").error
    cell = ok(
        kernel,
        "%hello you\nprint(os.path.basename(os.getcwd()), os.environ['MINE'], random.random() == first)",
    )
    assert cell.text == "hi you\nsub a True\n"
    ok(kernel, "os.chdir('..')")


def test_a_kernel_that_went_on_does_all_that_a_kernel_does(kernel: Any) -> None:
    kernel.run(DIE)
    assert ok(kernel, "print('out'); import sys; print('err', file=sys.stderr)").stream("stderr") == "err\n"
    assert ok(kernel, "import os; os.system('echo from C')").text == "from C\n"
    assert "shown" in ok(kernel, "display('shown')").said
    assert kernel.run("1 / 0").error.startswith("ZeroDivisionError")
    assert kernel.ask("shell", "complete_request", {"code": "kep", "cursor_pos": 3})["matches"] == ["kept"]
    name = kernel.send("got = input('? ')")
    assert kernel.client.get_stdin_msg(timeout=60)["content"]["prompt"] == "? "
    kernel.client.input("answer")
    assert kernel.wait(name).reply["status"] == "ok"
    assert ok(kernel, "print(got)").text == "answer\n"
    name = kernel.send("import time\nprint('on', flush=True)\nwhile True: time.sleep(0.01)")
    cell = kernel.wait(name, until=lambda cell: cell.text == "on\n")
    kernel.interrupt()
    assert kernel.wait(name, cell=cell).error.startswith("KeyboardInterrupt")
    other = kernel.another()
    assert other.run("print(kept)").text == "1\n"


# ---- numpy, pandas, matplotlib ------------------------------------------------------------------


def test_arrays_tables_and_their_random_state(kernel: Any) -> None:
    ok(kernel, "import numpy as np, pandas as pd\nnp.random.seed(3); rng = np.random.default_rng(4)")
    ok(kernel, "a = np.arange(1_000_000); t = pd.DataFrame({'x': a[:1000], 'y': list('ab') * 500})\n"
               "want = np.random.RandomState(3).rand(3), np.random.default_rng(4).random(3)")  # fmt: skip
    cell = kernel.run(
        f"a[:] = 0; t['x'] = -1; t.drop(columns='y', inplace=True); np.random.rand(); rng.random()\n{DIE}"
    )
    assert KEPT in cell.error
    cell = ok(kernel, "print(a.sum(), t.x.sum(), t.y.nunique())\n"
                      "print((np.random.rand(3) == want[0]).all(), (rng.random(3) == want[1]).all())")  # fmt: skip
    assert cell.text == "499999500000 499500 2\nTrue True\n"


def test_threads_that_a_library_ends_by_itself_are_no_hindrance(kernel: Any) -> None:
    ok(kernel, "import numpy as np; m = np.random.rand(600, 600)")
    for _ in range(3):
        cell = ok(kernel, "product = m @ m")
        assert "no snapshot" not in cell.said
    assert KEPT in kernel.run(f"product[:] = 0\n{DIE}").error
    assert ok(kernel, "print((product == m @ m).all())").text == "True\n"


def test_plots_go_on(kernel: Any) -> None:
    ok(kernel, "import matplotlib.pyplot as plt; backend = plt.get_backend()")
    kernel.run(f"plt.switch_backend('agg')\n{DIE}")
    cell = ok(kernel, "plt.plot([1, 2]); print(plt.get_backend() == backend)")
    assert cell.text == "True\n"
    assert any("image/png" in shown["data"] for shown in cell.of("display_data"))


# ---- files ------------------------------------------------------------------------------------------


def test_what_was_buffered_is_written_once(kernel: Any) -> None:
    ok(kernel, "f = open('once.txt', 'w'); f.write('before|'); g = open('more.txt', 'ab'); g.write(b'1')")
    assert KEPT in kernel.run(f"f.write('lost'); f.flush(); g.flush()\n{DIE}").error
    assert ok(kernel, "f.write('after'); f.close(); g.close(); print(open('once.txt').read(), open('more.txt').read())").text == (
        "before|after 1\n"
    )  # fmt: skip


def test_positions_of_open_files_are_as_before(kernel: Any) -> None:
    ok(kernel, "open('read.txt', 'w').write('abcdef'); r = open('read.txt', 'rb', buffering=0); r.read(2)")
    assert KEPT in kernel.run(f"r.read()\n{DIE}").error
    assert ok(kernel, "print(r.read())").text == "b'cdef'\n"


def test_files_that_the_cell_has_changed_are_named(kernel: Any) -> None:
    ok(kernel, "open('earlier.txt', 'w').write('1')")
    time.sleep(0.1)  # a file's time has the kernel's tick
    error = kernel.run(f"open('left.txt', 'w').write('1')\n{DIE}").error
    assert re.search(r"Files stay as the cell left them: (sub/)?left\.txt\.", error), error


# ---- processes, threads, event loops ---------------------------------------------------------------------


def test_a_cell_that_forks(kernel: Any) -> None:
    ok(kernel, "import os, subprocess, time\nold = subprocess.Popen(['sleep', '600'])")
    cell = kernel.run("child = os.fork()\nif child == 0:\n    time.sleep(600)\n    os._exit(0)\nos._exit(7)")
    assert KEPT in cell.error
    assert "What could not come back: 2 processes." in cell.error
    # A child of its own is the only one that it waits for.
    cell = ok(kernel, "child = os.fork()\nif child == 0: os._exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))\n"
                      "try: os.wait()\nexcept ChildProcessError: print('no other')")  # fmt: skip
    assert cell.text == "3\nno other\n"


def test_nobody_hears_of_a_snapshot(kernel: Any, until: Callable[..., bool]) -> None:
    ok(kernel, "import os, signal\nheard = []\n_ = signal.signal(signal.SIGCHLD, lambda *_: heard.append('child'))\n"
               "os.register_at_fork(before=lambda: heard.append('before'), after_in_parent=lambda: heard.append('after'))")  # fmt: skip
    idle(kernel, until)
    assert ok(kernel, "print(heard, os.getpid())").text.startswith("[] ")
    assert (
        ok(kernel, "if not os.fork(): os._exit(0)\n_ = os.wait()\nprint(heard[:2])").text
        == "['before', 'after']\n"
    )
    ok(kernel, "_ = signal.signal(signal.SIGCHLD, signal.SIG_DFL)")


def test_async_cells(kernel: Any) -> None:
    ok(
        kernel,
        "import asyncio\nawait asyncio.sleep(0.01)\nasync def tick():\n    while True: await asyncio.sleep(0.05)",
    )
    ok(kernel, "task = asyncio.create_task(tick())")
    cell = kernel.run(f"await asyncio.sleep(0.01)\nnew = 1\n{DIE}")
    assert KEPT in cell.error
    assert "What could not come back: 1 task of its event loop." in cell.error
    assert ok(kernel, "await asyncio.sleep(0.01); print('new' in globals())").text == "False\n"
    ok(kernel, "async def six(): return 6\nassert await asyncio.gather(six(), six()) == [6, 6]")


def test_what_a_task_does_between_cells_counts(kernel: Any, until: Callable[..., bool]) -> None:
    ok(kernel, "import asyncio\nticks = 0\nasync def tick():\n    global ticks\n    for _ in range(5):\n"
               "        await asyncio.sleep(0.1); ticks += 1\ntask = asyncio.create_task(tick())")  # fmt: skip
    assert until(lambda: ok(kernel, "print(ticks)").text == "5\n", 60.0)
    time.sleep(0.2)
    assert KEPT in kernel.run(f"ticks = 0\n{DIE}").error
    assert ok(kernel, "print(ticks)").text == "5\n"


def test_a_thread_speaks_against_it_and_that_is_said_once(start: Callable[..., Any]) -> None:
    kernel = start()
    ok(
        kernel,
        "import threading\nstop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()",
    )
    said = [ok(kernel, "a = 1").stream("stderr") for _ in range(3)]
    assert "no snapshot before this cell: a thread runs that a snapshot would not have" in said[0]
    assert said[1:] == ["", ""]
    assert (
        "not kept: a thread runs that a snapshot would not have (--keep-state auto)"
        in kernel.run("%isolation").said
    )
    ok(kernel, "stop.set(); thread.join()")
    ok(kernel, "a = 2")
    assert "kept: a snapshot before each cell" in kernel.run("%isolation").said
    assert KEPT in kernel.run(DIE).error
    ok(kernel, "stop.clear(); thread = threading.Thread(target=stop.wait); thread.start()")
    error = kernel.run(DIE).error
    assert GONE in error
    assert "KernelExited: exit status 7" in error


def test_keep_state_on_keeps_it_beside_threads(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python", "--keep-state", "on")
    ok(
        kernel,
        "import threading\nstop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()",
    )
    error = kernel.run(f"a = 1\n{DIE}").error
    assert KEPT in error
    assert "What could not come back: 1 thread." in error
    assert ok(kernel, "print(thread.is_alive(), 'a' in globals())").text == "False False\n"


def test_keep_state_off(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python", "--keep-state", "off")
    ok(kernel, "a = 1")
    assert snapshots(kernel) == []
    assert "not kept: --keep-state off" in kernel.run("%isolation").said
    assert "there is no snapshot: --keep-state off" in kernel.run("%isolation undo").error
    assert GONE in kernel.run(DIE).error


def test_another_kernels_program_has_none() -> None:
    from nsmagic import SpecError
    from nsmagic.kernel import settings

    words = ["-f", "/run/file", "--", "kernel", "/run/file"]
    made = settings.parse(words, {"NSMAGIC_KEEP_STATE": "on"})
    assert (made.keep_state, made.spec.snapshots) == ("off", False)
    with pytest.raises(SpecError, match="--keep-state"):
        settings.parse([*words[:2], "--keep-state", "on", *words[2:]], {})
    made = settings.parse(words[:2], {"NSMAGIC_KEEP_STATE": "on"})
    assert (made.keep_state, made.spec.snapshots) == ("on", True)
    with pytest.raises(SpecError, match="NSMAGIC_KEEP_STATE: 'no' is none of auto, on, off"):
        settings.parse(words[:2], {"NSMAGIC_KEEP_STATE": "no"})


# ---- undo ---------------------------------------------------------------------------------------------------


def test_a_cell_can_be_undone(kernel: Any, until: Callable[..., bool]) -> None:
    ok(kernel, "a = [1]")
    ok(kernel, "a.append(2); open('undone.txt', 'w').write('x')")
    idle(kernel, until)
    cell = ok(kernel, "%isolation undo")
    assert re.search(r"Variables are as they were before cell \[\d+\]\.", cell.said), cell
    assert "undone.txt" in cell.said
    assert ok(kernel, "print(a)").text == "[1]\n"
    # And right behind a cell, before the next snapshot is there.
    ok(kernel, "a.append(3)")
    ok(kernel, "%isolation undo")
    assert "no cell has run since" in kernel.run("%isolation undo").error
    assert ok(kernel, "print(a)").text == "[1]\n"


def test_undo_takes_back_a_cell_that_failed(kernel: Any) -> None:
    ok(kernel, "b = [1]")
    assert kernel.run("b.append(2); 1 / 0").error.startswith("ZeroDivisionError")
    ok(kernel, "%isolation undo")
    assert ok(kernel, "print(b)").text == "[1]\n"


def test_undo_stands_alone(kernel: Any) -> None:
    assert "stands alone" in kernel.run("%isolation\n%isolation undo").error
    assert "stands alone" in kernel.run("%isolation undo 2").error


# ---- deaths otherwise ------------------------------------------------------------------------------------------


def test_a_death_between_cells_loses_nothing(kernel: Any, until: Callable[..., bool]) -> None:
    name = kernel.send(
        "import signal\nc = 1\n_ = signal.signal(signal.SIGALRM, signal.SIG_DFL); _ = signal.alarm(1)"
    )
    assert kernel.wait(name).reply["status"] == "ok"
    idle(kernel, until)
    message = kernel.next_published("stream")
    assert message["parent_header"]["msg_id"] == name
    assert "SIGALRM" in message["content"]["text"]
    assert "Variables are as they were after the last cell." in message["content"]["text"]
    assert ok(kernel, "print(c)").text == "1\n"


def test_cells_behind_it_are_aborted_and_the_next_one_runs(kernel: Any) -> None:
    first = kernel.send("d = 1; input()\nimport os; os._exit(3)")
    behind = [kernel.send(f"d = {number}") for number in range(3)]
    kernel.client.get_stdin_msg(timeout=60)
    kernel.client.input("")
    assert KEPT in kernel.wait(first).error
    assert [kernel.wait(name).reply["status"] for name in behind] == ["aborted"] * 3
    assert ok(kernel, "print('d' in globals())").text == "False\n"


def test_a_failure_stays_a_failure_for_whoever_runs_without_a_person(kernel: Any) -> None:
    runner = kernel.another()
    assert KEPT in runner.run(f"e = 1\n{DIE}", allow_stdin=False).error
    # As behind any cell that failed: whoever is allowed to go on does so with the variables from before it.
    assert runner.run("print('e' in globals(), kept)", allow_stdin=False).text == "False 1\n"


def test_a_cell_that_takes_no_interrupt_costs_itself_alone(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python", "--cell-timeout", "1")
    ok(kernel, "kept = 1")
    cell = kernel.run(
        "import time\nkept = 2\nwhile True:\n  try:\n    time.sleep(60)\n  except KeyboardInterrupt:\n    pass"
    )
    assert cell.error.startswith(
        "TimeLimit: time limit: the cell ran longer than 1 s (--cell-timeout), and did not end"
    )
    assert KEPT in cell.error
    assert ok(kernel, "print(kept)").text == "1\n"


def test_exit_ends_the_kernel_and_no_snapshot_goes_on(
    start: Callable[..., Any], until: Callable[..., bool]
) -> None:
    kernel = start()
    ok(kernel, "a = 1")
    kernel.run("exit()")
    assert until(lambda: "False" in kernel.run("print('a' in globals())").text, 60.0)


@pytest.mark.parametrize("end", ["shutdown", "death"])
def test_what_runs_at_the_end_runs_once(start: Callable[..., Any], tmp_path: Path, end: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    kernel = start("isolated-python", "--bind", f"{out}:/out:rw")
    ok(kernel, "import atexit\ndef note(text):\n    with open('/out/log', 'a') as f: f.write(text)\n"
               "_ = atexit.register(note, 'atexit ')\nclass Last:\n    def __del__(self): note('del ')\nlast = Last()\n"
               "f = open('/out/file', 'a'); f.write('line ')\nimport weakref; w = weakref.finalize(last, note, 'final ')")  # fmt: skip
    ok(kernel, "import ctypes; ctypes.CDLL(None).printf(b'from C ')")
    if end == "death":
        assert KEPT in kernel.run(f"f.write('lost ')\n{DIE}").error
        ok(kernel, "x = 1")
    ok(kernel, "del last; f.close()")
    kernel.manager.shutdown_kernel()
    assert (out / "log").read_text() == "del final atexit "
    assert (out / "file").read_text() == "line "


def test_nothing_is_left(
    start: Callable[..., Any],
    tree_of: Callable[[int], Any],
    nothing_left: Callable[..., float],
    until: Callable[..., bool],
) -> None:
    kernel = start()
    ok(kernel, "a = 1")
    idle(kernel, until)
    kernel.run(DIE)
    ok(kernel, "a = 1")
    idle(kernel, until)
    tree = tree_of(kernel.pid)
    assert len(snapshots(kernel)) == 2
    os.kill(kernel.pid, signal.SIGKILL)
    nothing_left(tree)


def test_a_process_that_calls_itself_a_snapshot_gains_nothing(start: Callable[..., Any]) -> None:
    kernel = start()
    ok(kernel, "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()")
    kernel.run("import ctypes, os, time\nif not os.fork():\n    if not os.fork():\n"
               "        ctypes.CDLL(None).prctl(15, b'nsmagic-kept', 0, 0, 0)\n        time.sleep(600)\n    os._exit(0)\nos.wait()")  # fmt: skip
    error = kernel.run(DIE).error
    assert GONE in error
    assert "its snapshot could not go on" in error
    ok(kernel, "1")


@pytest.mark.limits
def test_its_own_processes_do_not_count_as_the_users(start: Callable[..., Any]) -> None:
    count = (
        "import os, time\nmade = []\ntry:\n    while len(made) < 100:\n        pid = os.fork()\n"
        "        if not pid: time.sleep(600)\n        made.append(pid)\nexcept OSError: pass\nprint(len(made))\n"
        "for pid in made: os.kill(pid, 9); os.waitpid(pid, 0)"
    )
    without = int(
        ok(start("isolated-python", "--pids", "40", "--keep-state", "off", limits=True), count).text
    )
    kernel = start("isolated-python", "--pids", "40", limits=True)
    ok(kernel, "1")
    assert without <= int(ok(kernel, count).text) <= without + 3


def test_the_notebook_that_teaches_it(spec_name: Callable[..., str], tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(Path(__file__).parents[2] / "notebooks" / "snapshots.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, kernel_name=spec_name(), timeout=120, resources=resources).execute()
    shown = {
        cell.id: "".join(
            each.get("text") or each.get("evalue") or each["data"]["text/plain"] for each in cell.outputs
        )
        for cell in book.cells
        if cell.cell_type == "code"
    }
    assert KEPT in shown["death-code"]
    assert shown["after"].startswith("[1, 2, 3]\n")
    assert shown["undone"] == "[1, 2, 3]\n"
    assert "score     0  nsmagic-kept" in shown["kept-code"]
    own = [int(line.split()[-5]) for line in shown["pages-code"].splitlines()]
    assert own[0] > 64
    assert own[1] + 10 < own[2] < 64


# ---- at any moment -----------------------------------------------------------------------------------------------


def test_killed_at_any_moment_the_state_is_before_or_after(kernel: Any) -> None:
    rounds = int(os.environ.get("NSMAGIC_STATE_ROUNDS", "40"))
    ok(kernel, "import time\na = b = 0\nbig = bytearray(8 << 20)")
    seen, killed = 0, 0
    chance = random.Random(7)
    for number in range(rounds):
        name = kernel.send(
            f"a += 1; big[:] = bytes([a % 256]) * len(big); time.sleep({chance.random() / 50}); b += 1"
        )
        time.sleep(chance.random() / 20)
        os.kill(payload(kernel), signal.SIGKILL)
        cell = kernel.wait(name)
        killed += cell.reply["status"] == "error"
        kernel.drain()
        for _ in range(3):  # it may have died between cells, and say so now
            cell = kernel.run("print(a, b, set(big) == {a % 256})")
            if cell.reply["status"] == "ok":
                break
        after = [int(word) for word in cell.text.split()[:2]]
        assert after[0] == after[1], (number, cell)
        assert after[0] in {seen, seen + 1}, (number, seen, cell)
        assert cell.text.endswith("True\n")
        seen = after[0]
    assert killed > 0


@pytest.mark.limits
@pytest.mark.parametrize("heap", [20, 80, 200], ids=lambda heap: f"{heap}M")
def test_out_of_memory_takes_the_cell_and_not_the_snapshot(start: Callable[..., Any], heap: int) -> None:
    kernel = start("isolated-python", "--mem", "512M", "--keep-state", "on", limits=True)
    ok(kernel, f"import os\nkept = os.urandom({heap} << 20); sample = kept[::4096]")
    for _ in range(int(os.environ.get("NSMAGIC_STATE_ROUNDS", "5"))):
        error = kernel.run("hog = []\nwhile True: hog.append(bytearray(8 << 20))").error
        assert error.startswith("OutOfMemory: out of memory: it needed more than its limit of 512 MiB"), error
        assert KEPT in error
        assert ok(kernel, "print(kept[::4096] == sample, 'hog' in globals())").text == "True False\n"


@pytest.mark.limits
def test_what_the_snapshot_took_is_said(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python", "--mem", "400M", "--keep-state", "on", limits=True)
    ok(kernel, "data = bytearray(250 << 20)")
    error = kernel.run("for start in range(0, len(data), 4096): data[start] = 1").error
    assert re.search(r"\d+(\.\d+)? MiB of that were the snapshot's", error), error
    assert KEPT in error
    assert ok(kernel, "print(any(data[::4096]))").text == "False\n"


@pytest.mark.limits
def test_much_memory_speaks_against_it(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python", "--mem", "400M", limits=True)
    ok(kernel, "data = bytearray(250 << 20)")
    assert "are more than half of --mem" in ok(kernel, "a = 1").stream("stderr")
    ok(kernel, "del data")
    ok(kernel, "a = 2")
    assert KEPT in kernel.run(DIE).error
