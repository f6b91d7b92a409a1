"""The programs and the people who use a kernel: each gets what it would get of any other kernel."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from debugging import Debugger
from nbformat.v4 import new_code_cell, new_notebook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# The module's kernels are started once.
pytestmark = pytest.mark.xdist_group("kernel_clients")

SECONDS = 60.0
DIES = "import os; os._exit(11)"
REASON = "exit status 11"
WIDGET = "application/vnd.jupyter.widget-view+json"

PLOT = """\
%matplotlib inline
import matplotlib.pyplot as plt
plt.plot([1, 2, 3])
plt.show()"""


# ---- programs that run notebooks -----------------------------------------------------------------


@pytest.fixture
def notebook_client(spec_name: Callable[..., str], tmp_path: Path) -> Callable[..., Any]:
    """Give a function that makes a notebook of cells and nbclient's client for it."""

    def make(*cells: str, **options: Any) -> Any:
        from nbclient import NotebookClient

        notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
        return NotebookClient(
            notebook, timeout=SECONDS, kernel_name=spec_name(),
            resources={"metadata": {"path": str(tmp_path)}}, **options,
        )  # fmt: skip

    return make


def test_nbclient_runs_a_notebook(notebook_client: Callable[..., Any]) -> None:
    client = notebook_client("a = 6", PLOT, "print(a * 7)\na", "open('made', 'w').write('x')\n!ls")
    client.execute()
    _, plot, printed, listed = [cell.outputs for cell in client.nb.cells]
    assert any("image/png" in output.get("data", {}) for output in plot)
    assert [output.get("text") or output["data"]["text/plain"] for output in printed] == ["42\n", "6"]
    assert "made" in "".join(output.get("text", "") for output in listed)


def test_nbclient_fails_with_the_reason_of_a_death(notebook_client: Callable[..., Any]) -> None:
    from nbclient.exceptions import CellExecutionError

    client = notebook_client("a = 6", DIES, "print('went on')")
    with pytest.raises(CellExecutionError, match=REASON):
        client.execute()
    assert "went on" not in nbformat.writes(client.nb).replace("print('went on')", "")
    # The reason is in the notebook as well, for whoever gets it.
    assert any(REASON in output.get("evalue", "") for output in client.nb.cells[1].outputs)


def test_nbclient_told_to_go_on_after_errors_goes_on_with_what_was_before(
    notebook_client: Callable[..., Any],
) -> None:
    client = notebook_client("a = 6", f"a = 7; {DIES}", "print(a, 'went on')", allow_errors=True)
    client.execute()
    outputs = [cell.outputs for cell in client.nb.cells]
    assert REASON in outputs[1][-1]["evalue"]
    assert outputs[2][0]["text"] == "6 went on\n"


def test_nbclient_told_to_go_on_after_errors_does_not_go_on_in_an_empty_namespace(
    notebook_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSMAGIC_KEEP_STATE", "off")
    client = notebook_client("a = 6", "1 / 0", "print(a)", DIES, "print('went on')", allow_errors=True)
    client.execute()
    outputs = [cell.outputs for cell in client.nb.cells]
    assert outputs[1][0]["ename"] == "ZeroDivisionError"
    assert outputs[2][0]["text"] == "6\n"  # what it was told to go on for
    assert REASON in outputs[3][-1]["evalue"]
    assert [output["output_type"] for output in outputs[4]] == ["error"]
    assert outputs[4][0]["ename"] == "KernelDied"


def test_papermill(spec_name: Callable[..., str], tmp_path: Path, jupyter_home: Path) -> None:
    import papermill

    good, bad, out = tmp_path / "good.ipynb", tmp_path / "bad.ipynb", tmp_path / "out.ipynb"
    cell = new_code_cell("a = 1", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell, new_code_cell("print(a * 7)")]), good)
    nbformat.write(new_notebook(cells=[new_code_cell(DIES), new_code_cell("print('went on')")]), bad)
    options = {"kernel_name": spec_name(), "language": "python", "progress_bar": False, "cwd": str(tmp_path)}
    done = papermill.execute_notebook(str(good), str(out), parameters={"a": 6}, **options)
    assert done.cells[-1].outputs[0]["text"] == "42\n"
    with pytest.raises(papermill.PapermillExecutionError, match=REASON):
        papermill.execute_notebook(str(bad), str(out), **options)
    assert "went on\\n" not in out.read_text()


