"""Kept containers in a real JupyterLab: a server in one, cells that join it, and what the instruments show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .conftest import Notebook

pytestmark = [
    pytest.mark.browser,
    pytest.mark.works("all namespaces", "fresh /proc"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]

SECONDS = 60
CELLS = {
    "load": "%load_ext nsmagic",
    "serve": "%%contain --name web --bg --proc server\nimport http.server, pathlib\n"
    "pathlib.Path('index.html').write_text('served from inside')\n"
    "http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)",
    "ask": "%%contain --join web\nimport socket, urllib.request\n"
    "socket.gethostname(), urllib.request.urlopen('http://localhost:8000').read()",
    "part": "%%contain --name helper --join web:net,uts\nimport os, socket\n"
    "socket.gethostname(), os.path.exists('index.html')",
    "tree": "%containers",
    "matrix": "%namespaces web helper",
    "stop": "%container stop web helper",
    "after": "%containers",
}


@pytest.fixture
def notebook(
    browser: Any, lab: tuple[str, str], lab_folder: Path, open_notebook: Callable[..., Notebook]
) -> Iterator[Notebook]:
    address, token = lab
    file = lab_folder / "kept.ipynb"
    cells = [
        {
            "cell_type": "code",
            "id": name,
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for name, source in CELLS.items()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    text = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    file.write_text(json.dumps(text))
    context = browser.new_context(viewport={"width": 1100, "height": 1700})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}lab/workspaces/kept/tree/{file.name}?token={token}")
    page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.keyboard.press("Control+B")
    yield open_notebook(page, file)
    context.close()


def test_a_server_is_kept_joined_and_looked_at(notebook: Notebook) -> None:
    notebook.run("load")
    notebook.run("serve")
    served = notebook.cell("serve").locator(".jp-Cell-outputArea")
    served.filter(has_text="Serving HTTP").wait_for()
    assert "('web', b'served from inside')" in notebook.run("ask")
    assert "('web', False)" in notebook.run("part")
    shown = notebook.run("tree")
    for word in ("web", "helper", "nsmagic-init", "nsmagic-join", "(python)"):
        assert word in shown
    notebook.run("matrix")
    cells = notebook.cell("matrix").locator("td")
    shared = [text for text in cells.all_inner_texts() if text.startswith("& ")]
    assert len(shared) == 4
    assert len(set(shared)) == 2
    notebook.screenshot("containers", "serve", "matrix")
    notebook.run("stop")
    assert "no containers are live" in notebook.run("after")
