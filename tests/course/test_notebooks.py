"""The course, run from top to bottom: with its solutions every check passes, and without them every check fails."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

from nsmagic import host
from nsmagic.course import exercise, lessons

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
SECONDS = 100

pytestmark = [pytest.mark.timeout(300)]


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("course", ROOT / "tools" / "course.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["course"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


course = load_tool()
SOURCES = course.sources()
each_source = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


class OwnKernel(AsyncKernelManager):  # type: ignore[misc]
    """Starts this interpreter's own kernel, whatever the user has installed."""

    @default("kernel_spec_manager")  # type: ignore[untyped-decorator]
    def _no_other_specs(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def run(source: Path, text: str, folder: Path) -> dict[str, Any]:
    """The notebook's code cells by name, after a run in an empty folder."""
    node = nbformat.reads(json.dumps(course.notebook(course.read(source), text)), as_version=4)
    (folder / "work").mkdir()
    where = {"metadata": {"path": str(folder / "work")}}
    client = nbclient.NotebookClient(
        node, kernel_manager_class=OwnKernel, timeout=SECONDS, allow_errors=True, resources=where
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
    return {cell["id"]: cell for cell in node.cells if cell["cell_type"] == "code"}


def error(cell: Any) -> str:
    """What a cell raised, as one reads it; empty where it did not."""
    found = [each for each in cell["outputs"] if each["output_type"] == "error"]
    text = "\n".join("\n".join([each["ename"], *each["traceback"]]) for each in found)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def shown(cell: Any) -> str:
    """All that a cell shows, as text."""
    parts = [each["data"].get("text/plain", "") for each in cell["outputs"] if "data" in each]
    return "\n".join([*parts, *(each["text"] for each in cell["outputs"] if "text" in each), error(cell)])


@functools.cache
def _finding(feature: str) -> host.Finding:
    return host.examine(only=[feature])[-1]


def lack(features: tuple[str, ...]) -> str:
    """Which of these features do not work here, by the doctor's own word; empty where all do."""
    return "; ".join(each for each in features if _finding(each).status != "works")


def exercises(source: Path) -> dict[str, exercise.Exercise]:
    return {each.label: each for each in exercise.of_lesson(source.name[:2])}


# ---- what can be seen without running anything ---------------------------------------------------------


@each_source
def test_the_published_notebook_is_what_its_source_says(source: Path) -> None:
    published = ROOT / "notebooks" / f"{source.stem}.ipynb"
    nbformat.validate(nbformat.read(published, as_version=nbformat.NO_CONVERT))
    assert course.same(source, json.loads(published.read_text())), "make course"


@each_source
def test_a_lesson_has_its_parts(source: Path) -> None:
    cells = course.read(source)
    lesson = lessons.find(source.name[:2])
    assert source.stem == lesson.name
    assert cells[0].text.startswith(f"# {lesson.number} · {lesson.title}")
    assert "you can say" in cells[0].text
    first = next(cell for cell in cells if cell.kind == "code")
    assert first.text == f"%load_ext nsmagic\n%lesson {lesson.number}"
    assert [cell.text for cell in cells if "%picture" in cell.text] == [f"%picture {lesson.number}"]
    assert cells[-1].text.startswith("## Three questions")
    assert re.findall(r"^(\d)\. ", cells[-1].text, re.MULTILINE) == ["1", "2", "3"]
    prose = "\n".join(cell.text for cell in cells if cell.kind == "markdown")
    assert re.search(r"\w\(\d\w*\)", prose), "no manual page is named"
    assert "TODO" not in prose


@each_source
def test_exercises_and_their_checks_are_each_other_s(source: Path) -> None:
    names = [cell.name for cell in course.read(source) if cell.kind == "code"]
    checked = [name.partition("-")[2] for name in names if name.startswith("check-")]
    assert checked == sorted(exercises(source))
    for label in checked:
        assert f"solve-{label}" in names[: names.index(f"check-{label}")]


@each_source
def test_grading_s_metadata(source: Path) -> None:
    made = course.notebook(course.read(source), "source")
    for cell in made["cells"]:
        grading = cell["metadata"].get("nbgrader")
        if cell["id"].startswith(("solve-", "check-")):
            assert (grading["grade"], grading["solution"]) == (
                cell["id"][:5] == "check",
                cell["id"][:5] == "solve",
            )
            assert grading["grade_id"] == cell["id"]
        else:
            assert grading is None


def test_hints_come_in_tiers() -> None:
    for source in SOURCES:
        for each in exercises(source).values():
            assert len(each.hints) >= 2, each.label
            assert not each.goal.endswith(".")


# ---- run ---------------------------------------------------------------------------------------------------


@each_source
def test_with_its_solutions_every_check_passes(source: Path, tmp_path: Path) -> None:
    lesson, known = lessons.find(source.name[:2]), exercises(source)
    cells = course.read(source)
    found = run(source, "solved", tmp_path)
    first = next(iter(found.values()))
    assert not error(first)
    if lack(lesson.needs):
        assert "This host lacks" in shown(first)
        return
    assert ("This host lacks" in shown(first)) == bool(lack(lesson.partly))
    for cell in cells:
        if cell.kind == "code":
            text = error(found[cell.name])
            label = cell.name.partition("-")[2]
            if cell.is_check and lack(known[label].needs):
                assert "lacks" in text, cell.name
            elif "raises-exception" in cell.tags and "Left out:" not in shown(found[cell.name]):
                assert text, f"{cell.name} raised nothing"
            else:
                assert not text, f"{cell.name}: {shown(found[cell.name])}"


@each_source
def test_without_them_every_check_fails(source: Path, tmp_path: Path) -> None:
    if lack(lessons.find(source.name[:2]).needs):
        pytest.skip(f"host: lacks what the lesson needs: {lack(lessons.find(source.name[:2]).needs)}")
    found = run(source, "student", tmp_path)
    cells = course.read(source)
    for cell in cells:
        if cell.kind == "code":
            text = error(found[cell.name])
            if cell.is_check:
                assert text.startswith("ExerciseError\n"), f"{cell.name}: {shown(found[cell.name])}"
                assert "the check itself" not in shown(found[cell.name]), shown(found[cell.name])
            elif "raises-exception" not in cell.tags:
                assert not text, f"{cell.name}: {shown(found[cell.name])}"
