"""The quickstart in a real JupyterLab in a real browser: what a newcomer sees, and what a hostile cell cannot do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import cgroups
from nsmagic.cgroups import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import Notebook

# One page serves the whole module.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]

SECONDS = 60

ATTACK = """\
from IPython.display import HTML
HTML('''<b>shown</b> <script>window.{0} = "script"</script>
<img src="data:image/png;base64,AAAA" onerror="window.{0} = 'handler'">''')"""

WATCH = """\
([node, name]) => {
  const look = () => ({
    prompt: node.querySelector('.jp-InputPrompt').innerText,
    text: node.querySelector('.jp-Cell-outputArea').innerText,
  });
  window[name] = [];
  new MutationObserver(() => window[name].push(look())).observe(node, {
    childList: true, subtree: true, characterData: true,
  });
}"""


def code(name: str, source: str) -> dict[str, Any]:
    return {
        "cell_type": "code", "id": name, "source": source, "metadata": {}, "outputs": [], "execution_count": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def notebook(
    browser: Any, lab: tuple[str, str], lab_folder: Path, open_notebook: Callable[..., Notebook]
) -> Iterator[Notebook]:
    """The quickstart with two more cells, an attack outside and the same one inside."""
    file = lab_folder / "quickstart.ipynb"
    content = json.loads(file.read_text())
    content["cells"] += [
        code("attack-outside", ATTACK.format("outside")),
        code("attack-inside", "%%contain\n" + ATTACK.format("inside")),
    ]
    file.write_text(json.dumps(content))
    address, token = lab
    context = browser.new_context(viewport={"width": 1000, "height": 1200})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    # A JupyterLab that is slow to list its kernels asks which one to take.
    page.add_locator_handler(
        page.locator(".jp-Dialog", has_text="Select Kernel"),
        lambda dialog: dialog.locator(".jp-mod-accept").click(),
    )
    page.goto(f"{address}lab/tree/quickstart.ipynb?token={token}")
    # The notebook has a kernel as soon as that is idle for the first time.
    page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.keyboard.press("Control+B")  # more room: no list of files
    notebook = open_notebook(page, file)
    assert notebook.run("load").strip() == ""
    yield notebook
    context.close()


def test_inside_and_outside(notebook: Notebook) -> None:
    outside, inside = notebook.run("outside-who"), notebook.run("inside-who")
    assert "on container" in inside
    assert "network: lo\n" in inside
    assert "on container" not in outside
    notebook.screenshot("inside", "inside", "inside-why")


def without_start(text: str) -> str:
    """Without the line that a slow start of the launcher is told by."""
    return re.sub(r"nsmagic: starting the launcher.*?(ready|…)\s*", "", text, flags=re.DOTALL)


def test_lines_appear_while_the_cell_runs(notebook: Notebook) -> None:
    node = notebook.cell("stream-lines").element_handle()
    notebook.page.evaluate(WATCH, [node, "seen"])
    text = without_start(notebook.run("stream-lines"))
    assert text.split() == " ".join(f"line {number}" for number in range(1, 6)).split()
    states = notebook.page.evaluate("window.seen")
    running = {without_start(state["text"]).strip() for state in states if "*" in state["prompt"]}
    assert {"line 1", "line 1\nline 2\nline 3"} <= running


def test_a_plot_shows(notebook: Notebook) -> None:
    notebook.run("plot-preload")
    notebook.run("plot-show")
    picture = notebook.cell("plot-show").locator(".jp-OutputArea-output img")
    picture.wait_for()
    assert picture.evaluate("node => node.decode().then(() => node.naturalWidth)") > 300
    notebook.screenshot("plot", "plot", "plot-show")


def test_the_hogs_reason_is_under_its_cell_and_the_notebook_goes_on(notebook: Notebook) -> None:
    text = notebook.run("memory-hog")
    if min((each.missing(Limits(mem=128 << 20)) for each in cgroups.mechanisms()), key=len):
        assert "HostError: --mem cannot be enforced here" in text
    else:
        assert re.search(r"out of memory: .* 128 MiB", text)
    assert "still here" in notebook.run("memory-after")
    notebook.screenshot("memory", "memory", "memory-after")


def test_script_runs_outside_a_container_and_not_inside(notebook: Notebook) -> None:
    assert "shown" in notebook.run("attack-inside")
    assert "shown" in notebook.run("attack-outside")
    # The one outside shows that this browser would have run the other too, which was there before.
    notebook.page.wait_for_function("window.outside === 'handler'")
    assert notebook.page.evaluate("typeof window.inside") == "undefined"
    assert notebook.cell("attack-inside").locator("script, [onerror]").count() == 0
    assert notebook.cell("attack-outside").locator("[onerror]").count() == 1


def test_a_page_in_the_notebook_is_not_taken_over(notebook: Notebook) -> None:
    text = notebook.run("rich-html")
    assert "Bold is harmless." in text
    assert "withheld text/html" in text
    assert notebook.page.title() != "taken over"


def test_tab_completes_an_option(notebook: Notebook) -> None:
    editor = notebook.cell("attack-inside").locator(".cm-content")
    editor.click()
    notebook.page.keyboard.press("Control+A")
    notebook.page.keyboard.type("%%contain --tim")
    notebook.page.keyboard.press("Tab")
    notebook.page.locator(".jp-Completer-item", has_text="--timeout").wait_for()
    notebook.page.keyboard.press("Enter")
    editor.filter(has_text="%%contain --timeout").wait_for()
