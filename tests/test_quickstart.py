"""The quickstart, run headless from top to bottom as a newcomer runs it, and what each cell then shows."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

from nsmagic import cgroups
from nsmagic.cgroups import Limits

pytest.importorskip("matplotlib", reason="host: no matplotlib")

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
SECONDS = 100

# One run serves the whole module.
pytestmark = [pytest.mark.xdist_group("quickstart"), pytest.mark.timeout(300)]


class OwnKernel(AsyncKernelManager):  # type: ignore[misc]
    """Starts this interpreter's own kernel, whatever the user has installed."""

    @default("kernel_spec_manager")  # type: ignore[untyped-decorator]
    def _no_other_specs(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class Client(nbclient.NotebookClient):  # type: ignore[misc]
    """Notes each piece of output as it comes, before front ends join pieces together."""

    def __init__(self, notebook: Any, **more: Any) -> None:
        super().__init__(notebook, **more)
        self.pieces: dict[str, list[str]] = {}

    def process_message(self, message: dict[str, Any], cell: Any, index: int) -> Any:
        if message["msg_type"] == "stream":
            self.pieces.setdefault(cell["id"], []).append(message["content"]["text"])
        return super().process_message(message, cell, index)


class Shown:
    """What the cells show, by their ids."""

    def __init__(self, notebook: Any, pieces: dict[str, list[str]]) -> None:
        self.outputs = {cell["id"]: cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"}
        self.pieces = pieces

    def text(self, cell: str, name: str = "stdout") -> str:
        return "".join(each["text"] for each in self.outputs[cell] if each.get("name") == name)

    def data(self, cell: str) -> dict[str, Any]:
        (data,) = (each["data"] for each in self.outputs[cell] if "data" in each)
        assert isinstance(data, dict)
        return data

    def error(self, cell: str) -> str:
        (error,) = (each for each in self.outputs[cell] if each["output_type"] == "error")
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def shown(folder: Path) -> Shown:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = Client(notebook, kernel_manager_class=OwnKernel, timeout=SECONDS, resources=where)
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder.parent / "ipython")})
    return Shown(notebook, client.pieces)


def test_the_file_is_fit_to_be_shipped() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_only_the_cells_that_are_to_fail_fail(shown: Shown) -> None:
    failed = {
        name
        for name, outputs in shown.outputs.items()
        if any(each["output_type"] == "error" for each in outputs)
    }
    assert failed == {"memory-hog", "bomb-fork", "time-loop"}


def test_inside_differs_from_outside(shown: Shown) -> None:
    outside, inside = shown.text("outside-who"), shown.text("inside-who")
    pattern = r"process (\d+) of user \d+ on (.*)\nnetwork:(.*)\nprocesses: (\d+)\n"
    out, into = re.fullmatch(pattern, outside), re.fullmatch(pattern, inside)
    assert out
    assert into
    assert (into[2], into[3], into[4]) == ("container", " lo", "2")
    assert int(into[1]) < 10
    assert out[1] != into[1]
    assert out[2] != into[2]


def test_lines_come_one_by_one(shown: Shown) -> None:
    assert shown.pieces["stream-lines"] == [f"line {number}\n" for number in range(1, 6)]


def test_the_plot_is_a_picture(shown: Shown) -> None:
    picture = base64.b64decode(shown.data("plot-show")["image/png"])
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5000
    assert shown.text("plot-show", "stderr") == ""


def test_the_hog_is_ended_or_refused_with_the_reason(shown: Shown) -> None:
    error = shown.error("memory-hog")
    missing = min((each.missing(Limits(mem=128 << 20)) for each in cgroups.mechanisms()), key=len)
    if missing:
        assert error.startswith("HostError: --mem cannot be enforced here")
        assert shown.text("memory-hog") == ""
    else:
        assert re.search(r"out of memory: .* limit of 128 MiB \(--mem\); its peak was 1[12]\d", error)
        assert "holding 50 MB\n" in shown.text("memory-hog")
        assert "holding 130 MB\n" not in shown.text("memory-hog")


def test_the_notebook_goes_on(shown: Shown) -> None:
    number = re.match(r"process (\d+)", shown.text("outside-who"))
    assert number
    assert shown.text("memory-after") == f"still here, process {number[1]}\n"


def test_the_fork_bomb_is_held(shown: Shown) -> None:
    assert re.search(r"pids limit|BlockingIOError", shown.error("bomb-fork"))


def test_the_time_limit_is_said(shown: Shown) -> None:
    assert "time limit: it ran longer than 1 s (--timeout)" in shown.error("time-loop")


def test_files_stay_inside_until_they_are_taken_out(shown: Shown, folder: Path) -> None:
    assert shown.text("files-write") == "inside: True\n"
    lines = shown.text("files-changes").replace(f"{folder}/", "").splitlines()
    assert lines[0] == "outside: False"
    assert sorted(lines[1:]) == ["added report.txt 20", "added results 0", "added results/data.csv 8"]
    assert shown.text("files-save") == "made in a container\n\n"
    assert list(folder.iterdir()) == []


def test_a_program(shown: Shown) -> None:
    lines = shown.text("programs-bash").splitlines()
    assert lines[0].endswith(" on container")
    assert lines[1] == "my home holds 0 files"
    assert lines[2].split() == ["CapEff:", "0000000000000000"]
    assert "NoNewPrivs:\t1" in lines
    assert "Seccomp:\t2" in lines


def test_values_go_in_and_out(shown: Shown) -> None:
    assert shown.data("values-after")["text/plain"] == "(6.5, ['cake', 'tea'], {'tea': 2.5, 'cake': 4.0})"


def test_the_script_is_withheld(shown: Shown) -> None:
    html = shown.data("rich-html")["text/html"]
    assert "<b>Bold is harmless.</b>" in html
    assert "script" not in html
    assert "withheld text/html" in shown.text("rich-html", "stderr")


def test_the_background_cell_is_listed_and_stopped(shown: Shown) -> None:
    table, tree = shown.data("background-list")["text/plain"].split("\n\n")
    assert len(table.splitlines()) == 2
    assert len(tree.splitlines()) == 4  # heads, container, init, payload
    assert "stopped by its owner" in shown.data("background-stop")["text/plain"]


def test_the_api(shown: Shown) -> None:
    assert re.fullmatch(r"42\n exited 0\.\d+\nelsewhere\n\n", shown.text("api-run"))


def test_the_stats(shown: Shown) -> None:
    assert re.search(r"^namespaces .*pid", shown.data("api-stats")["text/plain"], re.MULTILINE)


def test_the_doctor(shown: Shown) -> None:
    assert re.search(r"pid namespace", shown.data("doctor-run")["text/plain"])


def test_nothing_unexpected_is_said(shown: Shown) -> None:
    said = {name: shown.text(name, "stderr") for name in shown.outputs}
    # The launcher may take its time, and says so.
    said = {name: re.sub(r"nsmagic: starting the launcher.*ready\n", "", text) for name, text in said.items()}
    assert {name for name, text in said.items() if text} <= {
        "rich-html",
        "background-start",
        "background-stop",
    }, said
