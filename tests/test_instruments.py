"""The instruments, in a real IPython: what they show is what the kernel says."""

from __future__ import annotations

import errno
import html
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import both, explain, namespaces, reasons, timeline
from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("instruments")


class Shell:
    """An IPython shell; what is displayed and printed is kept."""

    def __init__(self) -> None:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell.instance(config=config)
        self.shown: list[dict[str, str]] = []
        self.shell.display_pub.publish = self._publish

    def _publish(self, data: dict[str, str], metadata: object = None, **rest: object) -> None:
        self.shown.append(dict(data))

    def run(self, cell: str) -> list[dict[str, str]]:
        """Run a cell; what it displayed."""
        self.shown.clear()
        result = self.shell.run_cell(cell, store_history=False)
        result.raise_error()
        return list(self.shown)

    def table(self, cell: str) -> list[list[str]]:
        """Run a cell that displays one table; its rows."""
        (shown,) = self.run(cell)
        assert "<table" in shown["text/html"]
        return [re.split(r"  +", line) for line in shown["text/plain"].splitlines()]


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    shell = Shell()
    shell.run("%load_ext nsmagic")
    yield shell
    shell.run("%unload_ext nsmagic")
    shell.shell.clear_instance()


def test_each_namespace_is_shown_with_the_inode_that_it_has(
    shell: Shell, quiet: Path, until: Callable[..., bool]
) -> None:
    cell = "import os\nfor n in os.listdir('/proc/self/ns'): print(n, os.readlink('/proc/self/ns/' + n))\n"
    shell.run(
        f"%%contain --bg --proc job --out seen\n{cell}open('/tmp/ready', 'w')\nimport time; time.sleep(60)"
    )
    job = shell.shell.user_ns["job"]
    try:
        assert until(
            lambda: any("/tmp/ready" in row[-1] for row in shell.table(f"%changes {job.container.number}"))
        )
        table = shell.table("%namespaces")
        (number,) = [word for word in table[0] if word.startswith("container ")]
        for row in table[1:]:
            name = namespaces.FILES[row[0]]
            assert row[1] == os.readlink(f"/proc/self/ns/{name}").partition("[")[2].rstrip("]")
            assert row[2].startswith("* "), "all namespaces are the container's own"
        assert [row[0] for row in table[1:]] == list(NAMESPACES)
        assert shell.table(f"%namespaces {number.split()[1]}") == table
    finally:
        job.stop()
        job.wait(20)
    inside = dict(line.split() for line in shell.shell.user_ns["seen"].splitlines())
    for row in table[1:]:
        assert inside[namespaces.FILES[row[0]]].partition("[")[2].rstrip("]") == row[2].removeprefix("* ")


def test_a_namespace_that_is_shared_is_marked_as_equal(
    shell: Shell, quiet: Path, until: Callable[..., bool]
) -> None:
    shell.run(
        "%%contain --bg --proc job --ns uts,user,pid --net host -w /usr/share\nimport time; time.sleep(60)"
    )
    job = shell.shell.user_ns["job"]
    try:
        # Until its process is there, there is no column for it.
        assert until(lambda: "container" in "".join(shell.table("%namespaces")[0]))
        marks = {row[0]: row[2][0] for row in shell.table("%namespaces")[1:]}
    finally:
        job.stop()
        job.wait(20)
    assert {kind for kind, mark in marks.items() if mark == "*"} == {"uts", "user", "pid"}
    assert {kind for kind, mark in marks.items() if mark == "="} == set(NAMESPACES) - {"uts", "user", "pid"}


def test_without_a_live_container_the_host_is_shown(shell: Shell, quiet: Path) -> None:
    table = shell.table("%namespaces")
    assert table[0][1].startswith("this notebook")
    assert len(table) == len(NAMESPACES) + 1


@pytest.mark.parametrize("magic", ["%namespaces 4711", "%namespaces web", "%changes 4711"])
def test_an_unknown_container_is_an_error_that_says_which_there_are(shell: Shell, magic: str) -> None:
    with pytest.raises(Exception, match="is no live container of this notebook; live: "):
        shell.run(magic)


def test_changes_of_the_last_cell_and_of_a_live_one(
    shell: Shell, project: Path, until: Callable[..., bool]
) -> None:
    shell.run("%%contain\nopen('new.txt', 'w').write('abc')\nimport os; os.remove('gone.txt')")
    rows = shell.table("%changes")
    assert ["added", f"{project}/new.txt (3 bytes)"] in rows
    assert ["deleted", f"{project}/gone.txt"] in rows
    shell.run("%%contain --bg --proc job\nopen('live.txt', 'w').write('x')\nimport time; time.sleep(60)")
    job = shell.shell.user_ns["job"]
    try:
        number = job.container.number
        live = ["added", f"{project}/live.txt (1 bytes)"]
        assert until(lambda: live in shell.table(f"%changes {number}"))
    finally:
        job.stop()
        job.wait(20)
    assert not (project / "live.txt").exists()


