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


def shows(notebook: Notebook, name: str, text: str) -> str:
    """Run a cell and wait until a text is shown below it, which may come after its prompt; all that is shown."""
    notebook.run(name)
    area = notebook.cell(name).locator(".jp-Cell-outputArea")
    area.filter(has_text=text).wait_for()
    return str(area.inner_text())


def loads(notebook: Notebook) -> None:
    """Run the first cell.  JupyterLab may lose what comes while it is still connecting; then it is run again."""
    area = notebook.cell("load").locator(".jp-Cell-outputArea")
    for _ in range(3):
        notebook.run("load")
        try:
            area.filter(has_text="This host has all that the lesson needs").wait_for(
                timeout=SECONDS * 1000 / 3
            )
        except notebook.timeout:
            continue
        return
    raise AssertionError(f"the first cell shows: {area.inner_text()!r}")


def test_00_says_what_works(open_lesson: Callable[[str], Notebook]) -> None:
    notebook = open_lesson("00-what-works-here")
    notebook.page.locator("h1", has_text="What works here").wait_for()
    loads(notebook)
    shows(notebook, "in-container", "on container")
    shows(notebook, "doctor", "works")


def test_01_is_finished_without_reading_anything_else(open_lesson: Callable[[str], Notebook]) -> None:
    # One test: a part of it alone would find a kernel in which nothing has run yet.
    notebook = open_lesson("01-one-kernel")
    loads(notebook)

    # Both sides are beside each other.
    shows(notebook, "both", "inside")
    table = notebook.cell("both").locator(".jp-OutputArea-output table")
    assert table.locator("td").count() == 2
    assert "boot id" in table.inner_text()
    notebook.screenshot("both", "text-outside-and-inside", "both")

    # An open exercise is told what is missing, and a hint.
    for name in ("job", "matrix", "status", "solve-01a"):
        notebook.run(name)
    said = shows(notebook, "check-01a", "01a is not solved yet")
    assert "Hint 1 of 3" in said
    assert "Traceback" not in said
    notebook.screenshot("open", "text-your-turn-find-it", "check-01a")

    # It is solved, and the container is ended from outside.
    notebook.write("solve-01a", FOUND)
    assert notebook.run("solve-01a").strip() == ""
    said = shows(notebook, "check-01a", "01a solved")
    assert "not solved" not in said
    notebook.screenshot("solved", "text-your-turn-find-it", "check-01a")
    shows(notebook, "kill", "SIGKILL")
    notebook.run("number")
    shows(notebook, "kill-up", "ProcessLookupError")

    # Half a container, and the picture of it.
    notebook.write("solve-01b", PARTLY)
    notebook.run("solve-01b")
    shows(notebook, "check-01b", "01b solved")
    shows(notebook, "matrix-again", "another one")
    notebook.run("picture")
    picture = notebook.cell("picture").locator(".jp-OutputArea-output img")
    picture.wait_for()
    assert picture.evaluate("node => node.decode().then(() => node.naturalWidth)") == 640
    notebook.screenshot("partly", "text-your-turn-half-a-container", "matrix-again")
    notebook.screenshot("picture", "text-one-picture", "picture")
    assert notebook.run("stop").strip() == ""
