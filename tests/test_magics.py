"""The magics in a real ipykernel, driven by its messages: what a front end gets, and when."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import cgroups, options
from nsmagic.cgroups import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One kernel serves the whole module.
pytestmark = pytest.mark.xdist_group("magics")

SECONDS = 40.0
PROMPT = 10.0


@dataclass
class Cell:
    """What came of one execute request, in the order in which it came."""

    number: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["content"] for message in self.messages if message["msg_type"] == kind]

    def text(self, name: str = "stdout") -> str:
        return "".join(content["text"] for content in self.of("stream") if content["name"] == name)

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [content["data"] for content in self.of("display_data") + self.of("execute_result")]

    @property
    def error(self) -> str:
        """The error as the reader sees it, without colours; the reply says the same."""
        assert self.reply["status"] == "error", self.messages
        (error,) = self.of("error")
        assert error["evalue"] == self.reply["evalue"]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))

    def good(self) -> Cell:
        assert self.reply["status"] == "ok", (self.reply.get("traceback"), self.text("stderr"))
        return self


class Kernel:
    """A kernel and a client of it."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import KernelManager

        # No folders: the kernel is this interpreter's own, whatever the user has installed.
        self.manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        self.manager.start_kernel(cwd=str(folder), env={**os.environ, "IPYTHONDIR": str(folder / ".ipython")})
        self.folder = folder
        self.connect()

    def connect(self) -> None:
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def renew(self) -> None:
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self.connect()
        self.good("%load_ext nsmagic")

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()

    def send(self, code: str, *, stdin: bool = False) -> Cell:
        return Cell(self.client.execute(textwrap.dedent(code), allow_stdin=stdin))

    def listen(self, *cells: Cell, until: Callable[[], bool]) -> None:
        """Give each cell the messages that belong to it until the condition holds."""
        deadline = time.monotonic() + SECONDS
        by_number = {cell.number: cell for cell in cells}
        while not until():
            left = deadline - time.monotonic()
            assert left > 0, [cell.messages for cell in cells]
            try:
                message = self.client.get_iopub_msg(timeout=left)
            except queue.Empty:
                continue
            cell = by_number.get(message["parent_header"].get("msg_id", ""))
            if cell:
                cell.messages.append(message)

    def finish(self, cell: Cell, *others: Cell) -> Cell:
        """Wait for the cell's end."""

        def idle() -> bool:
            return any(content["execution_state"] == "idle" for content in cell.of("status"))

        self.listen(cell, *others, until=idle)
        reply = self.client.get_shell_msg(timeout=SECONDS)
        while reply["msg_type"] == "kernel_info_reply":  # a slow start was asked for it more than once
            reply = self.client.get_shell_msg(timeout=SECONDS)
        assert reply["parent_header"]["msg_id"] == cell.number
        cell.reply = reply["content"]
        return cell

    def run(self, code: str) -> Cell:
        return self.finish(self.send(code))

    def good(self, code: str) -> Cell:
        return self.run(code).good()

    def value(self, expression: str) -> str:
        """An expression's value in the kernel itself, as text."""
        reply = self.client.execute_interactive(
            "", user_expressions={"value": expression}, output_hook=lambda _: None, timeout=SECONDS
        )
        found = reply["content"]["user_expressions"]["value"]
        assert found["status"] == "ok", found
        return str(found["data"]["text/plain"])

    def answer_to_input(self, text: str) -> dict[str, Any]:
        request = self.client.get_stdin_msg(timeout=SECONDS)
        assert request["msg_type"] == "input_request"
        self.client.input(text)
        content: dict[str, Any] = request["content"]
        return content


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("notebook")
    kernel = Kernel(folder)
    try:
        kernel.good("%load_ext nsmagic")
        yield kernel
    finally:
        kernel.stop()


@pytest.fixture
def kernel(started: Kernel) -> Iterator[Kernel]:
    """The kernel; a test leaves no session defaults and no container behind."""
    yield started
    try:
        started.good("%contain_config --reset")
        assert "no containers are live" in started.good("%containers").shown[0]["text/plain"]
    except BaseException:
        # The next test is not to suffer from what this one left.
        started.renew()
        raise


@pytest.fixture
def gate(kernel: Kernel) -> Iterator[Gate]:
    gate = Gate(kernel.folder)
    yield gate
    gate.remove()


