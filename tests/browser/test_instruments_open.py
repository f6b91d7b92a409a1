"""The instruments as a teacher sees them: in JupyterLab, in Notebook 7, and in a page that was exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from instrument_cells import notebook, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page

    from .conftest import Notebook

pytestmark = [
    pytest.mark.browser,
    pytest.mark.container,
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]

SECONDS = 60
WIDE = 600
"""Pixels that our pictures have at least."""

# Which pictures a cell has shown, one after the other, and how many there were at once.
WATCH = """\
node => {
  window.seen = [];
  window.most = 0;
  const look = () => {
    const images = [...node.querySelectorAll('.jp-OutputArea-output img')];
    window.most = Math.max(window.most, images.length);
    for (const image of images)
      if (window.seen.at(-1) !== image.src) window.seen.push(image.src);
  };
  new MutationObserver(look).observe(node, {childList: true, subtree: true, attributes: true});
}"""
DECODED = "node => node.decode().then(() => node.naturalWidth)"


@pytest.fixture(
    scope="module", params=["lab/workspaces/instruments/tree", "notebooks"], ids=["JupyterLab", "Notebook 7"]
)
def shown(
    request: pytest.FixtureRequest,
    browser: Any,
    lab: tuple[str, str],
    lab_folder: Path,
    open_notebook: Callable[..., Notebook],
) -> Iterator[Notebook]:
    """The instruments' notebook, open, its extension loaded."""
    if request.param == "notebooks":
        pytest.importorskip("notebook", reason="host: no Notebook 7")
    file = lab_folder / f"instruments-{request.param.partition('/')[0]}.ipynb"
    nbformat.write(notebook(), file)
    address, token = lab
    context = browser.new_context(viewport={"width": 1000, "height": 1400})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.add_locator_handler(
        page.locator(".jp-Dialog", has_text="Select Kernel"),
        lambda dialog: dialog.locator(".jp-mod-accept").click(),
    )
    page.goto(f"{address}{request.param}/{file.name}?token={token}")
    page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
    if request.param != "notebooks":
        page.keyboard.press("Control+B")  # more room: no list of files
    opened = open_notebook(page, file, "instruments")
    if request.param == "notebooks":
        opened.screenshot = lambda *words, **given: None  # one picture of each is enough
    opened.run("load")
    yield opened
    context.close()


def image(shown: Notebook, cell: str) -> Any:
    found = shown.cell(cell).locator(".jp-OutputArea-output img")
    found.first.wait_for()
    return found.first


def test_the_building_is_explained_with_a_picture(shown: Notebook) -> None:
    text = shown.run("explain")
    assert "pivot_root" in text
    assert image(shown, "explain").evaluate(DECODED) >= WIDE
    # The reasons are to be read without scrolling sideways.
    area = shown.cell("explain").locator(".jp-OutputArea-output table").first
    assert area.evaluate("node => node.getBoundingClientRect().right <= window.innerWidth")
    shown.screenshot("explain", "explain", "explain", most=864)


def test_a_failure_is_explained(shown: Notebook) -> None:
    text = shown.run("failure")
    assert "EROFS, Read-only file system" in text
    assert "take another place" in text
    assert image(shown, "failure").evaluate(DECODED) >= WIDE
    shown.screenshot("failure", "failure", "failure", most=760)


def test_the_matrix_of_namespaces(shown: Notebook) -> None:
    shown.run("behind")
    shown.run("built")
    text = shown.run("namespaces")
    assert "this notebook" in text
    own = shown.cell("namespaces").locator("td", has_text="*").first
    assert own.evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(227, 242, 225)"
    shown.screenshot("namespaces", "namespaces", "namespaces")
    shown.run("stop")


def test_both_sides(shown: Notebook) -> None:
    assert "inside" in shown.run("both")
    shown.screenshot("both", "both", "both")


def test_a_lab_is_drawn(shown: Notebook) -> None:
    shown.run("lab")
    shown.run("serve")
    text = shown.run("topology")
    assert "HostError" not in text
    assert image(shown, "topology").evaluate(DECODED) >= WIDE
    words = image(shown, "topology").get_attribute("alt")
    assert "web" in words
    assert "mail" in words
    shown.screenshot("topology", "topology", "topology")
    shown.run("lab-end")


@pytest.mark.limits
def test_the_curve_grows_in_place_and_reaches_its_limit(shown: Notebook) -> None:
    cell = shown.cell("memory")
    cell.scroll_into_view_if_needed()
    shown.page.evaluate(WATCH, cell.element_handle())
    text = shown.run("memory")
    assert "out of memory" in text
    assert image(shown, "memory").evaluate(DECODED) >= WIDE
    assert "out of memory" in image(shown, "memory").get_attribute("alt")
    assert len(shown.page.evaluate("window.seen")) >= 3, "it was drawn again and again"
    assert shown.page.evaluate("window.most") == 1, "always in the same place"
    shown.screenshot("memory", "memory", "memory")


@pytest.mark.limits
def test_a_share_of_the_processor_and_a_refused_thread(shown: Notebook) -> None:
    assert "pids limit" in shown.run("cpu")
    assert image(shown, "cpu").evaluate(DECODED) >= WIDE
    shown.screenshot("cpu", "cpu", "cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A notebook that somebody else ran."""
    return run(notebook(["load", "explain", "failure", "both"]), str(tmp_path_factory.mktemp("saved")))


def look(page: Page, pictures: int) -> None:
    """All pictures are there and can be shown, and no table has lost its text."""
    images = page.locator(".jp-OutputArea-output img")
    images.nth(pictures - 1).wait_for()
    assert images.count() == pictures
    for number in range(pictures):
        assert images.nth(number).evaluate(DECODED) >= WIDE
    assert page.locator("td", has_text="pivot_root").count() >= 1


def test_a_notebook_of_somebody_else_is_shown_whole_without_trust(
    saved: Any, browser: Any, lab: tuple[str, str], lab_folder: Path
) -> None:
    nbformat.write(saved, lab_folder / "saved.ipynb")
    address, token = lab
    context = browser.new_context(viewport={"width": 1000, "height": 1400})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}lab/workspaces/saved/tree/saved.ipynb?token={token}")
    look(page, 2)
    context.close()


def test_an_exported_page_is_shown_whole(saved: Any, browser: Any, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    file = tmp_path / "saved.html"
    file.write_text(HTMLExporter().from_notebook_node(saved)[0])
    context = browser.new_context(viewport={"width": 1000, "height": 1400}, offline=True)
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(file.as_uri(), wait_until="domcontentloaded")
    look(page, 2)
    context.close()
