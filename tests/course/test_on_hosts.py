"""Lessons in a terminal's IPython, without a Jupyter server: on hosts of every kind, and where containers are refused."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from nsmagic import host
from nsmagic.course import exercise, lessons

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
EPERM = 1
CLONE_NEW = 0x7E020080
"""The flags of clone and unshare that make a namespace."""

RUN = """
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
cells = json.load(open(sys.argv.pop()))
shell = InteractiveShell.instance()
shell.colors = "NoColor"
found = {}
for name, text in cells:
    with capture_output() as captured:
        result = shell.run_cell(text)
    error = result.error_before_exec or result.error_in_exec
    shown = [each.data.get("text/plain", "") for each in captured.outputs]
    found[name] = ["" if error is None else type(error).__name__, "\\n".join([captured.stdout, *shown])]
print("\\n" + json.dumps(found))
sys.stdout.flush()
"""


class Ran(NamedTuple):
    error: str
    text: str


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


course = _load("course", ROOT / "tools" / "course.py")
refusals = _load("refusals", ROOT / "tests" / "refusals.py")


def source(number: str) -> Path:
    (found,) = (each for each in course.sources() if each.name.startswith(number))
    assert isinstance(found, Path)
    return found


def run(number: str, folder: Path, rules: list[tuple[str, int, int]]) -> dict[str, Ran]:
    """A lesson's solved cells by name, run on a host that refuses these calls besides what it refuses anyway."""
    cells = [[cell.name, cell.solved()] for cell in course.read(source(number)) if cell.kind == "code"]
    (folder / "cells.json").write_text(json.dumps(cells))
    (folder / "work").mkdir()
    numbered = json.dumps([(refusals.NUMBERS[call], errno, mask) for call, errno, mask in rules])
    code = (refusals.FILTER if rules else "import sys; sys.argv.pop(1)\n") + RUN
    environment = {**os.environ, "PYTHONPATH": refusals.HOME, "IPYTHONDIR": str(folder / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", code, numbered, str(folder / "cells.json")],
        capture_output=True, text=True, timeout=250, env=environment, cwd=folder / "work", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: Ran(*found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


@functools.cache
def _works(feature: str) -> bool:
    return host.examine(only=[feature])[-1].status == "works"


def lacks(features: tuple[str, ...]) -> bool:
    return not all(map(_works, features))


# What limits there are depends on the host more than anything else.
ANYWHERE = [pytest.param("10", marks=pytest.mark.hosts)] if list(course.SOURCES.glob("10-*")) else []


@pytest.mark.timeout(280)
@pytest.mark.parametrize("number", ["00", "03", *ANYWHERE])
def test_a_lesson_in_a_terminal(number: str, tmp_path: Path) -> None:
    lesson = lessons.find(number)
    known = {each.label: each for each in exercise.of_lesson(number)}
    found = run(number, tmp_path, [])
    first, *rest = (cell for cell in course.read(source(number)) if cell.kind == "code")
    assert not found[first.name].error
    lacking = lacks((*lesson.needs, *lesson.partly))
    assert ("This host lacks" in found[first.name].text) == lacking, found[first.name].text
    if lacks(lesson.needs):
        return
    for cell in rest:
        error, text = found[cell.name]
        if cell.is_check and lacks(known[cell.name.partition("-")[2]].needs):
            assert error == "ExerciseError", f"{cell.name}: {text}"
            assert "lacks" in text, f"{cell.name}: {text}"
        elif "raises-exception" not in cell.tags:
            assert not error, f"{cell.name}: {error}: {text}"


@pytest.fixture(scope="module")
def refusing() -> list[tuple[str, int, int]]:
    """What Docker refuses by default, as far as namespaces go."""
    return [("unshare", EPERM, 0), ("clone", EPERM, CLONE_NEW), ("clone3", refusals.ENOSYS, 0)]


def test_the_first_lesson_makes_sense_without_containers(refusing: Any, tmp_path: Path) -> None:
    found = run("00", tmp_path, refusing)
    assert "This host lacks" in found["load"].text
    assert "Left out" in found["in-container"].text
    assert "missing" in found["doctor"].text
    assert "00a solved" in found["check-00a"].text
    assert found["check-00b"].error == "ExerciseError"
    assert "This host lacks what it needs: all namespaces" in found["check-00b"].text
    assert {name for name, ran in found.items() if ran.error} == {"check-00b"}


def test_another_lesson_says_it_in_its_first_cell(refusing: Any, tmp_path: Path) -> None:
    found = run("02", tmp_path, refusing)
    assert not found["load"].error
    assert "lacks what most cells here need" in found["load"].text
    assert "To mend it" in found["load"].text
    assert "process" in found["scratch-born"].text or not found["scratch-born"].error
    for label in ("02a", "02b", "02c"):
        assert found[f"check-{label}"].error == "ExerciseError"
        assert "This host lacks what it needs" in found[f"check-{label}"].text