def test_jupyter_console(spec_name: Callable[..., str], tmp_path: Path, jupyter_home: Path) -> None:
    typed = "a = 6\nprint(a * 7)\nprint('asked', input())\nanswer\nimport sys; sys.flags.isolated\n%isolation\nexit\n"
    ended = subprocess.run(
        [sys.executable, "-m", "jupyter_console", "--simple-prompt", "--kernel", spec_name(), "--no-confirm-exit"],
        input=typed, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "42\n" in ended.stdout
    assert "asked answer\n" in ended.stdout
    assert "memory" in ended.stdout
    assert "processes" in ended.stdout


# ---- several clients -------------------------------------------------------------------------------


@pytest.fixture
def two(safe: Any) -> Iterator[tuple[Any, Any]]:
    """The module's kernel by two clients."""
    other = safe.another()
    safe.drain()
    yield safe, other
    other.close()
    safe.others.remove(other)


def test_each_client_gets_its_own_replies(two: tuple[Any, Any]) -> None:
    clients = [*two, two[0].another()]
    names = [
        (client, number, client.send(f"{number} * 7", store_history=False))
        for number in range(4)
        for client in clients
    ]
    for client, number, name in names:
        cell = client.wait(name)
        assert cell.of("execute_result")[0]["data"]["text/plain"] == str(number * 7)
    for client in clients:
        assert not client.client.shell_channel.msg_ready()


def test_input_is_asked_of_the_client_that_ran_the_cell(two: tuple[Any, Any]) -> None:
    for asking, other in (two, two[::-1]):
        name = asking.send("print('got', input('who? '))")
        assert asking.client.get_stdin_msg(timeout=SECONDS)["content"]["prompt"] == "who? "
        assert not other.client.stdin_channel.msg_ready()
        asking.client.input("it")
        assert asking.wait(name).text == "got it\n"


def test_a_password_is_asked_as_one(safe: Any) -> None:
    name = safe.send("import getpass; print(len(getpass.getpass('secret: ')))")
    assert safe.client.get_stdin_msg(timeout=SECONDS)["content"] == {"prompt": "secret: ", "password": True}
    safe.client.input("four")
    assert safe.wait(name).text == "4\n"


def test_whoever_cannot_be_asked_is_not(safe: Any) -> None:
    cell = safe.run("input('never shown')", allow_stdin=False)
    assert cell.error.startswith("StdinNotImplementedError")
    assert not safe.client.stdin_channel.msg_ready()


def test_clients_see_each_others_cells_and_output(two: tuple[Any, Any]) -> None:
    first, second = two
    name = first.send("print('for all')")
    seen = []
    while not seen or seen[-1]["content"].get("execution_state") != "idle":
        message = second.client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") == name:
            seen.append(message)
    assert {message["parent_header"]["session"] for message in seen} == {first.client.session.session}
    contents = {message["header"]["msg_type"]: message["content"] for message in seen}
    assert contents["execute_input"]["code"] == "print('for all')"
    assert contents["stream"]["text"] == "for all\n"
    assert first.wait(name).text == "for all\n"


# ---- other requests ------------------------------------------------------------------------------------


def test_completion_and_inspection_know_the_variables(safe: Any) -> None:
    safe.run("a_long_name = {'some key': 1}\ndef documented():\n    'says what it does'")
    found = safe.ask("shell", "complete_request", {"code": "a_long_n", "cursor_pos": 8})
    assert found["matches"] == ["a_long_name"]
    assert (found["cursor_start"], found["cursor_end"]) == (0, 8)
    found = safe.ask("shell", "inspect_request", {"code": "documented", "cursor_pos": 10, "detail_level": 0})
    assert "says what it does" in found["data"]["text/plain"]


def test_history(safe: Any) -> None:
    safe.run("sought = 'needle in a haystack'")
    asked = {
        "output": False,
        "raw": True,
        "hist_access_type": "search",
        "pattern": "*needle*",
        "n": 5,
        "unique": True,
    }
    found = safe.ask("shell", "history_request", asked)["history"]
    assert [entry[2] for entry in found] == ["sought = 'needle in a haystack'"]
    asked = {"output": False, "raw": True, "hist_access_type": "range", "session": 0, "start": 1, "stop": 3}
    found = safe.ask("shell", "history_request", asked)["history"]
    assert [entry[1] for entry in found] == [1, 2]


def test_user_expressions(safe: Any) -> None:
    cell = safe.run("a = 6", user_expressions={"seven": "a + 1", "bad": "1 / 0"})
    found = cell.reply["user_expressions"]
    assert found["seven"]["data"]["text/plain"] == "7"
    assert found["bad"]["ename"] == "ZeroDivisionError"


def test_output_of_c_code_and_of_programs_arrives(safe: Any) -> None:
    cell = safe.run(
        "import os, subprocess, ctypes\n"
        "libc = ctypes.CDLL(None)\nlibc.puts(b'from C'); libc.fflush(None)\n"
        "subprocess.run(['sh', '-c', 'echo from a program; echo to stderr >&2'])\n"
        "os.write(1, b'from a descriptor\\n')\n"
        "!echo from a shell"
    )
    assert cell.reply["status"] == "ok"
    # A kernel copies what is written to its descriptors in a thread, which may be a moment behind the cell.
    text = cell.text
    wanted = ["from C", "from a program", "from a descriptor", "from a shell"]
    while not all(each in text for each in wanted):
        content = safe.next_published("stream")["content"]
        text += content["text"] if content["name"] == "stdout" else ""


def test_usage_is_that_of_the_container(safe: Any) -> None:
    safe.run("ballast = bytearray(100 << 20)")
    used = safe.ask("control", "usage_request")
    assert used["status"] == "ok"
    assert used["cpu_count"] > 0
    if "kernel_memory" in used:  # where a cgroup counts it
        assert used["kernel_memory"] >= 100 << 20
        assert used["host_virtual_memory"]["total"] == 1 << 30
    # Nobody inside can answer in its place.
    assert used["pid"] == safe.pid
    safe.run("del ballast")


@pytest.mark.limits
def test_usage_has_memory_and_processes(safe: Any) -> None:
    assert {"kernel_memory", "kernel_cpu", "kernel_pids"} <= safe.ask("control", "usage_request").keys()


def test_connect_request_gives_the_outer_ports(safe: Any) -> None:
    found = safe.ask("shell", "connect_request")
    file = safe.manager.get_connection_info()
    names = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")
    assert {name: found[name] for name in names} == {name: file[name] for name in names}


def test_the_heart_beats_while_code_runs(safe: Any) -> None:
    name = safe.send("print('begun', flush=True)\ninput()")
    cell = safe.wait(name, until=lambda cell: "begun" in cell.text)
    safe.client.hb_channel.unpause()
    assert safe.client.hb_channel.is_beating()
    assert safe.manager.is_alive()
    safe.client.get_stdin_msg(timeout=SECONDS)
    safe.client.input("")
    assert safe.wait(name, cell=cell).reply["status"] == "ok"


# ---- subshells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["safe", "widgets"])
def test_a_subshell_runs_beside_the_main_shell(spec: str, request: pytest.FixtureRequest) -> None:
    kernel = request.getfixturevalue(spec)
    info = kernel.ask("shell", "kernel_info_request")
    assert "kernel subshells" in info["supported_features"]
    subshell = kernel.ask("control", "create_subshell_request")["subshell_id"]
    assert kernel.ask("control", "list_subshell_request")["subshell_id"] == [subshell]
    main = kernel.send(
        "import threading; told = threading.Event(); print('waits', flush=True); print(told.wait(60))"
    )
    cell = kernel.wait(main, until=lambda cell: "waits" in cell.text)
    message = kernel.client.session.msg(
        "execute_request",
        {"code": "told.set(); print('from the side')", "silent": False, "allow_stdin": False},
    )
    message["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(message)
    # The main shell's cell ends because the subshell's ran meanwhile.
    replies, text = {}, cell.text
    name = message["header"]["msg_id"]
    while len(replies) < 2:
        reply = kernel.client.get_shell_msg(timeout=SECONDS)
        replies[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
    assert replies == {main: "ok", name: "ok"}
    while "True" not in text or "from the side" not in text:
        text += kernel.next_published("stream")["content"]["text"]
    assert kernel.ask("control", "delete_subshell_request", {"subshell_id": subshell})["status"] == "ok"
    kernel.drain()


# ---- comms and widgets -----------------------------------------------------------------------------------


ECHO = """\
def opened(comm, message):
    comm.on_msg(lambda message: comm.send({'echo': message['content']['data']}, buffers=message['buffers']))
get_ipython().kernel.comm_manager.register_target('echo', opened)"""


def test_a_comm_goes_there_and_back(widgets: Any) -> None:
    widgets.run(ECHO)
    widgets.drain()
    widgets.post("shell", "comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
    message = widgets.client.session.msg("comm_msg", {"comm_id": "c1", "data": {"number": 5}})
    message["buffers"] = [b"\x00raw\xff"]
    widgets.client.session.send(widgets.client.shell_channel.socket, message)
    answer = widgets.next_published("comm_msg")
    assert answer["content"] == {"comm_id": "c1", "data": {"echo": {"number": 5}}}
    assert [bytes(buffer) for buffer in answer["buffers"]] == [b"\x00raw\xff"]
    assert widgets.ask("shell", "comm_info_request", {"target_name": "echo"})["comms"] == {
        "c1": {"target_name": "echo"}
    }


def test_a_comm_is_closed_at_once_where_none_is_allowed(safe: Any) -> None:
    safe.run(ECHO)
    safe.drain()
    safe.post("shell", "comm_open", {"comm_id": "c2", "target_name": "echo", "data": {}})
    assert safe.next_published("comm_close", "comm_msg", "comm_open")["header"]["msg_type"] == "comm_close"
    assert safe.ask("shell", "comm_info_request")["comms"] == {}


SLIDER = "from ipywidgets import IntSlider\nslider = IntSlider(value=3)\nslider"


def test_a_slider_slides(widgets: Any) -> None:
    cell = widgets.run(SLIDER)
    assert cell.reply["status"] == "ok", cell.said
    shown = cell.of("execute_result")[0]["data"]
    opened = {content["comm_id"]: content["data"]["state"] for content in cell.of("comm_open")}
    assert opened[shown[WIDGET]["model_id"]]["value"] == 3
    # A hand moves it.
    change = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
    widgets.post("shell", "comm_msg", {"comm_id": shown[WIDGET]["model_id"], "data": change})
    assert widgets.run("print(slider.value)").text == "8\n"
    # The code moves it.
    moved = widgets.run("slider.value = 9").of("comm_msg")
    assert {"value": 9} in [content["data"].get("state") for content in moved]


def test_a_slider_is_a_placeholder_where_widgets_are_not_allowed(safe: Any) -> None:
    cell = safe.run(SLIDER)
    assert cell.reply["status"] == "ok", cell.said
    (shown,) = cell.of("execute_result")
    assert WIDGET not in shown["data"]
    assert "IntSlider(value=3" in cell.said
    assert not cell.of("comm_open", "comm_msg")
    assert f"Withheld: {WIDGET}" in cell.said
    assert "Isolated Python (widgets)" in cell.said


# ---- the debugger ------------------------------------------------------------------------------------------


def test_the_debugger_stops_at_a_breakpoint(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python-widgets")
    assert "debugger" in kernel.ask("shell", "kernel_info_request")["supported_features"]
    debugger = Debugger(kernel)
    debugger.attach()
    code = "a = 6\nb = a * 7\nprint(b)"
    source = debugger.ask("dumpCell", code=code)["body"]["sourcePath"]
    placed = debugger.ask(
        "setBreakpoints", source={"path": source}, breakpoints=[{"line": 2}], sourceModified=False
    )
    assert [each["verified"] for each in placed["body"]["breakpoints"]] == [True]
    assert debugger.ask("configurationDone")["success"]
    name = kernel.send(code)
    thread = debugger.event("stopped")["body"]["threadId"]
    frames = debugger.ask("stackTrace", threadId=thread)["body"]["stackFrames"]
    assert frames[0]["line"] == 2
    scopes = debugger.ask("scopes", frameId=frames[0]["id"])["body"]["scopes"]
    variables = debugger.ask("variables", variablesReference=scopes[0]["variablesReference"])["body"][
        "variables"
    ]
    values = {each["name"]: each["value"] for each in variables}
    assert values["a"] == "6"
    assert "b" not in values
    assert debugger.ask("continue", threadId=thread)["success"]
    assert kernel.reply(name)["status"] == "ok"
    assert kernel.next_published("stream")["content"]["text"] == "42\n"
    assert debugger.ask("disconnect", restart=False, terminateDebuggee=True)["success"]


def test_the_debugger_is_refused_where_its_data_may_not_pass(safe: Any) -> None:
    assert "debugger" not in safe.ask("shell", "kernel_info_request").get("supported_features", [])
    answer = Debugger(safe).ask("initialize", clientID="test", adapterID="")
    assert answer["success"] is False
    assert "Isolated Python (widgets)" in answer["message"]
