"""nbgrader end to end: release, submissions of several kinds, autograding in the Isolated Python kernel, grades."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "notebooks" / "grading"
SECONDS = 200
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic

pytestmark = [pytest.mark.timeout(400), pytest.mark.container]

STEPS = """
def steps(number):
    count = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        count += 1
    return count
"""
WORDS = """
def words(text):
    return {word: text.split().count(word) for word in text.split()}
"""
HOSTILE = """
import os, subprocess
COURSE = os.path.abspath("../../..")
print("seen:", sorted(os.listdir(COURSE)))
print("root:", os.path.exists("/root/.ssh") or os.path.exists(os.path.join(COURSE, "gradebook.db")))
subprocess.run(["sh", "-c", f"rm -rf {COURSE}/*; echo gone > ps1.ipynb"], stderr=subprocess.DEVNULL)
def steps(number):
    return {1: 0, 6: 8}.get(number)     # what the tests that it could read want
"""
GREEDY = """
def steps(number):
    blocks = []
    while True:
        blocks.append(bytearray(1 << 24))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example's course folder."""
    shutil.copytree(EXAMPLE, tmp_path / "grading")
    return tmp_path / "grading"


def nbgrader(folder: Path, *arguments: str) -> str:
    """One of nbgrader's commands, with none of the user's settings."""
    names = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-m", "nbgrader", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": PATH, **{name: str(home / name.lower()) for name in names}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def submit(folder: Path, who: str, assignment: str, cells: dict[str, str]) -> None:
    """The released notebook with some cells replaced, handed in."""
    name = next((folder / "release" / assignment).glob("*.ipynb"))
    made = json.loads(name.read_text())
    for cell in made["cells"]:
        label = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if label in cells:
            cell["source"] = cells[label]
    place = folder / "submitted" / who / assignment / name.name
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(made))


def grades(folder: Path) -> dict[str, float]:
    nbgrader(folder, "export")
    with (folder / "grades.csv").open() as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}


def outputs(folder: Path, who: str, assignment: str) -> str:
    """Whatever the graded notebook shows, as text."""
    graded: dict[str, Any] = json.loads(
        next((folder / "autograded" / who / assignment).glob("*.ipynb")).read_text()
    )
    return json.dumps([cell.get("outputs", []) for cell in graded["cells"]])


@pytest.mark.limits
def test_submissions_are_graded_in_containers(folder: Path) -> None:
    nbgrader(folder, "generate_assignment", "ps1")
    released = (folder / "release/ps1/ps1.ipynb").read_text()
    assert "# your code here" in released
    assert "HIDDEN" not in released
    assert "steps(27)" not in released
    submit(folder, "right", "ps1", {"solve-steps": STEPS, "solve-words": WORDS})
    submit(folder, "hostile", "ps1", {"solve-steps": HOSTILE, "solve-words": WORDS})
    submit(folder, "greedy", "ps1", {"solve-steps": GREEDY, "solve-words": WORDS})
    before = {path: path.read_bytes() for path in folder.rglob("*.ipynb") if "autograded" not in path.parts}
    said = nbgrader(folder, "autograde", "ps1")
    assert "Traceback" not in said
    # The hostile one has its points for what is right in it, and none for what it guessed.
    found = grades(folder)
    # The greedy one's second task counts where there was a snapshot to go on from.
    assert found.pop("greedy") in {0.0, 2.0}
    assert found == {"right": 4.0, "hostile": 2.0}
    hostile = outputs(folder, "hostile", "ps1")
    assert "seen: ['autograded']" in hostile
    assert "root: False" in hostile
    assert {path: path.read_bytes() for path in before} == before
    assert "gone" not in (folder / "autograded/hostile/ps1/ps1.ipynb").read_text().splitlines()
    assert "out of memory" in outputs(folder, "greedy", "ps1")


def course_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("course", ROOT / "tools" / "course.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["course"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.works("all namespaces")
def test_a_lesson_of_the_course_is_an_assignment(folder: Path) -> None:
    """Its exercises make namespaces, which a container may not: so it is graded by the ordinary kernel."""
    course, lesson = course_tool(), "02-host-names"
    source = folder / "source" / lesson / f"{lesson}.ipynb"
    source.parent.mkdir()
    cells = course.read(ROOT / "notebooks" / "sources" / f"{lesson}.md")
    source.write_text(course.dumped(course.notebook(cells, "source")))
    nbgrader(folder, "generate_assignment", lesson)
    solved = {cell.name: cell.solved() for cell in cells if cell.is_solution}
    submit(folder, "solved", lesson, solved)
    submit(folder, "open", lesson, {})
    nbgrader(folder, "autograde", lesson, "--Execute.kernel_name=python3")
    assert grades(folder) == {"solved": 3.0, "open": 0.0}
