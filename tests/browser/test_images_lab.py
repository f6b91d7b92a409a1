"""An image in a notebook, as a student sees it: its root, what was changed in it, what is unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from imagery import base, saved, tar
from nbformat.v4 import new_code_cell, new_notebook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.browser,
    pytest.mark.works("--image"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.timeout(300),
]

SECONDS = 60
SHELL = """\
%%contain --image tiny.tar sh
id; ls /
rm /etc/motd
echo "greetings" > /etc/greeting"""


def test_an_image_in_jupyterlab(
    browser: Any, lab: tuple[str, str], lab_folder: Path, open_notebook: Callable[..., Any]
) -> None:
    release = tar(("etc/os-release", 'NAME="Tiny Linux"\n'), ("etc/motd", "hello\n"))
    saved(lab_folder / "tiny.tar", [base(), release], tags=["tiny:1.0"])
    cells = {
        "load": f"%load_ext nsmagic\n%env XDG_CACHE_HOME={lab_folder}/cache\n%contain None",
        "shell": SHELL,
        "changes": "%changes",
        "python": "%%contain --image tiny.tar\nimport os\nprint(open('/etc/os-release').read(), os.listdir('/bin')[:5])",
        "images": "%images",
        "layers": "%images tiny:1.0",
    }
    document = new_notebook()
    document.cells = [new_code_cell(source, id=name) for name, source in cells.items()]
    document.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(document, lab_folder / "images.ipynb")
    address, token = lab
    context = browser.new_context(viewport={"width": 1000, "height": 1100})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    page.goto(f"{address}lab/workspaces/images/tree/images.ipynb?token={token}")
    page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
    page.keyboard.press("Control+B")  # more room: no list of files
    shown = open_notebook(page, lab_folder / "images.ipynb")
    try:
        shown.run("load")
        assert "uid=0(root)" in shown.run("shell")
        changes = shown.run("changes")
        assert "/etc/greeting" in changes
        assert "/etc/motd" in changes
        assert "Tiny Linux" in shown.run("python")
        assert "tiny:1.0" in shown.run("images")
        assert shown.run("layers").count("sha256-") == 2
        assert shown.cell("layers").locator("table").count() == 1
        shown.screenshot("root", "shell", "python")
    finally:
        context.close()
