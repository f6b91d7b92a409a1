"""A host that cannot isolate: the kernel starts, runs nothing, and says why and what to do about it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic.kernel import specs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# One kernel serves the whole module.
pytestmark = pytest.mark.xdist_group("kernel_refusal")

TOUCH = "open('it-ran', 'w').close(); print('it ran')"
# A user namespace of its own in which no other can be made, and so no container; see user_namespaces(7).
NO_NAMESPACES = [
    "unshare", "--user", "--map-user=1000", "--keep-caps",
    "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all "$@"', "sh",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernel works."""
    return tmp_path_factory.mktemp("refused")


@pytest.fixture(scope="module")
def refusing(jupyter_home: Path, folder: Path, run_kernel: Callable[..., Any]) -> Any:
    """The packaged kernel where no namespace can be made, started by Jupyter."""
    if shutil.which("unshare") is None:
        pytest.skip("host: no program unshare")
    made = specs.Spec(output="safe", display_name="On a host that cannot").to_json()
    made["argv"] = NO_NAMESPACES + made["argv"]
    target = jupyter_home / "data" / "kernels" / "refusing"
    target.mkdir(parents=True)
    (target / "kernel.json").write_text(json.dumps(made))
    with run_kernel("refusing", folder) as kernel:
        yield kernel


def test_it_says_who_it_is(refusing: Any) -> None:
    info = refusing.ask("shell", "kernel_info_request")
    assert info["status"] == "ok"
    assert info["language_info"]["name"] == "python"
    assert info["language_info"]["file_extension"] == ".py"
    assert info["banner"].startswith("nsmagic: ")


@pytest.mark.parametrize("code", [TOUCH, "1", "%isolation", "!touch it-ran", "%isolation restart"])
def test_each_cell_is_answered_with_reason_and_remedy(
    refusing: Any, folder: Path, code: str, limits_lack: str
) -> None:
    for _ in range(2):
        cell = refusing.run(code)
        assert cell.error.startswith("CannotIsolate: no code runs here: ")
        # What was asked for, what the kernel answered, what to do now; limits are looked at first.
        if limits_lack:
            words = ["--mem cannot be enforced here", "--best-effort"]
        else:
            words = ["CLONE_NEWUSER", "No space left on device", "sudo sysctl -w user.max_user_namespaces="]
        assert [word for word in words if word not in cell.error] == []
        assert cell.text == ""
        assert not list(folder.iterdir())


def test_other_requests_are_answered(refusing: Any) -> None:
    ask = refusing.ask
    assert ask("shell", "complete_request", {"code": "pri", "cursor_pos": 3})["matches"] == []
    assert (
        ask("shell", "inspect_request", {"code": "print", "cursor_pos": 5, "detail_level": 0})["found"]
        is False
    )
    asked = {"hist_access_type": "tail", "n": 3, "output": False, "raw": True}
    assert ask("shell", "history_request", asked)["history"] == []
    assert ask("shell", "is_complete_request", {"code": "1"})["status"] == "unknown"
    assert ask("shell", "comm_info_request")["comms"] == {}
    assert ask("control", "usage_request")["status"] == "ok"
    assert ask("control", "interrupt_request")["status"] == "ok"
    assert (
        ask("control", "debug_request", {"type": "request", "seq": 1, "command": "attach"})["success"]
        is False
    )
    assert ask("control", "create_subshell_request")["status"] == "error"
    assert refusing.manager.is_alive()


def test_a_run_without_a_person_fails(refusing: Any, folder: Path) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell, new_notebook

    notebook = new_notebook(cells=[new_code_cell(TOUCH)])
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=60, kernel_name="refusing", resources=resources)
    with pytest.raises(CellExecutionError, match="no code runs here"):
        client.execute()
    assert not list(folder.iterdir())


@pytest.mark.ordinary_user
def test_limits_that_cannot_be_enforced_are_not_given_up(
    start: Callable[..., Any], spec_name: Callable[..., str], tmp_path: Path
) -> None:
    """The packaged kernel, as it is, where nobody can limit memory."""
    kernel = start(limits=True)
    cell = kernel.run(TOUCH)
    if spec_name() == "isolated-python":  # this host can, as most desktops
        assert cell.reply["status"] == "ok", cell.said
        return
    assert "--mem" in cell.error
    assert "--best-effort" in cell.error
    assert cell.text == ""
    assert not list(tmp_path.rglob("it-ran"))
