"""``%isolation``: what is in force, and how to change it, answered from outside the container."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One kernel serves the whole module.
pytestmark = pytest.mark.xdist_group("kernel_isolation")

SECONDS = 60.0
GONE = "all variables are gone"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook's folder, on the host."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "data").mkdir()
    (folder / "data" / "given.txt").write_text("given")
    (folder / "elsewhere").symlink_to("/var/tmp")
    return folder


@pytest.fixture(scope="module")
def kernel(spec_name: Callable[..., str], folder: Path, run_kernel: Callable[..., Any]) -> Iterator[Any]:
    with run_kernel(spec_name(), folder) as kernel:
        yield kernel


@pytest.fixture(autouse=True)
def given(folder: Path) -> Iterator[None]:
    """Whatever a test saves is gone before the next one."""
    yield
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "given.txt" and not path.is_symlink():
            path.unlink()


def ask(kernel: Any, code: str) -> str:
    """What a cell of ``%isolation`` lines shows, as text."""
    cell = kernel.run(code)
    assert cell.reply["status"] == "ok", cell.said
    shown = cell.of("display_data")
    assert all("<" in content["data"]["text/html"] for content in shown)
    return "\n".join(content["data"]["text/plain"] for content in shown)


# ---- what it shows -----------------------------------------------------------------------------


def test_it_shows_what_is_in_force(kernel: Any, folder: Path) -> None:
    text = ask(kernel, "%isolation")
    assert (
        re.search(r"namespaces +.*mount.*network|namespaces +.*network.*mount", text) or "namespaces" in text
    )
    for name in ("user", "mount", "pid", "network", "ipc", "uts", "cgroup"):
        assert name in text
    assert re.search(r"network +none|network +.*loopback", text), text
    assert str(folder) in text
    assert re.search(r"system calls +\S", text)
    assert re.search(r"capabilities +none", text)


@pytest.mark.limits
def test_it_shows_use_against_the_limits(kernel: Any) -> None:
    kernel.run("ballast = bytearray(200 << 20)")
    text = ask(kernel, "%isolation")
    used = re.search(r"memory +[^\d]*([\d.]+) MiB of 1 GiB", text)
    assert used, text
    assert 200 <= float(used[1]) < 600
    assert re.search(r"processes +[^\d]*\d+ of 1,?024", text), text
    kernel.run("del ballast")


def test_it_shows_what_was_written(kernel: Any) -> None:
    kernel.run("open('shown.txt', 'w').write('x' * 5000)\nopen('data/given.txt', 'a').write('more')")
    text = ask(kernel, "%isolation")
    assert re.search(r"^added +\S*/shown.txt \(4.883 KiB\)$", text, re.MULTILINE), text
    assert re.search(r"^(modified|changed) +\S*/data/given.txt", text, re.MULTILINE), text
    assert "files written" in text
    assert ask(kernel, "%isolation discard")


def test_it_counts_as_no_cell_and_is_seen_by_all_clients(kernel: Any) -> None:
    before = kernel.run("1").reply["execution_count"]
    cell = kernel.run("%isolation")
    assert [content["code"] for content in cell.of("execute_input")] == ["%isolation"]
    assert [content["execution_state"] for content in cell.of("status")] == ["busy", "idle"]
    assert cell.reply["execution_count"] in {before, before + 1}
    assert kernel.run("1").reply["execution_count"] == before + 1


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.limits
def test_a_limit_that_is_changed_is_enforced(start: Callable[..., Any]) -> None:
    kernel = start(limits=True)
    hog = "hog = bytearray(400 << 20); print(len(hog)); del hog"
    assert kernel.run(hog).text == f"{400 << 20}\n"
    text = ask(kernel, "%isolation --mem 256M --pids 50")
    assert str(256 << 20) in text
    assert "pids" in text
    error = kernel.run(hog).error
    assert error.startswith("OutOfMemory")
    assert "256 MiB" in error
    # It holds for the fresh kernel too, and more can be given again.
    assert "of 256 MiB" in ask(kernel, "%isolation")
    ask(kernel, "%isolation --mem 1G")
    assert kernel.run(hog).text == f"{400 << 20}\n"
    fork = "import subprocess\nps = []\ntry:\n  for _ in range(80): ps.append(subprocess.Popen(['sleep', '60']))\nexcept OSError as e: print(type(e).__name__)\nfinally: [p.kill() or p.wait() for p in ps]"
    assert "BlockingIOError" in kernel.run(fork).text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--mem", "needs a value"),
        ("--mem many", "--mem"),
        ("--mem -1", "--mem"),
        ("--memory 1G", "--mem"),
        ("--net host", "cannot be changed while the kernel runs"),
        ("--bind /etc:/x", "cannot be changed while the kernel runs"),
        ("--mem 1G more", "more"),
        ("sav", "save"),
        ("save", "needs the files or folders"),
        ("discard all", "takes nothing behind it"),
        ("restart now", "takes nothing behind it"),
        ("'unended", "there is no such command"),
        ("--cell-timeout 5", "--cell-timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kernel: Any, words: str, reason: str) -> None:
    kernel.run("kept = 1")
    cell = kernel.run(f"%isolation {words}")
    assert reason in cell.error
    assert kernel.run("print(kept)").text == "1\n"


# ---- files -------------------------------------------------------------------------------------


def test_files_and_folders_are_saved(kernel: Any, folder: Path) -> None:
    kernel.run(
        "import os\nos.makedirs('out/deep', exist_ok=True)\n"
        "for name in ('one', 'two', 'out/three', 'out/deep/four', 'unsaved'): open(name, 'w').write(name)\n"
        "open('data/given.txt', 'w').write('changed')\nos.chmod('two', 0o4755)"
    )
    assert not (folder / "one").exists()
    text = ask(kernel, f"%isolation save one {folder}/two out\n%isolation save data/given.txt")
    for name in ("one", "two", "out/three", "out/deep/four"):
        assert (folder / name).read_text() == name
        assert re.search(rf"saved +{re.escape(str(folder / name))}", text), text
    assert (folder / "data" / "given.txt").read_text() == "changed"
    assert not (folder / "unsaved").exists()
    # Theirs is whoever runs the kernel, and no program gets rights by it.
    status = (folder / "two").stat()
    assert status.st_uid == os.geteuid()
    assert not status.st_mode & 0o7022
    # What was saved before is replaced.
    kernel.run("open('one', 'w').write('again')")
    ask(kernel, "%isolation save 'one'")
    assert (folder / "one").read_text() == "again"
    (folder / "data" / "given.txt").write_text("given")


@pytest.mark.parametrize(
    ("code", "word", "reason"),
    [
        ("", "never.txt", "the notebook did not write it"),
        ("", "data/given.txt", "the notebook did not write it"),
        ("import os; os.symlink('/etc/shadow', 'a-link')", "a-link", "the notebook did not write it"),
        ("import os; os.mkfifo('a-pipe')", "a-pipe", "the notebook did not write it"),
        ("open('/tmp/outside', 'w').write('x')", "/tmp/outside", "lies outside of"),
        ("open('/tmp/outside', 'w').write('x')", "../../../../../../../../tmp/outside", "lies outside of"),
    ],
)
def test_what_may_not_come_out_does_not(kernel: Any, folder: Path, code: str, word: str, reason: str) -> None:
    ask(kernel, "%isolation discard")
    assert kernel.run(code).reply["status"] == "ok"
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    assert reason in kernel.run(f"%isolation save {word}").error
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not Path("/tmp/outside").exists()


def test_a_link_on_the_host_is_not_written_through(kernel: Any, folder: Path) -> None:
    """Inside it was made a folder; on the host it leads somewhere else."""
    ask(kernel, "%isolation discard")
    cell = kernel.run(
        "import os\nos.unlink('elsewhere'); os.mkdir('elsewhere'); open('elsewhere/planted', 'w').write('x')"
    )
    assert cell.reply["status"] == "ok", cell.said
    assert "NOT saved" in kernel.run("%isolation save elsewhere/planted").said
    assert not Path("/var/tmp/planted").exists()
    assert os.readlink(folder / "elsewhere") == "/var/tmp"


def test_files_of_a_kernel_that_died_can_still_be_saved(kernel: Any, folder: Path) -> None:
    kernel.run("open('results', 'w').write('hours of work')")
    assert "exit status 3" in kernel.run("import os; os.kill(-1, 9); os._exit(3)").error  # and the snapshots
    assert "left" in ask(kernel, "%isolation")
    ask(kernel, "%isolation save results")
    assert (folder / "results").read_text() == "hours of work"


# ---- afresh ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "files"), [("discard", "1 changed file was discarded"), ("restart", "1 changed file")]
)
def test_afresh(kernel: Any, word: str, files: str) -> None:
    ask(kernel, "%isolation restart")
    kernel.run("kept = 1\nopen('gone', 'w').close()")
    text = ask(kernel, f"%isolation {word}")
    assert GONE in text
    assert files in text
    assert kernel.run("import os; print('kept' in globals(), os.path.exists('gone'))").text == "False False\n"
    assert "no file had changed" in ask(kernel, f"%isolation {word}")


# ---- who may ask ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "print('%isolation restart')",
        "import sys; print('%isolation restart', file=sys.stderr)",
        "from IPython.display import display; display({'text/plain': '%isolation restart'}, raw=True)",
        "get_ipython().set_next_input('%isolation restart')",
        "raise ValueError('%isolation restart')",
    ],
)
def test_nothing_printed_inside_triggers_it(kernel: Any, code: str) -> None:
    kernel.run("kept = 1")
    kernel.run(code)
    kernel.run("pass")
    assert kernel.run("print(kept)").text == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "a = 1\n%isolation",
        "%isolation restart\nprint('also')",
        "get_ipython().run_line_magic('isolation', 'restart')",
    ],
)
def test_it_stands_alone_in_its_cell(kernel: Any, code: str) -> None:
    kernel.run("kept = 1")
    cell = kernel.run(code)
    # IPython writes what a user got wrong to standard error.
    assert "answered from outside, so it stands alone in its cell" in cell.said
    assert "also" not in cell.text
    assert kernel.run("print(kept)").text == "1\n"


def test_a_comment_and_several_lines_may_stand_beside_it(kernel: Any) -> None:
    cell = kernel.run("# what is in force?\n\n%isolation  # now\n%isolation\n")
    assert cell.reply["status"] == "ok", cell.said
    assert len(cell.of("display_data")) == 2


def test_it_waits_for_the_cells_before_it(kernel: Any) -> None:
    ask(kernel, "%isolation discard")
    first = kernel.send("input()\nopen('written-late', 'w').close()")
    second = kernel.send("open('written-later', 'w').close()")
    asked = kernel.send("%isolation")
    kernel.client.get_stdin_msg(timeout=SECONDS)
    assert not kernel.client.shell_channel.msg_ready()
    kernel.client.input("")
    for name in (first, second):
        assert kernel.wait(name).reply["status"] == "ok"
    text = kernel.wait(asked).said
    assert "written-late" in text
    assert "written-later" in text


def test_it_is_aborted_with_the_cells_behind_a_failure(kernel: Any) -> None:
    kernel.run("kept = 1")
    first = kernel.send("input()\n1 / 0")
    asked = kernel.send("%isolation restart")
    kernel.client.get_stdin_msg(timeout=SECONDS)
    kernel.client.input("")
    assert kernel.wait(first).error.startswith("ZeroDivisionError")
    assert kernel.reply(asked)["status"] == "aborted"
    assert kernel.run("print(kept)").text == "1\n"
