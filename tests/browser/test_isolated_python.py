"""A whole notebook in a container, as its user sees it: JupyterLab in a browser, from the launcher on."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

# One page serves the whole module, and the server is that of the other tests with a browser.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]

SECONDS = 60
ATTEMPTS = 6
FINISHED = re.compile(r"\[\d+\]")
IDLE = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook-ExecutionIndicator[data-status=idle]"

ATTACK = """\
from IPython.display import HTML
HTML('''<b>shown</b> <script>window.{0} = "script"</script>
<img src="data:image/png;base64,AAAA" onerror="window.{0} = 'handler'">''')"""

PLOT = """\
%matplotlib inline
import matplotlib.pyplot as plt
plt.plot([1, 4, 9])
plt.show()"""


class NewNotebook:
    """A notebook that was begun in the launcher, and is written cell by cell."""

    def __init__(self, page: Page, kernel: str) -> None:
        self.page = page
        page.get_by_role("menuitem", name="File", exact=True).click()
        page.get_by_text("New Launcher", exact=True).click()
        launcher = page.locator(".jp-Launcher:visible")
        launcher.locator(".jp-Launcher-section", has_text="Notebook").locator(
            f".jp-LauncherCard[title='{kernel}']"
        ).first.click()
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.idle()
        self.panel.get_by_role("button", name=kernel).first.wait_for()
        self.begin()

    def idle(self) -> None:
        self.page.locator(IDLE).wait_for()

    def begin(self) -> None:
        """Run cells until one of them has run: JupyterLab drops what it is given while it still connects."""
        from playwright.sync_api import TimeoutError as Timeout

        for _ in range(ATTEMPTS):
            prompt = self.start("pass").locator(".jp-InputPrompt")
            with contextlib.suppress(Timeout):
                prompt.filter(has_text=FINISHED).wait_for(timeout=SECONDS * 1000 / ATTEMPTS)
                return
        raise AssertionError("no cell runs")

    def start(self, code: str) -> Locator:
        """Write the code into the last cell and have it run; another empty one comes behind it."""
        cells = self.panel.locator(".jp-Notebook .jp-Cell")
        number = cells.count() - 1
        cell = cells.nth(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Shift+Enter")
        cells.nth(number + 1).wait_for()
        return cell

    def wait(self, cell: Locator) -> str:
        """Wait until a cell has run; the text below it."""
        cell.locator(".jp-InputPrompt").filter(has_text=FINISHED).wait_for()
        return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())

    def run(self, code: str) -> str:
        return self.wait(self.start(code))

    def press(self, command: str) -> None:
        """Press a button of the notebook's toolbar."""
        self.panel.locator(f"[data-command='{command}']").first.click()

    def screenshot(self, name: str, first: Locator, last: Locator) -> None:
        """Where NSMAGIC_SCREENSHOTS names a folder: a picture of the cells from the first to the last."""
        target = os.environ.get("NSMAGIC_SCREENSHOTS")
        if not target:
            return
        self.page.evaluate("document.activeElement && document.activeElement.blur()")
        self.page.mouse.move(0, 0)  # what the mouse is over is drawn in another colour
        first.evaluate("node => node.scrollIntoView({block: 'start'})")
        top, bottom = first.bounding_box(), last.bounding_box()
        assert top is not None
        assert bottom is not None
        clip = {
            "x": top["x"],
            "y": top["y"],
            "width": top["width"],
            "height": bottom["y"] + bottom["height"] - top["y"],
        }
        self.page.screenshot(path=str(Path(target) / f"kernel-{name}.png"), clip=clip)


@pytest.fixture(scope="module")
def page(browser: Any, lab: tuple[str, str]) -> Iterator[Page]:
    address, token = lab
    context = browser.new_context(viewport={"width": 976, "height": 1200})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}lab/workspaces/isolated?reset&token={token}")
    page.locator(".jp-Launcher").wait_for()
    page.keyboard.press("Control+B")  # more room: no list of files
    yield page
    context.close()


@pytest.fixture(scope="module")
def isolated(page: Page) -> NewNotebook:
    """A notebook whose kernel was picked in the launcher."""
    return NewNotebook(page, "Isolated Python")


