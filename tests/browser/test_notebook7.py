"""A whole notebook in a container in Notebook 7, which is another front end than JupyterLab."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]

CELLS = {
    "where": "import os, socket\nprint(os.getpid() < 100, os.listdir('/home'))",
    "keep": "kept = [1, 2, 3]",
    "die": "import os; os.abort()",
    "on": "print(kept)",
    "isolation": "%isolation",
}


def test_a_notebook_runs_and_outlives_a_cell_that_dies(
    browser: Any, lab: tuple[str, str], lab_folder: Path, open_notebook: Callable[..., Any]
) -> None:
    pytest.importorskip("notebook", reason="host: no Notebook")
    cells = [nbformat.v4.new_code_cell(code, id=name) for name, code in CELLS.items()]
    metadata = {
        "kernelspec": {"name": "isolated-python", "display_name": "Isolated Python", "language": "python"}
    }
    file = lab_folder / "seven.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), file)
    address, token = lab
    context = browser.new_context(viewport={"width": 976, "height": 1200})
    try:
        page = context.new_page()
        page.goto(f"{address}notebooks/{file.name}?token={token}")
        page.locator(".jp-Notebook .jp-Cell").nth(len(CELLS) - 1).wait_for()
        notebook = open_notebook(page, file)
        assert notebook.run("where").strip() == "True ['user']"
        notebook.run("keep")
        died = notebook.run("die")
        assert re.search(r"Crashed: .*SIGABRT", died)
        assert "Variables are as they were before this cell." in died
        assert notebook.run("on").strip() == "[1, 2, 3]"
        assert "namespaces" in notebook.run("isolation")
        assert page.locator(".jp-Dialog").count() == 0
    finally:
        context.close()