def test_both_sides_are_shown_and_what_differs_is_marked(shell: Shell, quiet: Path) -> None:
    (shown,) = shell.run("%%both --harmless\nimport os\nprint('alike')\nos.getpid()")
    lines = shown["text/plain"].splitlines()
    assert lines[2].split() == ["alike", "alike"]
    outside, mark, inside = lines[3].split()
    assert mark == "|"
    assert inside == "2"
    assert int(outside) > 2
    assert "alike" in shown["text/html"]


def test_both_asks_before_it_runs_anything_outside(
    shell: Shell, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        def ask(question: str) -> str:
            asked.append(question)
            return text

        return ask

    cell = "%%both\nopen('touched', 'a').close()"
    monkeypatch.setattr("builtins.input", answer("n"))
    with pytest.raises(Exception, match="was not run"):
        shell.run(cell)
    assert not (project / "touched").exists()
    monkeypatch.setattr("builtins.input", answer("y"))
    shell.run(cell)
    assert (project / "touched").exists()
    assert all("your own system" in question for question in asked)
    assert len(asked) == 2


def test_what_a_cell_prints_cannot_become_markup() -> None:
    left, right = (
        both.Side("outside", "<b>x</b>\n"),
        both.Side("inside", "<script>y</script>\n", "exit status 1"),
    )
    page = both.bundle(left, right)["text/html"]
    assert "<script>" not in page
    assert html.escape("<script>y</script>") in page
    assert "[exit status 1]" in page


def test_the_last_expression_is_shown_once() -> None:
    assert "print(repr(" in both.shown_last("x = 1\nx")
    assert both.shown_last("x = 1") == "x = 1"
    with pytest.raises(SyntaxError):
        both.shown_last("x =")


@pytest.mark.parametrize(
    "options",
    [{}, {"ns": "all-user", "workdir": "/"}, {"ns": "user,net", "workdir": "/"}, {"hostname": "other"}],
    ids=str,
)
def test_every_call_of_a_real_run_has_a_reason_and_a_page(options: dict[str, Any], quiet: Path) -> None:
    import nsmagic

    if options.get("ns") == "all-user" and os.geteuid() != 0:
        pytest.skip("host: not root")
    journal = nsmagic.run("pass", **options).check().journal
    without = {f"{step.step} {step.call}" for step in journal if not all(reasons.why(step))}
    assert not without


def test_a_container_that_joins_another_has_a_lane_more(quiet: Path) -> None:
    import nsmagic

    with nsmagic.Container(name="explained"):
        journal = nsmagic.run("pass", join="explained:net,uts").check().journal
    assert {row.who for row in explain.rows(journal)} == set(timeline.LANES) - {"network"}
    assert not {f"{step.step} {step.call}" for step in journal if not all(reasons.why(step))}
    assert "joiner: " in timeline.drawing(journal)


def test_explain_groups_like_calls_and_keeps_their_order(quiet: Path) -> None:
    import nsmagic

    journal = nsmagic.run("pass").check().journal
    rows = explain.rows(journal)
    assert sum(row.count for row in rows) == len(journal)
    assert {row.who for row in rows} == set(timeline.LANES) - {"joiner", "network"}
    assert [row.began for row in rows] == sorted(row.began for row in rows)
    calls = [row.call.partition("(")[0] for row in rows]
    assert calls.index("pivot_root") < calls.index("umount2")
    shown = explain.bundle(journal)
    assert "pivot_root" in shown["text/plain"]
    assert "data:image/svg+xml;base64," in shown["text/html"]
    assert timeline.drawing(journal).count("<rect") > len(timeline.LANES)
    assert "joiner" not in timeline.drawing(journal)


def test_a_failed_step_is_shown_with_its_errno_in_words(quiet: Path) -> None:
    from nsmagic import StartError, run

    with pytest.raises(StartError) as failed:
        run("pass", bind="/usr/share:/usr/no-such/x")
    journal = failed.value.journal
    words = f"FAILED: {errno.errorcode[failed.value.errno]}, {os.strerror(failed.value.errno)}"
    assert words in explain.text(journal, failed.value)
    assert html.escape(words) in explain.bundle(journal, failed.value)["text/html"]


def test_there_may_be_no_journal() -> None:
    assert "no journal" in explain.bundle(())["text/plain"]


def test_explain_in_a_notebook(shell: Shell, quiet: Path) -> None:
    shown: list[dict[str, Any]] = shell.run("%%contain --explain\nprint(1)")
    assert "sethostname" in shown[-1]["text/plain"]
    assert shell.shell.user_ns["_contained"].ok


def test_explain_of_a_container_that_cannot_be_built(shell: Shell, quiet: Path) -> None:
    with pytest.raises(Exception, match="could not be built"):
        shell.run("%%contain --explain --bind /usr/share:/usr/no-such/x\nprint(1)")
    assert "FAILED" in shell.shown[-1]["text/plain"]


def test_explain_on_the_command_line(quiet: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "nsmagic.cli", "run", "--explain", "-c", "print('hi')"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "hi\n"
    assert "pivot_root" in done.stderr
