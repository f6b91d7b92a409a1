"""The newcomer's path in a real JupyterLab: open 00, then finish 01, reading nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Notebook

# One page serves the whole module, and the server is that of the other tests with a browser.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.works("all namespaces"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]

SECONDS = 60
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

FOUND = """\
init = job.container.init_pid
host_pid = int(open(f"/proc/{init}/task/{init}/children").read())"""

PARTLY = """\
%%contain --bg --proc partly --ns pid,uts
import time

time.sleep(3600)"""


@pytest.fixture(scope="module")
def open_lesson(
    browser: Any, lab: tuple[str, str], lab_folder: Path, open_notebook: Callable[..., Notebook]
) -> Iterator[Callable[[str], Notebook]]:
    """Give a function that opens a lesson in a page of its own."""
    address, token = lab
    contexts = []

    def start(name: str) -> Notebook:
        file = lab_folder / f"{name}.ipynb"
        shutil.copy(NOTEBOOKS / file.name, file)
        contexts.append(browser.new_context(viewport={"width": 1000, "height": 1600}))
        page = contexts[-1].new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.add_locator_handler(
            page.locator(".jp-Dialog", has_text="Select Kernel"),
            lambda dialog: dialog.locator(".jp-mod-accept").click(),
        )
        page.goto(f"{address}lab/workspaces/{name}/tree/{file.name}?token={token}")
        page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
        page.keyboard.press("Control+B")
        return open_notebook(page, file)

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def first(open_lesson: Callable[[str], Notebook]) -> Notebook:
    return open_lesson("01-one-kernel")


def test_00_says_what_works(open_lesson: Callable[[str], Notebook]) -> None:
    notebook = open_lesson("00-what-works-here")
    notebook.page.locator("h1", has_text="What works here").wait_for()
    assert "This host has all that the lesson needs" in notebook.run("load")
    assert "process" in notebook.run("in-container")
    assert "works" in notebook.run("doctor")


def test_both_sides_are_beside_each_other(first: Notebook) -> None:
    assert "This host has all that the lesson needs" in first.run("load")
    first.run("both")
    table = first.cell("both").locator(".jp-OutputArea-output table")
    assert table.locator("td").count() == 2
    assert "boot id" in table.inner_text()
    first.screenshot("both", "text-outside-and-inside", "both")


def test_an_open_exercise_is_told_what_is_missing_and_a_hint(first: Notebook) -> None:
    for name in ("matrix", "job", "containers", "status", "solve-01a"):
        first.run(name)
    said = first.run("check-01a")
    assert "01a not solved yet" in said
    assert "Hint 1 of 3" in said
    assert "Traceback" not in said
    first.screenshot("open", "text-your-turn-find-it", "check-01a")


def test_it_is_solved_and_the_container_is_ended_from_outside(first: Notebook) -> None:
    first.write("solve-01a", FOUND)
    first.run("solve-01a")
    said = first.run("check-01a")
    assert "01a solved" in said
    assert "not solved" not in said
    first.screenshot("solved", "text-your-turn-find-it", "check-01a")
    assert "SIGKILL" in first.run("kill")
    first.run("number")
    assert "ProcessLookupError" in first.run("kill-up")


def test_half_a_container_and_the_picture_of_it(first: Notebook) -> None:
    first.write("solve-01b", PARTLY)
    first.run("solve-01b")
    assert "01b solved" in first.run("check-01b")
    first.run("matrix-again")
    first.run("picture")
    picture = first.cell("picture").locator(".jp-OutputArea-output img")
    picture.wait_for()
    assert picture.evaluate("node => node.decode().then(() => node.naturalWidth)") == 640
    first.screenshot("partly", "text-your-turn-half-a-container", "matrix-again")
    first.screenshot("picture", "text-one-picture", "picture")
    assert first.run("stop").strip() == ""