def test_cells_run_in_a_container(isolated: NewNotebook) -> None:
    assert isolated.run("a = 6\na * 7").strip() == "42"
    text = isolated.run("import os, socket; print(os.getpid(), socket.gethostname(), os.listdir('/home'))")
    pid, host, homes = text.split(maxsplit=2)
    assert int(pid) < 100
    assert host != os.uname().nodename
    assert homes.strip() == "['user']"


def test_a_plot_shows(isolated: NewNotebook) -> None:
    cell = isolated.start(PLOT)
    isolated.wait(cell)
    picture = cell.locator(".jp-OutputArea-output img")
    picture.wait_for()
    assert picture.evaluate("node => node.decode().then(() => node.naturalWidth)") > 300


def test_input_is_asked_for_and_answered(isolated: NewNotebook) -> None:
    cell = isolated.start("print('hello', input('who? '))")
    field = cell.locator("input.jp-Stdin-input")
    field.fill("you")
    field.press("Enter")
    assert "hello you" in isolated.wait(cell)


def test_a_loop_is_interrupted_by_its_button(isolated: NewNotebook) -> None:
    cell = isolated.start("kept = 1\nprint('begun', flush=True)\nwhile True: pass")
    cell.locator(".jp-Cell-outputArea", has_text="begun").wait_for()
    isolated.press("notebook:interrupt-kernel")
    assert "KeyboardInterrupt" in isolated.wait(cell)
    assert isolated.run("print(kept)").strip() == "1"


@pytest.mark.limits
def test_the_memory_limit_is_told_under_the_cell_and_the_notebook_goes_on(isolated: NewNotebook) -> None:
    first = isolated.start("results = [1, 2, 3]")
    isolated.wait(first)
    hog = isolated.start("hog = bytearray(4 * 1024**3)")
    text = isolated.wait(hog)
    assert re.search(r"OutOfMemory: out of memory: .* 1 GiB", text)
    assert "Variables are as they were before this cell." in text
    on = isolated.start("print(results, 'and on it goes')")
    assert "[1, 2, 3] and on it goes" in isolated.wait(on)
    numbers = [int(cell.locator(".jp-InputPrompt").inner_text().strip("[]:")) for cell in (first, hog, on)]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 1]
    # No dialog says that the kernel has died: it has not.
    assert isolated.page.locator(".jp-Dialog").count() == 0
    isolated.screenshot("memory", first, on)


def test_isolation_is_shown(isolated: NewNotebook) -> None:
    isolated.run("data = bytearray(300 * 1024**2)\nopen('results.csv', 'w').write('1,2,3\\n' * 1000);")
    cell = isolated.start("%isolation")
    text = isolated.wait(cell)
    for word in ("memory", "processes", "files written", "namespaces", "network", "results.csv"):
        assert word in text
    # The bars are drawn, in colour.
    assert (
        cell.locator("td div div").first.evaluate("node => getComputedStyle(node).backgroundColor")
        != "rgba(0, 0, 0, 0)"
    )
    isolated.screenshot("isolation", cell, cell)


def test_a_restart_forgets_everything(isolated: NewNotebook) -> None:
    isolated.run("kept = 1")
    isolated.press("notebook:restart-kernel")
    isolated.page.locator(".jp-Dialog .jp-mod-accept", has_text="Restart").click()
    isolated.page.locator(".jp-Dialog").wait_for(state="detached")
    assert isolated.run("print('kept' in globals())").strip() == "False"


def test_script_runs_in_the_stock_kernel_and_not_in_ours(isolated: NewNotebook, page: Page) -> None:
    assert "shown" in isolated.run(ATTACK.format("isolated"))
    stock = NewNotebook(page, "Python 3 (ipykernel)")
    assert "shown" in stock.run(ATTACK.format("stock"))
    # The stock kernel's shows that this browser would have run the other too, which was there before.
    page.wait_for_function("window.stock === 'handler'")
    assert page.evaluate("typeof window.isolated") == "undefined"
    assert page.locator("[onerror*=isolated]").count() == 0
    assert page.locator("[onerror*=stock]").count() == 1
