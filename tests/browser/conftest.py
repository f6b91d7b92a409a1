"""A real JupyterLab and a real browser that looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SECONDS = 60
ATTEMPTS = 6
FINISHED = re.compile(r"\[\d+\]")

SETTINGS = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # All cells are in the page, those out of sight too.
    "notebook-extension/tracker": {"windowingMode": "none"},
}

# Installed for other tests; its button pushes the sign of the kernel's state out of a narrow toolbar.
OTHERS = ("@jupyter/nbgrader",)


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that JupyterLab shows: a copy of the quickstart."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOKS / "quickstart.ipynb", folder)
    return folder


@pytest.fixture(scope="session")
def lab(
    lab_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    until: Callable[..., bool],
    limits_lack: str,
) -> Iterator[tuple[str, str]]:
    """A JupyterLab that knows nothing of the user's settings: its address and its token.

    Where the kernel's limits cannot be enforced, "Isolated Python" is one without them.
    """
    pytest.importorskip("jupyterlab", reason="host: no JupyterLab")
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex()
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    page = home / "config" / "labconfig" / "page_config.json"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps({"disabledExtensions": dict.fromkeys(OTHERS, True)}))
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    if limits_lack:
        from nsmagic.kernel import specs

        spec = specs.Spec(output="safe", display_name="Isolated Python", words=("--best-effort",))
        where = specs.Place(home / "share" / "jupyter" / "kernels", user=False, prefix=str(home))
        specs.install(spec, "isolated-python", where, replace=True)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", f"--ServerApp.root_dir={lab_folder}",
        f"--IdentityProvider.token={token}", *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    folders["JUPYTER_PATH"] = "share/jupyter"  # which goes before what is installed
    environment = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}
    log = home / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
    try:
        at = home / "runtime" / f"jpserver-{server.pid}.json"
        started = until(
            lambda: server.poll() is not None or (at.exists() and at.read_text().endswith("}")), SECONDS
        )
        assert started, log.read_text()
        assert server.poll() is None, log.read_text()
        yield json.loads(at.read_text())["url"], token
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(SECONDS)
        server.kill()
        server.wait()


class Notebook:
    """A notebook that is open in the browser; its cells are called by the ids that they have in the file."""

    def __init__(self, page: Page, file: Path, pictures: str = "") -> None:
        from playwright.sync_api import TimeoutError as Timeout

        self.page, self.timeout, self.pictures = page, Timeout, pictures or file.stem
        self.ids = [cell["id"] for cell in json.loads(file.read_text())["cells"]]

    def cell(self, name: str) -> Any:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(self.ids.index(name))

    def start(self, name: str) -> Any:
        """Have the cell run; returns as soon as it does."""
        cell = self.cell(name)
        prompt = cell.locator(".jp-InputPrompt").first
        before = prompt.inner_text()
        cell.scroll_into_view_if_needed()
        for _ in range(ATTEMPTS):
            prompt.click()
            self.page.keyboard.press("Control+Enter")
            # JupyterLab drops keys that come while it is still busy laying itself out.
            with contextlib.suppress(self.timeout):
                prompt.filter(has_not_text=before).wait_for(timeout=SECONDS * 1000 / ATTEMPTS)
                return cell
        raise AssertionError(f"{name} does not start")

    def wait(self, name: str) -> Any:
        """Wait until the cell has run."""
        cell = self.cell(name)
        prompt = cell.locator(".jp-InputPrompt").first
        prompt.filter(has_text=FINISHED).wait_for(timeout=SECONDS * 1000)
        return cell

    def run(self, name: str) -> str:
        """Run the cell; the text that is shown below it."""
        self.start(name)
        return str(self.wait(name).locator(".jp-Cell-outputArea").inner_text())

    def write(self, name: str, text: str) -> None:
        """Put another text into a cell, as who pastes it."""
        editor = self.cell(name).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)
        editor.filter(has_text=text.splitlines()[-1]).wait_for()

    def screenshot(self, name: str, first: str, last: str, most: int = 2000) -> None:
        """Where NSMAGIC_SCREENSHOTS names a folder: a picture of the cells from the first to the last.

        Args:
            name: of the picture.
            first: cell.
            last: cell.
            most: pixels of height.
        """
        target = os.environ.get("NSMAGIC_SCREENSHOTS")
        if not target:
            return
        self.page.evaluate("document.activeElement && document.activeElement.blur()")
        self.cell(first).evaluate("node => node.scrollIntoView({block: 'start'})")
        top, bottom = self.cell(first).bounding_box(), self.cell(last).bounding_box()
        clip = {
            "x": top["x"],
            "y": top["y"],
            "width": top["width"],
            "height": min(bottom["y"] + bottom["height"] - top["y"], most),
        }
        self.page.screenshot(path=str(Path(target) / f"{self.pictures}-{name}.png"), clip=clip)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("host: no program chromium")
    pytest.importorskip("playwright", reason="host: no playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def open_notebook() -> Callable[..., Notebook]:
    """Give ``Notebook``."""
    return Notebook
