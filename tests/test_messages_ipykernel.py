"""The messages of a real ipykernel through the filter: users keep what they need.

The kernel runs beside the test and not in a container: what it sends is what is looked at here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic.firewall.messages import MessageFilter, Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 60

# One kernel serves the whole module.
pytestmark = pytest.mark.xdist_group("messages_ipykernel")


class Front:
    """A client that sees a kernel's messages as the filter leaves them."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import KernelManager

        # No folders: the kernel is this interpreter's own, whatever the user has installed.
        self.manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "IPYTHONDIR": str(folder / ".ipython")})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)
        self.filter = MessageFilter("safe")

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()

    def passed(self, channel: Any, message: dict[str, Any]) -> Outgoing | None:
        """Filter one message, as it is on the wire."""
        theirs = json.loads(json.dumps([message["content"], message["metadata"]], default=str))
        parent = message["parent_header"].get("msg_id", "")
        return self.filter.outgoing(channel, message["header"]["msg_type"], parent, *theirs)

    def run(self, code: str, *, answer: str = "", **more: Any) -> Cell:
        """Run a cell; return what is left of its messages."""
        number = self.client.execute(code, allow_stdin=bool(answer), **more)
        cell = Cell()
        if answer:
            request = self.passed("stdin", self.client.get_stdin_msg(timeout=SECONDS))
            assert request is not None
            cell.messages.append(request)
            self.client.input(answer)
        state = ""
        while state != "idle":
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") != number:
                continue
            outgoing = self.passed("iopub", message)
            state = message["content"].get("execution_state", state)
            if outgoing is not None:
                cell.messages.append(outgoing)
        reply = self.reply("shell", number)
        cell.reply, cell.metadata = reply.content, reply.metadata
        return cell

    def ask(self, channel: str, msg_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """Send any request; return what is left of the reply."""
        message = self.client.session.msg(msg_type, content)
        getattr(self.client, f"{channel}_channel").send(message)
        return self.reply(channel, message["header"]["msg_id"]).content

    def reply(self, channel: str, number: str) -> Outgoing:
        """Return what is left of the reply to one request; until it was ready, the kernel was asked others."""
        while True:
            message = getattr(self.client, f"get_{channel}_msg")(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == number:
                outgoing = self.passed(channel, message)
                assert outgoing is not None
                return outgoing


class Cell:
    """What is left of a cell's messages."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.reply: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}

    def of(self, msg_type: str) -> list[dict[str, Any]]:
        return [each.content for each in self.messages if each.msg_type == msg_type]

    def text(self, name: str = "stdout") -> str:
        return "".join(each["text"] for each in self.of("stream") if each["name"] == name)

    def result(self) -> dict[str, Any]:
        (result,) = self.of("execute_result")
        data: dict[str, Any] = result["data"]
        return data


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("kernel"))
    yield front
    front.stop()


def test_a_cell_from_busy_to_idle(front: Front) -> None:
    cell = front.run("print('out'); 6 * 7", user_expressions={"good": "1 + 1", "bad": "nothing"})
    assert [each.msg_type for each in cell.messages] == [
        "status", "execute_input", "stream", "execute_result", "status"
    ]  # fmt: skip
    assert cell.of("status") == [{"execution_state": "busy"}, {"execution_state": "idle"}]
    (source,) = cell.of("execute_input")
    assert source["code"] == "print('out'); 6 * 7"
    assert cell.text() == "out\n"
    assert cell.result() == {"text/plain": "42"}
    assert cell.reply["status"] == "ok"
    assert cell.reply["execution_count"] == source["execution_count"]
    assert cell.reply["user_expressions"]["good"]["data"] == {"text/plain": "2"}
    assert cell.reply["user_expressions"]["bad"]["ename"] == "NameError"
    assert re.fullmatch(r"2\d{3}-\d\d-\d\dT[\d:.]+Z", cell.metadata["started"])


def test_both_streams_with_colours_and_progress(front: Front) -> None:
    cell = front.run(
        "import sys\n"
        "for part in range(0, 101, 50): print(f'\\r{part}%', end='', file=sys.stderr, flush=True)\n"
        "print('\\x1b[31mred\\x1b[0m é')"
    )
    assert cell.text() == "\x1b[31mred\x1b[0m é\n"
    assert cell.text("stderr") == "\r0%\r50%\r100%"


def test_a_link_that_is_hidden_in_a_stream_is_not_shown(front: Front) -> None:
    cell = front.run(
        "import sys\n"
        "for part in ('\\x1b', ']8;;https://evil.exam', 'ple\\x1b', '\\\\bank\\x1b]8;;', '\\x07.'):\n"
        "    sys.stdout.write(part); sys.stdout.flush()"
    )
    assert cell.text() == "bank."


def test_a_traceback_keeps_its_colours_and_its_lines(front: Front) -> None:
    cell = front.run("def f():\n    return 1 / 0\nf()")
    (error,) = cell.of("error")
    assert (error["ename"], error["evalue"]) == ("ZeroDivisionError", "division by zero")
    shown = "\n".join(error["traceback"])
    assert "\x1b[" in shown
    assert "return" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert cell.reply["status"] == "error"
    assert cell.reply["traceback"] == error["traceback"]


def test_a_plot_is_a_picture(front: Front) -> None:
    pytest.importorskip("matplotlib", reason="host: no matplotlib")
    cell = front.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    (shown,) = cell.of("display_data")
    assert base64.b64decode(shown["data"]["image/png"]).startswith(b"\x89PNG")
    assert shown["data"]["text/plain"].startswith("<Figure")
    assert [each.note for each in cell.messages if each.note] == []


def test_a_plot_as_svg_is_withheld_and_the_cell_says_so(front: Front) -> None:
    pytest.importorskip("matplotlib", reason="host: no matplotlib")
    cell = front.run(
        "%matplotlib inline\n%config InlineBackend.figure_formats = ['svg']\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); plt.show()\n%config InlineBackend.figure_formats = ['png']"
    )
    (shown,) = cell.of("display_data")
    assert shown["data"].keys() == {"text/plain"}
    assert "Withheld: image/svg+xml (can run scripts)." in shown["data"]["text/plain"]
    assert "Isolated Python (widgets)" in shown["data"]["text/plain"]


def test_a_table_of_pandas_is_a_table(front: Front) -> None:
    pytest.importorskip("pandas", reason="host: no pandas")
    data = front.run("import pandas\npandas.DataFrame({'a': [1, 2], '<b>': [3, 4]})").result()
    assert "<table" in data["text/html"]
    assert data["text/html"].count("<td") == 4
    assert "Withheld" not in data["text/html"] + data["text/plain"]


def test_a_display_is_updated_under_its_own_name(front: Front) -> None:
    cell = front.run(
        "from IPython.display import display, clear_output\n"
        "for name in (True, 'my \"table\"'):\n"
        "    shown = display('first', display_id=name)\n    shown.update('second')\n"
        "clear_output(wait=True)"
    )
    first = [each["transient"]["display_id"] for each in cell.of("display_data")]
    second = [each["transient"]["display_id"] for each in cell.of("update_display_data")]
    assert first == second
    assert len(set(first)) == 2
    assert all(re.fullmatch("[A-Za-z0-9]+", name) for name in first)
    assert [each["data"] for each in cell.of("update_display_data")] == [{"text/plain": "'second'"}] * 2
    assert cell.of("clear_output") == [{"wait": True}]


def test_help_in_a_cell_opens_the_pager(front: Front) -> None:
    (page,) = front.run("print?").reply["payload"]
    assert page["source"] == "page"
    assert "Prints the values to a stream" in page["data"]["text/plain"]


def test_loading_a_file_shows_the_cell_that_it_would_write(front: Front) -> None:
    (page,) = front.run("%%writefile made.py\nmade = 1").reply["payload"] or [None]
    assert page is None
    (page,) = front.run("%load made.py").reply["payload"]
    assert page["source"] == "page"
    assert page["data"]["text/plain"].startswith("Withheld: the code wants to write a cell.")
    assert page["data"]["text/plain"].endswith("made = 1\n")


def test_a_question_is_asked_and_answered(front: Front) -> None:
    cell = front.run("print(input('name? '))", answer="ada")
    assert cell.of("input_request") == [{"prompt": "name? ", "password": False}]
    assert cell.text() == "ada\n"
    secret = front.run("import getpass\nprint(len(getpass.getpass('secret? ')))", answer="1234")
    assert secret.of("input_request") == [{"prompt": "secret? ", "password": True}]


def test_script_and_comms_do_not_pass(front: Front) -> None:
    cell = front.run(
        "from IPython.display import HTML, Javascript, display\nfrom comm import create_comm\n"
        "display(HTML('<i>kept</i><script>alert(1)</script>'), Javascript('alert(1)'))\n"
        "create_comm(target_name='t', data={'a': 1}).send({'b': 2})"
    )
    html, script = cell.of("display_data")
    assert html["data"]["text/html"].startswith("<i>kept</i>")
    assert "application/javascript" not in script["data"]
    assert "alert" not in str([html, script])
    assert not {each.msg_type for each in cell.messages} & {"comm_open", "comm_msg", "comm_close"}
    assert front.ask("shell", "comm_info_request", {})["comms"] == {}


def test_completions_have_their_kinds(front: Front) -> None:
    front.run("import os")
    found = front.ask("shell", "complete_request", {"code": "os.path.joi", "cursor_pos": 11})
    assert "join" in found["matches"]
    assert (found["cursor_start"], found["cursor_end"]) == (8, 11)
    kinds = {each["text"]: each["type"] for each in found["metadata"]["_jupyter_types_experimental"]}
    assert kinds.keys() == set(found["matches"])
    assert kinds["join"] == "function"


def test_inspection_history_and_completeness(front: Front) -> None:
    found = front.ask("shell", "inspect_request", {"code": "print", "cursor_pos": 3, "detail_level": 0})
    assert found["found"]
    assert "Prints the values" in found["data"]["text/plain"]
    nothing = front.ask("shell", "inspect_request", {"code": "nothing_of_the_kind", "cursor_pos": 3})
    assert nothing == {"status": "ok", "found": False, "data": {}, "metadata": {}}
    front.run("remembered = 1")
    history = front.ask(
        "shell", "history_request", {"hist_access_type": "tail", "n": 1, "raw": True, "output": False}
    )
    (entry,) = history["history"]
    assert entry[2] == "remembered = 1"
    begun = front.ask("shell", "is_complete_request", {"code": "for x in y:"})
    assert begun == {"status": "incomplete", "indent": "    "}
    assert front.ask("shell", "is_complete_request", {"code": "x"}) == {"status": "complete"}


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_the_introduction_says_what_front_ends_need(front: Front, channel: str) -> None:
    info = front.ask(channel, "kernel_info_request", {})
    assert info["status"] == "ok"
    assert info["protocol_version"].startswith("5.")
    assert info["implementation"] == "ipython"
    language = info["language_info"]
    assert (language["name"], language["file_extension"]) == ("python", ".py")
    assert language["nbconvert_exporter"] == "python"
    assert language["codemirror_mode"] == {"name": "ipython", "version": 3}
    assert info["banner"].startswith("Python 3.")
    assert len(info["help_links"]) == 7
    assert "debugger" not in info["supported_features"]


def test_the_debugger_is_refused(front: Front) -> None:
    request = {"type": "request", "seq": 5, "command": "debugInfo", "arguments": {}}
    reply = front.ask("control", "debug_request", request)
    assert (reply["request_seq"], reply["success"]) == (5, False)
    assert "Isolated Python (widgets)" in reply["message"]


def test_a_subshell_runs_while_the_cell_does(front: Front) -> None:
    info = front.ask("control", "kernel_info_request", {})
    if "kernel subshells" not in info["supported_features"]:
        pytest.skip("host: an ipykernel without subshells")
    made = front.ask("control", "create_subshell_request", {})
    assert front.ask("control", "list_subshell_request", {})["subshell_id"] == [made["subshell_id"]]
    assert front.ask("control", "delete_subshell_request", {"subshell_id": made["subshell_id"]}) == {
        "status": "ok"
    }


def test_an_interrupt_is_answered(front: Front) -> None:
    assert front.ask("control", "interrupt_request", {}) == {"status": "ok"}
    deadline = time.monotonic() + SECONDS
    while front.run("1").reply["status"] != "ok":  # the signal may come late and end this cell
        assert time.monotonic() < deadline