class Gate:
    """A FIFO at which code waits, in a container or not, until the test opens it."""

    count = 0

    def __init__(self, folder: Path) -> None:
        Gate.count += 1
        self.folder = folder / f"gate{Gate.count}"
        self.folder.mkdir()
        self.path = self.folder / "fifo"
        os.mkfifo(self.path)
        self.path.chmod(0o666)
        self.bind = f"--bind {self.folder}:rw"
        self.wait = f"open({str(self.path)!r}).read()"

    def open(self) -> None:
        """Let whoever waits go on; that it waits is certain, since opening a FIFO blocks without a reader."""
        self.path.write_bytes(b"")

    def remove(self) -> None:
        self.path.unlink()
        self.folder.rmdir()


def need(**limits: Any) -> None:
    """Skip where the host cannot enforce these limits."""
    missing = min((each.missing(Limits(**limits)) for each in cgroups.mechanisms()), key=len)
    if missing:
        pytest.skip("host: " + "; ".join(f"no {each.what} limit: {each.reason}" for each in missing))


# ---- what a cell does ------------------------------------------------------------


def test_a_cell_runs_in_a_container_of_its_own(kernel: Kernel) -> None:
    cell = kernel.good("%%contain\nimport os, socket\nprint(os.getpid() < 10, socket.gethostname())")
    assert cell.text() == "True container\n"
    assert kernel.value("'socket' in globals()") == "False"


def test_the_last_expression_is_displayed(kernel: Kernel) -> None:
    assert kernel.good("%%contain\nx = 6\nx * 7").shown == [{"text/plain": "42"}]
    assert kernel.good("%%contain\n6 * 7;").shown == []


def test_one_line(kernel: Kernel) -> None:
    assert kernel.good("%contain print(6  *  7, 'a  b')").text() == "42 a  b\n"
    assert kernel.good("%contain --hostname box import os; print(os.uname().nodename)").text() == "box\n"


def test_one_line_is_taken_as_it_was_typed(kernel: Kernel) -> None:
    # IPython fills in {…} and $name from the notebook's variables where a magic does not forbid it.
    kernel.good("secret = 'from outside'")
    assert kernel.good("%contain print('{secret}', '$secret')").text() == "{secret} $secret\n"


def test_one_line_takes_quoted_options(kernel: Kernel) -> None:
    cell = kernel.good("%contain --env 'TEXT=two words' import os; print(os.environ['TEXT'])")
    assert cell.text() == "two words\n"


def test_shell_commands_and_magics_work_inside(kernel: Kernel) -> None:
    cell = kernel.good("%%contain\nprint('a')\n!echo b\nlines = !echo c\nprint(lines)\n%pwd")
    assert cell.text() == "a\nb\n['c']\n"
    assert cell.shown == [{"text/plain": repr(str(kernel.folder))}]


def test_a_program_gets_the_cell_as_its_input(kernel: Kernel) -> None:
    cell = kernel.run("%%contain bash\necho $((6 * 7))\necho oops >&2\nexit 7")
    assert (cell.text(), cell.text("stderr")) == ("42\n", "oops\n")
    assert cell.error.endswith("exit status 7")
    assert kernel.good("%%contain sort -r\na\nb").text() == "b\na\n"


