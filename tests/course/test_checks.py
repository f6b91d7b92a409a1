"""Checks, hints and the course's magics: whatever goes wrong, a student gets a sentence."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import scratch
from nsmagic.course import exercise, look, needs, showing
from nsmagic.course.drawing import Drawing, Picture
from nsmagic.course.outside import Process
from nsmagic.errors import ExerciseError, SpecError
from nsmagic.host import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


YES, NO = True, False


def made(check: Callable[[look.Look], None], **more: Any) -> exercise.Exercise:
    """An exercise of lesson 02 that no list knows of."""
    return exercise.Exercise("02x", "Something is done", ("A nudge.", "Nearly all."), (), check, **more)


def said(verdict: exercise.Verdict) -> str:
    shown = showing.verdict(verdict)
    assert "<script" not in shown["text/html"]
    return shown["text/plain"]


@pytest.fixture
def lab(quiet: object) -> Iterator[scratch.Scratch]:
    process, _ = scratch.start("lab", {}, best_effort=True)
    yield process
    scratch.stop("lab")


class Silent:
    def stream(self, name: str, data: bytes) -> None:
        pass


# ---- verdicts -------------------------------------------------------------------------------------------


def test_a_check_that_looks_at_nothing_does_not_pass() -> None:
    assert not exercise.check(made(lambda _: None), {}).passed


def test_one_thing_that_is_not_as_expected_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "")

    def both(looking: look.Look) -> None:
        looking.expect(YES, "one", 1, "1")
        looking.expect(NO, "two", 2, "3")
        looking.expect(YES, "three", 3, "3")

    verdict = exercise.check(made(both), {})
    assert [each.met for each in verdict.findings] == [True, False, True]
    assert not verdict.passed
    assert "✗ two" in said(verdict)
    assert "Hint 1 of 2: A nudge." in said(verdict)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("by zero"), "the check itself"),
        (PermissionError(13, "Permission denied", "/proc/1/ns/uts"), "/proc/1/ns/uts: Permission denied"),
        (ProcessLookupError(3, "No such process"), "gone"),
        (FileNotFoundError(2, "No such file", "/proc/77/status"), "gone (/proc/77/status)"),
    ],
)
def test_a_check_that_crashes_is_a_sentence(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "")

    def crash(looking: look.Look) -> None:
        looking.expect(YES, "something", "good", "good")
        raise error

    verdict = exercise.check(made(crash), {})
    assert not verdict.passed
    assert words in said(verdict)
    assert "Traceback" not in said(verdict)


def test_hostile_text_is_cut_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "")
    name = "<script>alert(1)</script>\n\x1b[31m" + "x" * 5000
    verdict = exercise.check(made(lambda looking: looking.require(NO, "a name", name, "another")), {})
    found = verdict.findings[0].found
    assert len(found) < 400
    assert "\n" not in found
    assert "\x1b" not in found
    html = showing.verdict(verdict)["text/html"]
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_what_the_host_lacks_is_said_instead_of_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "--mem: no cgroup")
    verdict = exercise.check(made(lambda looking: looking.require(NO, "a", "b", "c")), {})
    assert "This host lacks what it needs: --mem: no cgroup" in said(verdict)
    assert "Hint" not in said(verdict)


def test_a_look_is_repeated_until_things_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "")
    looks = iter([False, False, True])
    verdict = exercise.check(
        made(lambda looking: looking.require(next(looks), "it", "there", "there"), settles=60.0), {}
    )
    assert verdict.passed
    assert len(verdict.findings) == 1


# ---- what is looked with -------------------------------------------------------------------------------


def test_an_answer_must_be_there_and_of_its_kind() -> None:
    for value in (None, ..., "12", True):
        looking = look.Look({"pid": value})
        with pytest.raises(look.Unmet):
            looking.answer("pid", int)
        assert not looking.findings[0].met
    assert look.Look({"pid": 12}).answer("pid", int) == 12


def test_who_does_not_live_is_said() -> None:
    for ask in (lambda each: each.scratch("nobody"), lambda each: each.container("nobody"), look.Look.last):
        looking = look.Look({})
        with pytest.raises(look.Unmet):
            ask(looking)
        assert "none" in looking.findings[0].found


def test_a_process_from_outside(lab: scratch.Scratch) -> None:
    process, here = Process(lab.pid, "lab"), Process.here()
    assert process.ns("uts") == here.ns("uts")
    assert process.pids()[0] == lab.pid
    assert process.ids("uid") == here.ids("uid")
    assert (process.root(), process.cwd()) == ("/", os.getcwd())
    assert process.state in "SR"
    assert process.children() == []
    assert any(each.target == "/proc" and each.fstype == "proc" for each in process.mounts())
    assert process.inside("uts", "ipc", "net", "time").hostname == os.uname().nodename


@pytest.mark.works("user namespace", "uts namespace")
def test_a_name_is_asked_for_inside(lab: scratch.Scratch) -> None:
    lab.run(
        "from nsmagic.linux import *\nunshare(CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWNET)\nsethostname('box')",
        Silent(),
    )
    process = Process(lab.pid, "lab")
    facts = process.inside("uts", "net")
    assert (facts.hostname, facts.devices) == ("box", ["lo"])
    assert process.ns_owner("uts") == process.ns("user")
    assert process.ns_above("user") == Process.here().ns("user")
    assert process.id_map("uid") == []
    assert process.capabilities("Eff")


def test_a_process_that_has_ended_is_no_traceback(
    lab: scratch.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exercise, "lacking", lambda *_: "")
    process = Process(lab.pid, "lab")
    os.kill(lab.pid, signal.SIGKILL)
    scratch.stop("lab")
    for ask in (
        Process.status,
        Process.mounts,
        Process.children,
        Process.root,
        lambda each: each.inside("uts"),
    ):
        verdict = exercise.check(
            made(lambda looking, ask=ask: looking.require(bool(ask(process)), "a", "b", "c")), {}
        )
        assert not verdict.passed
        assert "the check itself" not in said(verdict), said(verdict)


# ---- the magics ---------------------------------------------------------------------------------------------


@pytest.fixture
def shell() -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell

    from nsmagic import course_magics

    found = InteractiveShell.instance()
    course_magics.load(found)
    yield found
    InteractiveShell.clear_instance()


def test_check_shows_and_raises_one_line(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExerciseError) as caught:
        shell.run_line_magic("check", "00a")
    assert caught.value._render_traceback_() == ["00a is not solved yet; see above"]
    printed = capsys.readouterr()
    assert "00a not solved yet" in printed.out
    assert printed.err == ""


def test_hints_say_more_each_time(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    exercise.find("00a").given = 0
    for line in ("00a", "00a", "00a"):
        shell.run_line_magic("hint", line)
    shell.run_line_magic("check", "00a --hint")
    numbers = re.findall(r"hint (\d) of (\d)", capsys.readouterr().out)
    assert numbers == [("1", "2"), ("2", "2"), ("2", "2"), ("2", "2")]


@pytest.mark.parametrize(
    ("magic", "line", "words"),
    [
        ("check", "", "needs an exercise"),
        ("check", "zz", "needs an exercise"),
        ("check", "00q", "there are: 00a, 00b"),
        ("check", "77a", "there is no lesson"),
        ("hint", "00a 00b", "needs an exercise"),
        ("lesson", "77", "there is no lesson"),
        ("picture", "", "needs a lesson"),
    ],
)
def test_bad_words_are_one_clear_line(shell: Any, magic: str, line: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        shell.run_line_magic(magic, line)


def test_needs_leaves_a_cell_out_or_runs_it(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(needs._known, "--mem", Finding("--mem", "missing", "no cgroup", "Get one."))
    monkeypatch.setitem(needs._known, "--pids", Finding("--pids", "works", "fine"))
    ran: list[tuple[str, str]] = []
    shell.register_magic_function(lambda line, cell: ran.append((line, cell)), "cell", "probe")
    shell.run_cell_magic("needs", "--mem --pids", "%%probe a b\nbody\n")
    assert ran == []
    assert "Left out" in capsys.readouterr().out
    shell.run_cell_magic("needs", "--pids", "%%probe a b\nbody\n")
    assert ran == [("a b", "body\n")]
    with pytest.raises(SpecError, match="stands over another cell magic"):
        shell.run_cell_magic("needs", "--pids", "print(1)")


def test_the_course_costs_nothing_until_it_is_used() -> None:
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell; import nsmagic;"
        "shell = InteractiveShell.instance(); nsmagic.load_ipython_extension(shell);"
        "print([name for name in sys.modules if name.startswith('nsmagic.course.') or name == 'nsmagic.course'])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.strip() == "[]"


# ---- pictures ------------------------------------------------------------------------------------------------


def test_a_picture_is_an_image_whose_texts_are_escaped() -> None:
    drawing = Drawing(100, 50)
    drawing.box(0, 0, 100, 50, "<b>&\x1b")
    drawing.arrow(0, 0, 10, 10, '"><script>')
    svg = drawing.svg()
    assert "<b>" not in svg
    assert "<script" not in svg
    assert "\x1b" not in svg
    html = Picture(svg, 'a "picture" <of> it').bundle()["text/html"]
    assert html.startswith('<img alt="a &quot;picture&quot; &lt;of&gt; it"')


def test_a_lacking_lesson_says_what_and_how_to_mend_it() -> None:
    from nsmagic.course.lessons import find

    row = Finding("all namespaces", "missing", "refused", "Do this.")
    shown = showing.lesson(find("02"), [row])
    assert "lacks what most cells here need" in shown["text/plain"]
    assert "Do this." in shown["text/plain"]
    shown = showing.lesson(find("10"), [Finding("--mem", "missing", "refused", "Do that.")])
    assert "lacks what some cells here need" in shown["text/plain"]