def test_a_plot_is_shown(kernel: Kernel) -> None:
    pytest.importorskip("matplotlib", reason="host: no matplotlib")
    cell = kernel.good("%%contain\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    assert [sorted(data) for data in cell.shown] == [["image/png", "text/plain"]]


@pytest.mark.parametrize("line", ["%matplotlib inline", "%config InlineBackend.figure_format = 'retina'"])
def test_the_lines_that_notebooks_with_plots_begin_with(kernel: Kernel, line: str) -> None:
    pytest.importorskip("matplotlib", reason="host: no matplotlib")
    cell = kernel.good(f"%%contain\n{line}\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    assert [sorted(data) for data in cell.shown] == [["image/png", "text/plain"]]


# ---- order and time of output ------------------------------------------------------


def test_output_arrives_while_the_cell_still_runs(kernel: Kernel, gate: Gate) -> None:
    cell = kernel.send(f"%%contain {gate.bind}\nprint('first')\n{gate.wait}\nprint('second')")
    kernel.listen(cell, until=lambda: "first\n" in cell.text())
    assert "second" not in cell.text()
    gate.open()
    assert kernel.finish(cell).good().text() == "first\nsecond\n"


def test_a_programs_output_arrives_while_it_still_runs(kernel: Kernel, gate: Gate) -> None:
    cell = kernel.send(f"%%contain {gate.bind} bash\nprintf first\ncat {gate.path}\nprintf second")
    kernel.listen(cell, until=lambda: cell.text() == "first")
    gate.open()
    assert kernel.finish(cell).good().text() == "firstsecond"


def test_prints_and_displays_keep_their_order(kernel: Kernel) -> None:
    cell = kernel.good("""\
        %%contain
        import sys
        from IPython.display import clear_output, display
        print("a")
        handle = display(1, display_id=True)
        print("b")
        handle.update(2)
        print("c", file=sys.stderr)
        display(3)
        clear_output(wait=True)
        print("d")
        4
    """)
    seen = []
    for message in cell.messages:
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                seen.append((content["name"], content["text"]))
            case "display_data" | "update_display_data" as kind:
                seen.append((kind, content["data"]["text/plain"]))
            case "clear_output":
                seen.append(("clear_output", content["wait"]))
    assert seen == [
        ("stdout", "a\n"),
        ("display_data", "1"),
        ("stdout", "b\n"),
        ("update_display_data", "2"),
        ("stderr", "c\n"),
        ("display_data", "3"),
        ("clear_output", True),
        ("stdout", "d\n"),
        ("display_data", "4"),
    ]
    first, *_ = cell.of("display_data")
    (update,) = cell.of("update_display_data")
    assert first["transient"]["display_id"] == update["transient"]["display_id"]


def test_text_that_is_not_utf_8_and_control_sequences(kernel: Kernel) -> None:
    cell = kernel.good(r"%%contain bash" "\n" r"printf 'a\xff\303\251\033]0;title\007z\n'")
    assert cell.text() == "a\ufffdéz\n"


def test_much_output_comes_whole(kernel: Kernel) -> None:
    cell = kernel.good("%%contain\nfor number in range(50_000): print(number)")
    assert cell.text() == "".join(f"{number}\n" for number in range(50_000))


# ---- input -----------------------------------------------------------------------


def test_input_asks_through_the_front_end(kernel: Kernel) -> None:
    cell = kernel.send(
        "%%contain\nprint('before')\nprint('hello', input('name? '))\nimport getpass\nprint(len(getpass.getpass()))",
        stdin=True,
    )
    assert kernel.answer_to_input("Ada") == {"prompt": "name? ", "password": False}
    assert kernel.answer_to_input("12345")["password"] is True
    assert kernel.finish(cell).good().text() == "before\nhello Ada\n5\n"


def test_input_where_nobody_can_answer(kernel: Kernel) -> None:
    assert "EOFError" in kernel.run("%%contain\ninput()").error


# ---- errors ------------------------------------------------------------------------


def test_a_traceback_shows_the_cells_own_lines(kernel: Kernel) -> None:
    cell = kernel.run("%%contain\ndef inner():\n    raise ValueError('my text')\n\ninner()")
    assert "----> 4 inner()" in cell.error
    assert "ValueError: my text" in cell.error
    assert "runner.py" not in cell.error
    assert "magics.py" not in cell.error


def test_a_syntax_error(kernel: Kernel) -> None:
    cell = kernel.run("%%contain\nx = = 1")
    assert "SyntaxError" in cell.error
    assert "x = = 1" in cell.error


def test_an_exit_status_is_said(kernel: Kernel) -> None:
    assert kernel.run("%%contain\nraise SystemExit(3)").error.endswith("exit status 3")
    kernel.good("%%contain\nraise SystemExit(0)")


def test_a_signal_is_said(kernel: Kernel) -> None:
    cell = kernel.run("%%contain\nimport os\nos.kill(os.getpid(), 11)")
    assert cell.error.endswith("killed by signal 11 (SIGSEGV)")


def test_a_time_limit_is_said(kernel: Kernel) -> None:
    cell = kernel.run("%%contain --timeout 300ms\nprint('on', flush=True)\nimport time\ntime.sleep(1000)")
    assert cell.text() == "on\n"
    assert re.search(r"time limit: it ran longer than 300 ms", cell.error)


def test_out_of_memory_is_said_and_the_notebook_goes_on(kernel: Kernel) -> None:
    need(mem=64 << 20)
    kernel.good("kept = 'still here'")
    cell = kernel.run("%%contain --mem 64M\nprint('on', flush=True)\nhog = bytearray(b'x' * (256 << 20))")
    assert cell.text() == "on\n"
    assert re.search(r"out of memory: .*64 MiB.*peak", cell.error)
    assert kernel.value("kept") == "'still here'"


def test_a_memory_limit_that_cannot_be_enforced_is_refused_with_the_remedy(kernel: Kernel) -> None:
    missing = min((each.missing(Limits(mem=64 << 20)) for each in cgroups.mechanisms()), key=len)
    if not missing:
        pytest.skip("host: it can limit memory")
    cell = kernel.run("%%contain --mem 64M\nprint('ran')")
    assert cell.text() == ""
    assert cell.error.startswith("HostError: --mem cannot be enforced here")
    assert "--best-effort" in cell.error
    cell = kernel.good("%%contain --mem 64M --best-effort\nprint('ran')")
    assert cell.text() == "ran\n"
    assert "nsmagic: mem is not enforced" in cell.text("stderr")


def test_the_output_limit_stops_or_drops(kernel: Kernel) -> None:
    flood = "for _ in range(1000): print('x' * 99)\nprint('end')"
    cell = kernel.run(f"%%contain --output-limit 10K\n{flood}")
    assert "output limit" in cell.error
    assert len(cell.text()) == 10 << 10
    cell = kernel.good(f"%%contain --output-limit 10K:drop\n{flood}")
    assert len(cell.text()) == 10 << 10
    assert "89764 bytes of output over the limit were dropped" in cell.text("stderr")


def test_no_raise_error(kernel: Kernel) -> None:
    cell = kernel.good("%%contain --no-raise-error\nraise SystemExit(3)")
    assert cell.text("stderr") == "nsmagic: exit status 3\n"
    assert kernel.value("_contained.exit_status") == "3"


def test_no_raise_error_still_shows_the_traceback(kernel: Kernel) -> None:
    cell = kernel.good("%%contain --no-raise-error\nraise ValueError('my text')")
    assert "----> 1 raise ValueError('my text')" in re.sub(r"\x1b\[[0-9;]*m", "", cell.text("stderr"))


WRONG = {
    "--meme 1G": "--meme: there is no such option; did you mean --mem?",
    "--mem 12Q": "--mem: '12Q' is not a size",
    "--mem": "--mem: needs a value: --mem SIZE",
    "--mem 1K": "--mem: '1K' is out of range",
    "--cpus 0": "--cpus: '0' is not a number of CPUs",
    "--pids 0": "--pids: '0' is not a number of processes",
    "--timeout -1": "--timeout: '-1' is not a duration",
    "--ns foo": "--ns: 'foo' is not a namespace",
    "--net foo": "--net: 'foo' is not a network",
    "--net host --ns all": "--net: host means no network namespace",
    "--rich maybe": "--rich: 'maybe' is not a kind of rich output",
    "--user me": "--user: 'me' is not a user",
    "--env X": "--env: 'X' is not KEY=VALUE",
    "--bind /not/there": "--bind: ",
    "--workdir /not/there": "--workdir: ",
    f"--hostname {'h' * 300}": "--hostname: ",
    "--output-limit 1M:explode": "--output-limit: 'explode'",
    "--bg=yes": "--bg: takes no value",
    "--out 1x": "--out: '1x' is not a variable's name",
    "-i nowhere": "-i: there is no variable 'nowhere' in this notebook",
    "--proc p": "--proc: goes with --bg",
    "-o x bash": "-o: goes with Python cells",
    "--env 'X=1": "%%contain: the line cannot be read",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_options_are_one_line_and_start_nothing(kernel: Kernel, line: str) -> None:
    kernel.good("_contained = None")
    cell = kernel.run(f"%%contain {line}\nprint('ran')")
    assert cell.error.count("\n") == 0
    assert cell.error.startswith(f"SpecError: {WRONG[line]}")
    assert cell.text() == ""
    assert kernel.value("_contained") == "None"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%contain", "%contain: needs code"),
        ("%contain --mem 128M", "%contain: needs code"),
        ("%contain_config --mem 12Q", "--mem: '12Q' is not a size"),
        ("%contain_config --bg", "--bg: there is no such option"),
        ("%contain_config numpy", "%contain_config: takes options only, not 'numpy'"),
        ("%contain_config --preload 'no/module'", "--preload: 'no/module' is not a module's name"),
        ("%containers all", "%containers: takes nothing behind it"),
        ("%contain_doctor now", "%contain_doctor: takes nothing behind it"),
    ],
)
def test_wrong_lines_of_the_companions(kernel: Kernel, line: str, words: str) -> None:
    error = kernel.run(line).error
    assert error.count("\n") == 0
    assert error.startswith(f"SpecError: {words}")


# ---- variables -------------------------------------------------------------------


def test_values_go_in_and_come_out(kernel: Kernel) -> None:
    kernel.good("a, b = 6, {'seven': [7, None, 2.5]}")
    kernel.good("%%contain -i a,b -o c -o d,e\nc = a * b['seven'][0]\nd = (b, {1, 2}, b'x')\ne = 'text'")
    assert kernel.value("(c, d, e)") == repr((42, ({"seven": [7, None, 2.5]}, {1, 2}, b"x"), "text"))


def test_arrays_and_frames_go_in_and_come_out(kernel: Kernel) -> None:
    pytest.importorskip("numpy", reason="host: no numpy")
    pytest.importorskip("pandas", reason="host: no pandas")
    kernel.good(
        "import numpy as np, pandas as pd\nm = np.eye(3)\nt = pd.DataFrame({'k': ['x', 'y'], 'v': [1, 2]})"
    )
    kernel.good("%%contain -i m,t -o n,u,total\nn = m * 2\nu = t.assign(w=t.v * 10)\ntotal = u.w.sum()")
    assert kernel.value("bool((n == np.eye(3) * 2).all()), n.dtype.name") == "(True, 'float64')"
    assert kernel.value("u.equals(pd.DataFrame({'k': ['x', 'y'], 'v': [1, 2], 'w': [10, 20]}))") == "True"
    assert kernel.value("int(total)") == "30"


def test_a_value_without_a_data_only_form_is_named(kernel: Kernel) -> None:
    kernel.good("fine = strange = None")
    cell = kernel.run("%%contain -o fine,strange\nfine, strange = 1, object()")
    assert cell.error.count("\n") == 0
    assert cell.error.startswith("ValueTransferError: strange: ")
    assert "object has no data-only form" in cell.error
    assert kernel.value("strange") == "None"


def test_a_value_that_was_never_set_is_named(kernel: Kernel) -> None:
    assert kernel.run("%%contain -o never\nx = 1").error.startswith("ValueTransferError: never: ")


def test_a_value_that_cannot_go_in_is_named(kernel: Kernel) -> None:
    kernel.good("lock = __import__('threading').Lock()")
    cell = kernel.run("%%contain -i lock\nprint('ran')")
    assert cell.error.startswith("ValueTransferError: lock: ")
    assert cell.text() == ""


def test_streams_go_into_variables(kernel: Kernel) -> None:
    cell = kernel.good("%%contain --out o --err e bash\necho out\necho err >&2")
    assert cell.of("stream") == []
    assert kernel.value("(o, e)") == "('out\\n', 'err\\n')"
    kernel.run("%%contain --out o\nprint('kept')\n1 / 0")
    assert kernel.value("o") == "'kept\\n'"


def test_the_last_result_is_kept(kernel: Kernel) -> None:
    kernel.good("%%contain\nopen('made.txt', 'w').write('hi')")
    assert kernel.value("[(c.kind, c.path.rpartition('/')[2], c.size) for c in _contained.changes]") == (
        "[('added', 'made.txt', 2)]"
    )
    assert not (kernel.folder / "made.txt").exists()
    kernel.good("_contained.save('made.txt', to='taken.txt')")
    assert (kernel.folder / "taken.txt").read_text() == "hi"


# ---- rich output ---------------------------------------------------------------------

SCRIPT = "from IPython.display import HTML\nHTML('<b>bold</b><script>alert(1)</script>')"


def test_script_is_withheld_and_that_is_said(kernel: Kernel) -> None:
    cell = kernel.good(f"%%contain\n{SCRIPT}")
    (shown,) = cell.shown
    assert "<b>bold</b>" in shown["text/html"]
    assert "alert" not in shown["text/html"]
    assert "nsmagic: withheld text/html: " in cell.text("stderr")
    assert "--rich trusted" in cell.text("stderr")


def test_javascript_is_withheld(kernel: Kernel) -> None:
    cell = kernel.good("%%contain\nfrom IPython.display import Javascript\nJavascript('alert(1)')")
    assert not any("javascript" in mime for data in cell.shown for mime in data)
    assert "withheld application/javascript" in cell.text("stderr")


def test_trusted_rich_output_passes(kernel: Kernel) -> None:
    cell = kernel.good(f"%%contain --rich trusted\n{SCRIPT}")
    assert "<script>alert(1)</script>" in cell.shown[0]["text/html"]
    assert cell.text("stderr") == ""


# ---- interrupt ------------------------------------------------------------------------


def running(word: str) -> list[str]:
    """The processes whose command line has this word."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if word.encode() in words:
                found.append(folder.name)
    return found


@pytest.mark.parametrize("program", [False, True])
def test_an_interrupt_stops_the_container(kernel: Kernel, until: Callable[..., bool], program: bool) -> None:  # noqa: FBT001 - a parameter
    mark = f"{1_000_000 + os.getpid()}.{int(program)}"
    code = f"bash\nsleep {mark} & echo started\nwait" if program else f"\nprint('started')\n!sleep {mark}"
    cell = kernel.send(f"%%contain {code}")
    kernel.listen(cell, until=lambda: "started" in cell.text())
    assert until(lambda: running(mark))
    began = time.monotonic()
    kernel.manager.interrupt_kernel()
    kernel.finish(cell)
    assert time.monotonic() - began < PROMPT
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert until(lambda: not running(mark), 1.0)
    assert kernel.good("%contain print('on')").text() == "on\n"


# ---- in the background ---------------------------------------------------------------


def test_background_output_belongs_to_the_cell_that_started_it(kernel: Kernel, gate: Gate) -> None:
    other = Gate(kernel.folder)
    first = kernel.run(
        f"%%contain --bg --proc p {gate.bind}\nimport sys\nprint('early')\n{gate.wait}\n"
        "print('late')\ndisplay(1)\nprint('err', file=sys.stderr)\n2"
    ).good()
    second = kernel.send(f"print('busy')\n{other.wait}\nprint('free')")
    kernel.listen(first, second, until=lambda: second.text() == "busy\n")
    gate.open()
    kernel.listen(first, second, until=lambda: len(first.shown) == 2 and "err" in first.text("stderr"))
    assert second.text() == "busy\n"
    other.open()
    kernel.finish(second, first)
    other.remove()
    assert (first.text(), first.text("stderr"), second.text()) == ("early\nlate\n", "err\n", "busy\nfree\n")
    assert [data["text/plain"] for data in first.shown] == ["1", "2"]
    assert kernel.value("p.wait(20).describe(), p.done") == "('exit status 0', True)"


def test_a_background_cell_is_listed_and_can_be_stopped(kernel: Kernel, gate: Gate) -> None:
    cell = kernel.run(f"%%contain --bg --proc p {gate.bind}\nprint('on')\n{gate.wait}").good()
    kernel.listen(cell, until=lambda: cell.text() == "on\n")
    listed = kernel.good("%containers").shown[0]
    table, tree = listed["text/plain"].split("\n\n")
    assert len(table.splitlines()) == 2
    assert tree.splitlines()[0].startswith("container ")
    assert [line.split()[1] for line in tree.splitlines()[2:]] == ["1", "2"]
    assert str(kernel.folder) in listed["text/plain"]
    assert "<table" in listed["text/html"]
    assert kernel.value("p") == "<contained cell: running>"
    kernel.good("p.stop()")
    assert kernel.value("p.wait(20).outcome") == "'stopped'"


def test_a_background_container_is_there_when_its_cell_is_over(kernel: Kernel, gate: Gate) -> None:
    # No standby is for this one: it is built for the cell.
    kernel.run(f"%%contain --bg --proc p --user root --hostname elsewhere {gate.bind}\n{gate.wait}").good()
    assert kernel.value("p.container.init_pid > 1 and p.container.payload_pid > 1") == "True"
    kernel.good("p.stop()")
    assert kernel.value("p.wait(20).outcome") == "'stopped'"


def test_a_background_container_that_cannot_be_built_raises_at_its_cell(kernel: Kernel) -> None:
    kernel.good("import os; os.mkdir('there')")
    kernel.good("%contain_config --reset")
    cell = kernel.run("%%contain --bg --proc never --bind ./there:/proc/there\nprint('never')")
    assert cell.reply["ename"] == "StartError", cell.reply
    assert kernel.value("'never' in globals()") == "False"
    assert "no containers are live" in kernel.good("%containers").shown[0]["text/plain"]


def test_a_background_failure_says_why(kernel: Kernel) -> None:
    cell = kernel.run("%%contain --bg --proc p\nraise SystemExit(3)").good()
    kernel.listen(cell, until=lambda: bool(cell.text("stderr")))
    assert cell.text("stderr") == "nsmagic: exit status 3\n"
    assert kernel.value("p.wait(20).exit_status") == "3"


def test_a_background_traceback_is_shown(kernel: Kernel) -> None:
    cell = kernel.run("%%contain --bg --proc p\nraise ValueError('my text')").good()
    kernel.listen(cell, until=lambda: "nsmagic: ValueError: my text" in cell.text("stderr"))
    assert "----> 1 raise" in re.sub(r"\x1b\[[0-9;]*m", "", cell.text("stderr"))
    kernel.value("p.wait(20)")


def test_background_output_goes_into_variables(kernel: Kernel) -> None:
    cell = kernel.run("%%contain --bg --proc p --out o -o x\nprint('hi')\nx = 42").good()
    assert kernel.value("p.wait(20).ok, o, x") == "(True, 'hi\\n', 42)"
    assert cell.text() == ""


# ---- the companions --------------------------------------------------------------------


def test_session_defaults(kernel: Kernel) -> None:
    where = "import os; print(os.uname().nodename, os.environ.get('A'), os.environ.get('B'))"
    kernel.good("%contain_config --hostname box --env A=1")
    assert kernel.good(f"%contain {where}").text() == "box 1 None\n"
    assert kernel.good(f"%contain --env B=2 --hostname other {where}").text() == "other 1 2\n"
    shown = kernel.good("%contain_config").shown[0]["text/plain"]
    assert "--hostname" in shown
    assert "box" in shown
    kernel.good("%contain_config --reset")
    assert kernel.good(f"%contain {where}").text() == "container None None\n"
    assert "as installed" in kernel.good("%contain_config").shown[0]["text/plain"]


def test_preload(kernel: Kernel) -> None:
    pytest.importorskip("numpy", reason="host: no numpy")
    look = "%contain import sys; print('numpy' in sys.modules, 'wave' in sys.modules)"
    assert kernel.good(look).text() == "False False\n"
    kernel.good("%contain_config --preload numpy,wave")
    assert kernel.good(look).text() == "True True\n"
    assert kernel.good("%contain --env A=1 import numpy as np; print(np.arange(3).sum())").text() == "3\n"
    kernel.good("%contain_config --reset")
    assert kernel.good(look).text() == "False False\n"


def test_a_preload_that_fails_is_said(kernel: Kernel) -> None:
    cell = kernel.good("%contain_config --preload no_such_module_here")
    assert "no_such_module_here could not be preloaded: ModuleNotFoundError" in cell.text("stderr")


def test_plots_show_when_matplotlib_is_preloaded(kernel: Kernel) -> None:
    pytest.importorskip("matplotlib", reason="host: no matplotlib")
    kernel.good("%contain_config --preload matplotlib.pyplot")
    cell = kernel.good("%%contain\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    assert [sorted(data) for data in cell.shown] == [["image/png", "text/plain"]]


def test_stats(kernel: Kernel) -> None:
    (shown,) = kernel.good("%%contain --stats\nopen('a<b>', 'w').write('hi')\nNone").shown
    for word in (
        "ended",
        "wall",
        "CPU",
        "peak memory",
        "processes",
        "written",
        "namespaces",
        "user",
        "network",
    ):
        assert re.search(rf"^{word}  +\S", shown["text/plain"], re.MULTILINE), word
    assert re.search(r"^added .*a<b> \(2 bytes\)$", shown["text/plain"], re.MULTILINE)
    assert "a&lt;b&gt;" in shown["text/html"]


def test_the_doctor(kernel: Kernel) -> None:
    (shown,) = kernel.good("%contain_doctor").shown
    assert "pid namespace" in shown["text/plain"]
    assert "<table" in shown["text/html"]


@pytest.mark.parametrize(("magic", "scopes"), [
    ("%%contain", options.MAGIC_SCOPES), ("%contain", options.MAGIC_SCOPES), ("%contain_config", options.CONFIG_SCOPES)
])  # fmt: skip
def test_help_documents_every_option(kernel: Kernel, magic: str, scopes: tuple[str, ...]) -> None:
    (page,) = (
        payload for payload in kernel.good(f"{magic}?").reply["payload"] if payload["source"] == "page"
    )
    text = page["data"]["text/plain"]
    for option in options.of(scopes):
        assert f"  {', '.join(option.flags)}" in text, option.name
        assert option.help in text


def completed(kernel: Kernel, line: str, rest: str = "") -> list[str]:
    """The line as it stands after each of the completions that Tab offers."""
    reply = kernel.client.complete(line + rest, len(line), reply=True, timeout=SECONDS)["content"]
    assert reply["status"] == "ok"
    return [line[: reply["cursor_start"]] + match + line[reply["cursor_end"] :] for match in reply["matches"]]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%%contain --m", ["%%contain --mem"]),
        ("%%contain --mem 1G --time", ["%%contain --mem 1G --timeout"]),
        ("%%contain --net ", ["%%contain --net none", "%%contain --net host", "%%contain --net outbound"]),
        ("%%contain --net h", ["%%contain --net host"]),
        ("%%contain --rich=t", ["%%contain --rich=trusted"]),
        ("%contain --hostn", ["%contain --hostname"]),
        ("%contain_config --pre", ["%contain_config --preload"]),
    ],
)
def test_tab_completes_options(kernel: Kernel, line: str, wanted: list[str]) -> None:
    assert sorted(completed(kernel, line)) == sorted(wanted)
    assert sorted(completed(kernel, line, "\nprint(1)")) == sorted(wanted)


def test_tab_in_the_cells_body_is_pythons(kernel: Kernel) -> None:
    assert "%%contain\nprint" in completed(kernel, "%%contain\npri")
    assert "%%contain\nx = 1 --mem" not in completed(kernel, "%%contain\nx = 1 --m")


# ---- loading -------------------------------------------------------------------------------


def in_a_shell(code: str, folder: Path) -> str:
    """What code prints that runs in a fresh process with a terminal's IPython shell in it."""
    setup = "from IPython.terminal.interactiveshell import TerminalInteractiveShell as Shell\n" \
            "shell = Shell.instance(colors='NoColor')\n"  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        cwd=folder, env={**os.environ, "IPYTHONDIR": str(folder)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_load_ext_does_not_wait_for_the_launcher(tmp_path: Path) -> None:
    text = in_a_shell(
        """\
        shell.run_line_magic("load_ext", "nsmagic")
        from nsmagic.launcher import client
        print(client.running() is not None, client.running().ready())
        shell.run_line_magic("contain", "print('ran')")
        print(client.running().ready())
        """,
        tmp_path,
    )
    assert text.replace("nsmagic: starting the launcher … ready\n", "") == "True False\nran\nTrue\n"


def test_reload_and_unload(tmp_path: Path, until: Callable[..., bool]) -> None:
    text = in_a_shell(
        """\
        from pathlib import Path
        from nsmagic.launcher import client
        from nsmagic.completion import matcher
        shell.run_line_magic("load_ext", "nsmagic")
        shell.run_line_magic("contain", "print('one')")
        first = client.running().pid
        shell.run_line_magic("reload_ext", "nsmagic")
        shell.run_line_magic("contain", "print('two')")
        second = client.running().pid
        print(first != second, Path(f"/proc/{first}").exists(), shell.Completer.custom_matchers.count(matcher))
        shell.run_line_magic("unload_ext", "nsmagic")
        print(client.running(), Path(f"/proc/{second}").exists(), shell.Completer.custom_matchers.count(matcher))
        """,
        tmp_path,
    )
    assert re.sub("nsmagic: starting.*\n", "", text) == "one\ntwo\nTrue False 1\nNone False 0\n"


def test_unload_right_after_load_leaves_no_launcher(tmp_path: Path) -> None:
    text = in_a_shell(
        """\
        import threading
        from nsmagic.launcher import client
        for _ in range(5):
            shell.run_line_magic("load_ext", "nsmagic")
            shell.run_line_magic("unload_ext", "nsmagic")
        from nsmagic import standbys
        standbys.current().stop()
        for thread in threading.enumerate():
            if thread.name == "nsmagic-standbys":
                thread.join(20)
        print(client.running())
        """,
        tmp_path,
    )
    assert text == "None\n"


def test_a_terminal_ipython(tmp_path: Path) -> None:
    code = "%load_ext nsmagic\n%contain print(6 * 7)\nget_ipython().run_cell('%%contain\\n1 / 0')"
    ended = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code],
        cwd=tmp_path, env={**os.environ, "IPYTHONDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert "42\n" in ended.stdout, ended.stderr
    assert "ZeroDivisionError: division by zero" in ended.stdout + ended.stderr


def test_a_terminals_cell_displays_and_fails(tmp_path: Path) -> None:
    text = in_a_shell(
        r"""
        shell.run_line_magic("load_ext", "nsmagic")
        good = shell.run_cell("%%contain\nprint('a')\n6 * 7")
        bad = shell.run_cell("%%contain\nraise SystemExit(3)")
        wrong = shell.run_cell("%%contain --meme 1\nprint('ran')")
        print(good.success, bad.success, wrong.success)
        """,
        tmp_path,
    )
    lines = re.sub("nsmagic: starting.*\n", "", text).splitlines()
    assert lines == [
        "a",
        "42",
        "nsmagic: exit status 3",
        "SpecError: --meme: there is no such option; did you mean --mem?",
        "True False False",
    ]
