"""``nsmagic.run`` and ``Container`` as a program uses them."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import (
    Container,
    HostError,
    RunError,
    SpecError,
    StartError,
    StoppedError,
    ValueTransferError,
    standbys,
)
from nsmagic.launcher import client
from nsmagic.spec import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quiet")


# ---- streams -----------------------------------------------------------------


def test_streams_are_kept_apart() -> None:
    result = nsmagic.run("import sys\nprint('out')\nprint('err', file=sys.stderr)").check()
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_bytes_come_out_as_they_are() -> None:
    every = bytes(range(256)) * 1000
    result = nsmagic.run("import os\nfor _ in range(1000): os.write(1, bytes(range(256)))").check()
    assert result.stdout_bytes == every
    assert "\ufffd" in result.stdout


def test_unicode() -> None:
    text = "naïve ☃ 𝔘 \u202e‮ ﷽"
    assert nsmagic.run(f"print({text!r})").check().stdout == text + "\n"


def test_a_lone_surrogate_does_no_harm() -> None:
    assert nsmagic.run("print('\\ud800')").check().stdout == "\\ud800\n"


def test_output_without_a_last_newline_and_of_dying_programs_is_kept() -> None:
    assert nsmagic.run("print('a', end='')").check().stdout == "a"
    assert nsmagic.run(["sh", "-c", "printf b; kill -9 $$"]).stdout == "b"


def test_streams_reach_a_sink_as_they_come(keep: Any) -> None:
    came: list[bytes] = []
    go = threading.Event()

    class Sink:
        def stream(self, name: str, data: bytes) -> None:
            came.append(data)
            go.set()

        def display(self, *args: object, **named: object) -> None: ...
        def clear(self, *, wait: bool) -> None: ...
        def failure(self, ename: str, evalue: str, traceback: list[str]) -> None: ...
        def ask(self, prompt: str, *, password: bool) -> str | None:
            # The question comes only after all that was printed before it.
            assert b"".join(came) == b"first\n"
            return "typed"

    code = "print('first', flush=True)\nprint(input('? '))"
    assert keep().run_job(JobSpec("cell", code), sink=Sink(), can_ask=True).ok
    assert go.is_set()
    assert b"".join(came) == b"first\ntyped\n"


# ---- endings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(None)", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(256 + 7)", 7),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit('why')", 1),
        ("raise SystemExit(True)", 1),
        ("import os; os._exit(9)", 9),
        ("1/0", 1),
        ("this is no python", 1),
        ("raise KeyboardInterrupt", 1),
        ("raise BaseException('odd')", 1),
        ("quit", 0),
    ],
)
def test_exit_status(code: str, status: int) -> None:
    result = nsmagic.run(code)
    assert (result.outcome, result.exit_status, result.signal) == ("exited", status, None)
    assert result.ok is (status == 0)
    assert bool(result.detail) is (status != 0)


def test_a_message_of_sys_exit_goes_to_stderr() -> None:
    assert nsmagic.run("import sys; sys.exit('why')").stderr == "why\n"


def test_a_traceback_points_at_the_cells_own_line() -> None:
    result = nsmagic.run("a = 1\nb = 0\na / b\n")
    assert result.failure is not None
    assert (result.failure.ename, result.failure.evalue) == ("ZeroDivisionError", "division by zero")
    assert "----> 3 a / b" in result.stderr
    assert "nsmagic/launcher" not in result.stderr
    with pytest.raises(RunError, match="ZeroDivisionError: division by zero") as error:
        result.check()
    assert error.value.result is result


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGALRM]
)
def test_death_by_signal(number: signal.Signals) -> None:
    result = nsmagic.run(f"import os; os.kill(os.getpid(), {int(number)})")
    assert (result.outcome, result.exit_status, result.signal) == ("signaled", None, int(number))
    assert number.name in result.describe()


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGRTMIN + 3])
def test_death_of_a_program_by_other_signals(number: int) -> None:
    result = nsmagic.run(["sh", "-c", f"kill -{int(number)} $$"])
    assert (result.outcome, result.signal) == ("signaled", int(number))


def test_segfault() -> None:
    result = nsmagic.run("import ctypes; print('on the way', flush=True); ctypes.string_at(0)")
    assert (result.outcome, result.signal, result.stdout) == ("signaled", signal.SIGSEGV, "on the way\n")


# ---- programs -------------------------------------------------------------------


def test_a_program_runs_with_its_arguments_as_they_are() -> None:
    words = ["a b", "", "$HOME", "*", "ünï", "'\"\\", "-n"]
    result = nsmagic.run(["python3", "-c", "import sys; print(sys.argv[1:])", *words]).check()
    assert result.stdout == f"{words}\n"


def test_status_of_a_program() -> None:
    assert nsmagic.run(["sh", "-c", "exit 42"]).exit_status == 42


@pytest.mark.parametrize(
    ("argv", "status", "reason"),
    [
        (["no-such-program"], 127, "No such file"),
        (["/nowhere/at/all"], 127, "No such file"),
        (["/etc/passwd/x"], 127, "Not a directory"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["/usr"], 126, "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_run(argv: list[str], status: int, reason: str) -> None:
    result = nsmagic.run(argv)
    assert (result.outcome, result.exit_status) == ("exited", status)
    assert reason in result.detail


def test_a_program_has_default_signals() -> None:
    # As in a shell: a writer whose reader is gone dies quietly.
    assert nsmagic.run(
        ["sh", "-c", "yes | head -1; grep -E 'Sig(Ign|Blk)' /proc/self/status"]
    ).check().stdout == ("y\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")


# ---- what goes in -----------------------------------------------------------------


@pytest.mark.parametrize("given", ["text ü\n", b"\x00\xff", "", "x" * 3_000_000])
def test_input(given: str | bytes) -> None:
    data = given.encode() if isinstance(given, str) else given
    code = "import sys, hashlib\nd = sys.stdin.buffer.read()\nprint(len(d), hashlib.md5(d).hexdigest())"
    import hashlib

    assert nsmagic.run(code, input=given).check().stdout == f"{len(data)} {hashlib.md5(data).hexdigest()}\n"


def test_no_input_is_an_end_not_a_wait() -> None:
    result = nsmagic.run("import sys; print(repr(sys.stdin.read()))\ninput()", timeout=5)
    assert result.stdout == "''\n"
    assert result.failure is not None
    assert result.failure.ename == "EOFError"


def test_input_that_nobody_reads_does_no_harm() -> None:
    assert nsmagic.run("pass", input=b"x" * 5_000_000).ok
    assert nsmagic.run(["true"], input=b"x" * 5_000_000).ok


def test_input_of_a_program() -> None:
    assert nsmagic.run(["tr", "a-z", "A-Z"], input="shout").check().stdout == "SHOUT"


class Own:
    """A class of this module; the container cannot have it, but pickle carries what it holds by name."""


VALUES = [
    None, True, 0, -(2**63), 2**200, 1.5, float("inf"), 1 + 2j, "ü\0", b"\xff\0", [], [1, [2, [3]]], (1, "a"),
    {"a": {"b": (1,)}}, {1: 2, (3,): 4}, {1, 2}, frozenset({3}),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_values_travel_both_ways(value: object) -> None:
    result = nsmagic.run(
        "back = there\nkind = type(there).__name__", variables={"there": value}, outputs=["back", "kind"]
    )
    assert result.check().values["back"] == value
    assert result.values["kind"] == type(value).__name__
    assert type(result.values["back"]) is type(value)


def test_what_only_pickle_can_carry_goes_in() -> None:
    import fractions

    result = nsmagic.run("print(there + 1)", variables={"there": fractions.Fraction(1, 2)}).check()
    assert result.stdout == "3/2\n"


def test_arrays_travel() -> None:
    numpy = pytest.importorskip("numpy", reason="host: numpy is not installed")
    array = numpy.arange(12.0).reshape(3, 4)
    back = (
        nsmagic.run("back = there * 2", variables={"there": array}, outputs=["back"]).check().values["back"]
    )
    assert (back == array * 2).all()
    assert back.dtype == array.dtype


def test_frames_travel() -> None:
    pandas = pytest.importorskip("pandas", reason="host: pandas is not installed")
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]}, index=["p", "q"])
    back = nsmagic.run("back = there", variables={"there": frame}, outputs=["back"]).check().values["back"]
    pandas.testing.assert_frame_equal(back, frame)


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("wanted = lambda: 0", "function"),
        ("wanted = object()", "object"),
        ("class wanted: pass", "type"),
        ("other = 1", "did not set"),
        ("wanted = []\nwanted.append(wanted)", "nested"),
        ("wanted = b'x' * (70 << 20)", "bytes are more"),
        ("import numpy\nwanted = numpy.array([object()])", "objects"),
    ],
)
def test_a_value_that_cannot_come_out_is_named(code: str, word: str) -> None:
    if "numpy" in code:
        pytest.importorskip("numpy", reason="host: numpy is not installed")
    with pytest.raises(ValueTransferError, match=word) as error:
        nsmagic.run(code, outputs=["wanted"])
    assert error.value.name == "wanted"
    assert "\n" not in str(error.value)


def test_a_value_that_cannot_go_in_is_named_and_nothing_is_lost() -> None:
    with pytest.raises(ValueTransferError) as error:
        nsmagic.run("pass", variables={"bad": lambda: 0})
    assert error.value.name == "bad"
    assert nsmagic.run("print(1)").stdout == "1\n"


def test_no_values_from_a_job_that_failed() -> None:
    assert nsmagic.run("a = 1\n1/0", outputs=["a"]).values == {}


def test_env() -> None:
    result = nsmagic.run(
        "import os; print(os.environ['A'], os.environ['B'])", env={"A": "1 2", "B": "ü=x"}
    ).check()
    assert result.stdout == "1 2 ü=x\n"


def test_the_environment_is_made_for_the_cell(look: Callable[..., Any]) -> None:
    known = {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TERM",
        "PWD",
        "MPLBACKEND",
    }
    assert set(look("sorted(os.environ)")) <= known | {"COLUMNS", "LINES"}


def test_the_owners_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    client.stop()  # a launcher that starts now has seen it, had it been given
    assert "hush" not in nsmagic.run("import os; print(dict(os.environ))").check().stdout
    assert "hush" not in nsmagic.run("print(open('/proc/self/environ').read())").check().stdout
    assert "hush" not in nsmagic.run(["env"]).check().stdout


# ---- the result --------------------------------------------------------------------


def test_the_report_is_json() -> None:
    result = nsmagic.run(
        "open('f', 'w').write('x'); print(1)", pids=50, timeout=20, bind=["/usr/share:/data"]
    )
    report = json.loads(json.dumps(result.report()))
    assert report["outcome"] == "exited"
    assert report["isolation"]["namespaces"]
    assert report["usage"]["wall"] > 0
    assert report["stdout_bytes"] == 2
    assert [change["path"] for change in report["changes"]] == [os.path.join(os.getcwd(), "f")]


def test_the_report_is_json_after_any_ending() -> None:
    for code in ("1/0", "import os; os.kill(os.getpid(), 9)", "open(b'\\xff\\xfe', 'w')"):
        json.dumps(nsmagic.run(code).report())


def test_the_journal_tells_each_step() -> None:
    journal = nsmagic.run("pass").check().journal
    steps = list(dict.fromkeys(step.step for step in journal))
    for step in ("clone", "userns", "uts", "net", "time", "mount", "limits", "capabilities", "seccomp"):
        assert step in steps, steps
    assert all(step.took >= 0 and step.began > 1.6e9 for step in journal)
    assert any("CLONE_NEWUSER|CLONE_NEWPID" in step.call or "CLONE_NEWPID" in step.call for step in journal)
    assert any(step.call.startswith("pivot_root") for step in journal)


def test_rich_output() -> None:
    result = nsmagic.run(
        "from IPython.display import display, HTML\ndisplay(HTML('<b>hi</b><script>x</script>'))\n40 + 2"
    )
    result.check()
    assert len(result.outputs) == 2
    assert result.outputs[0].data["text/html"] == "<b>hi</b>"
    assert result.outputs[1].data["text/plain"] == "42"


# ---- clones ---------------------------------------------------------------------------


def test_nothing_of_one_run_is_in_the_next() -> None:
    nsmagic.run(
        "import builtins, os, sys\nbuiltins.leak = leak = 1\nos.environ['LEAK'] = '1'\nopen('/tmp/leak', 'w')"
    ).check()
    code = "import builtins, os\nprint('leak' in globals(), hasattr(builtins, 'leak'), 'LEAK' in os.environ, os.listdir('/tmp'))"
    # In the folder under test itself lies /tmp/pytest-…, the way to the working directory.
    out = nsmagic.run(code).check().stdout
    assert out.startswith("False False False")
    assert "leak'" not in out.split("False")[3]


def test_random_numbers_differ_between_clones() -> None:
    code = "import random, os, uuid, tempfile\nprint(random.random(), os.urandom(8), uuid.uuid4(), next(tempfile._get_candidate_names()))"
    first, second = (nsmagic.run(code).check().stdout.split() for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_random_numbers_differ_between_jobs_of_one_container(keep: Any) -> None:
    container = keep()
    outs = {container.run("import random; print(random.random())").stdout for _ in range(3)}
    assert len(outs) == 3


def test_numpys_random_numbers_differ_between_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy", reason="host: numpy is not installed")
    client.set_preload(["numpy"])
    try:
        code = "import sys; assert 'numpy.random' in sys.modules or True\nimport numpy; print(numpy.random.random())"
        outs = {nsmagic.run(code).check().stdout for _ in range(3)}
    finally:
        client.set_preload([])
    assert len(outs) == 3


def test_preloaded_modules_are_there_already() -> None:
    client.set_preload(["colorsys"])
    try:
        assert nsmagic.run("import sys; print('colorsys' in sys.modules)").check().stdout == "True\n"
    finally:
        client.set_preload([])
    assert nsmagic.run("import sys; print('colorsys' in sys.modules)").check().stdout == "False\n"


def test_fresh_exec_is_another_interpreter(look: Callable[..., Any]) -> None:
    maps = "[line.split('-')[0] for line in open('/proc/self/maps') if '/libc' in line][0]"
    clones = {look(maps) for _ in range(2)}
    fresh = {look(maps, fresh_exec=True) for _ in range(2)}
    assert len(clones) == 1
    assert len(fresh | clones) == 3


def test_fresh_exec_does_all_that_a_clone_does() -> None:
    result = nsmagic.run(
        "import sys\nprint(there, sys.stdin.read())\nback = there + 1\nback",
        variables={"there": 1}, outputs=["back"], input="in", fresh_exec=True, env={"A": "b"},
    ).check()  # fmt: skip
    assert result.stdout == "1 in\n"
    assert result.values == {"back": 2}
    assert result.outputs[0].data["text/plain"] == "2"
    assert nsmagic.run("1/0", fresh_exec=True).exit_status == 1


def test_fresh_exec_takes_a_large_job() -> None:
    result = nsmagic.run("print(len(there))", variables={"there": b"x" * (40 << 20)}, fresh_exec=True)
    assert result.check().stdout == f"{40 << 20}\n"


# ---- several jobs in one container --------------------------------------------------------


def test_jobs_of_one_container_share_files_and_not_variables(keep: Any) -> None:
    container = keep()
    container.run("a = 1\nopen('/tmp/f', 'w').write('shared')").check()
    result = container.run("print(open('/tmp/f').read(), 'a' in globals())").check()
    assert result.stdout == "shared False\n"
    assert container.run(["cat", "/tmp/f"]).check().stdout == "shared"


def test_a_job_that_fails_leaves_the_container_to_the_next(keep: Any) -> None:
    container = keep()
    assert container.run("1/0").exit_status == 1
    assert container.run("import os; os.kill(os.getpid(), 9)").signal == 9
    assert container.run(["no-such-program"]).exit_status == 127
    assert container.run("import os; os._exit(5)").exit_status == 5
    assert container.run("print('still')").check().stdout == "still\n"


def test_each_job_of_a_container_has_its_own_input(keep: Any) -> None:
    container = keep()
    code = "import sys; print(repr(sys.stdin.read()))"
    assert container.run(code, input=b"one", timeout=3).stdout == "'one'\n"
    assert container.run(code, input=b"two", timeout=3).stdout == "'two'\n"


def test_a_job_of_a_container_without_input_sees_its_end(keep: Any) -> None:
    result = keep().run("import sys; print(repr(sys.stdin.read()))", timeout=3)
    assert (result.outcome, result.stdout) == ("exited", "''\n")


def test_each_job_of_a_container_has_its_own_output_and_limit(keep: Any) -> None:
    container = keep()
    for number in range(3):
        assert (
            container.run(f"print('x' * 999)  # {number}", output_limit=1000).check().stdout
            == "x" * 999 + "\n"
        )


def test_values_of_each_job(keep: Any) -> None:
    container = keep()
    assert container.run("b = a + 1", variables={"a": 1}, outputs=["b"]).values == {"b": 2}
    assert container.run("b = a + 1", variables={"a": 5}, outputs=["b"]).values == {"b": 6}


def test_container_as_a_context_takes_the_names_of_options() -> None:
    with nsmagic.Container(pids=64, hostname="kept") as container:
        assert container.run("import socket; print(socket.gethostname())").stdout == "kept\n"


def test_stop_from_another_thread(keep: Any) -> None:
    container = keep()
    results: list[nsmagic.Result] = []
    begun = threading.Event()

    class Begun:
        def stream(self, name: str, data: bytes) -> None:
            begun.set()

        def failure(self, *args: object) -> None: ...

    code = "print(1, flush=True)\nimport time; time.sleep(60)"
    worker = threading.Thread(
        target=lambda: results.append(container.run_job(JobSpec("cell", code), sink=Begun()))
    )
    worker.start()
    assert begun.wait(10)
    began = time.monotonic()
    container.stop()
    worker.join(10)
    assert time.monotonic() - began < 2
    assert results[0].outcome == "stopped"


def test_a_stopped_container_takes_no_more_jobs(keep: Any) -> None:
    container = keep()
    container.run("pass").check()
    container.stop()
    container.stop()
    with pytest.raises(StoppedError):
        container.run("pass")


def test_a_container_that_died_says_so_at_the_next_job(keep: Any) -> None:
    container = keep()
    assert container.run("import time; time.sleep(60)", timeout=0.2).outcome == "timeout"
    with pytest.raises(StoppedError, match="time limit"):
        container.run("pass")


def test_a_job_that_could_not_be_sent_does_not_end_the_container(keep: Any) -> None:
    container = keep()
    with pytest.raises(ValueTransferError):
        container.run("pass", variables={"bad": lambda: 0})
    assert container.run("print(1)").stdout == "1\n"


# ---- bad input -------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, object]]] = [
    ("mem", {"mem": "12Q"}),
    ("mem", {"mem": "-1"}),
    ("mem", {"mem": 0}),
    ("mem", {"mem": "1K"}),
    ("mem", {"mem": float("nan")}),
    ("mem", {"mem": True}),
    ("mem", {"mem": "9" * 30}),
    ("swap", {"swap": "-1"}),
    ("cpus", {"cpus": 0}),
    ("cpus", {"cpus": "many"}),
    ("cpus", {"cpus": float("inf")}),
    ("pids", {"pids": 0}),
    ("pids", {"pids": 1.5}),
    ("disk", {"disk": ""}),
    ("timeout", {"timeout": 0}),
    ("timeout", {"timeout": -1}),
    ("timeout", {"timeout": "soon"}),
    ("timeout", {"timeout": float("nan")}),
    ("output_limit", {"output_limit": "1M:explode"}),
    ("output_limit", {"output_limit": "x"}),
    ("net", {"net": "internet"}),
    ("ns", {"ns": "uts,quantum"}),
    ("ns", {"ns": ["uts", "quantum"]}),
    ("ns", {"ns": ""}),
    ("net", {"net": "host", "ns": "all"}),
    ("net", {"net": "none", "ns": "all-net"}),
    ("bind", {"bind": "/no/such/path"}),
    ("bind", {"bind": "/usr:relative"}),
    ("bind", {"bind": "/usr:/a:/b:ro"}),
    ("bind", {"bind": "/usr:/a/../b"}),
    ("bind", {"bind": "/usr:/"}),
    ("bind", {"bind": ""}),
    ("bind", {"bind": ["/usr:/x", "/bin:/x"]}),
    ("bind", {"bind": "/etc/passwd:/x:cow"}),
    ("bind", {"bind": "/usr\0:/x"}),
    ("bind", {"bind": "/usr:/x", "ns": "uts"}),
    ("workdir", {"workdir": "/no/such/folder"}),
    ("workdir", {"workdir": "/etc/passwd"}),
    ("workdir", {"workdir": ""}),
    ("workdir", {"workdir": "/tmp\0"}),
    ("env", {"env": {"A B": "1"}}),
    ("env", {"env": {"A": "\0"}}),
    ("env", {"env": {"": "x"}}),
    ("env", {"env": ["A"]}),
    ("hostname", {"hostname": "x" * 300}),
    ("hostname", {"hostname": "-x"}),
    ("hostname", {"hostname": "a b"}),
    ("hostname", {"hostname": ""}),
    ("user", {"user": "alice"}),
    ("user", {"user": -1}),
    ("user", {"user": 2**32}),
    ("rich", {"rich": "poor"}),
    ("fresh_exec", {"fresh_exec": "yes"}),
    ("best_effort", {"best_effort": 1}),
]


@pytest.mark.parametrize(("name", "options"), BAD, ids=lambda value: repr(value)[:60])
def test_bad_options_start_nothing(
    name: str, options: dict[str, Any], children_of: Callable[[int], set[int]]
) -> None:
    client.stop()
    before = children_of(os.getpid())
    with pytest.raises(SpecError) as error:
        nsmagic.run("print(1)", **options)
    assert error.value.option.lstrip("-").replace("-", "_") == name
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert children_of(os.getpid()) == before
    assert client.running() is None


@pytest.mark.parametrize(
    "job",
    [[], [""], ["a\0b"], "x" * (33 << 20)],
    ids=["no program", "empty program", "zero byte", "too much code"],
)
def test_bad_jobs_start_nothing(job: Any, children_of: Callable[[int], set[int]]) -> None:
    client.stop()
    with pytest.raises(SpecError):
        nsmagic.run(job)
    assert client.running() is None


def test_variables_of_a_program_are_refused() -> None:
    with pytest.raises(SpecError):
        nsmagic.run(["true"], variables={"a": 1})
    with pytest.raises(SpecError):
        nsmagic.run(["true"], outputs=["a"])


@pytest.mark.parametrize("name", ["a b", "1a", "a.b", ""])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SpecError):
        nsmagic.run("pass", outputs=[name])


def test_code_with_a_zero_byte_or_a_lone_surrogate_is_an_error_not_a_crash() -> None:
    result = nsmagic.run("a = 1\0")
    assert result.exit_status == 1
    with pytest.raises(SpecError):
        nsmagic.run("a = '\ud800'")


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises((SpecError, HostError)):
        nsmagic.run("print(1)")


def test_a_bind_that_vanishes_under_a_standby_is_no_wrong_folder(
    tmp_path: Path, until: Callable[..., bool]
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "f").write_text("old")
    run = "print(open('/data/f').read())"
    assert nsmagic.run(run, bind=f"{shown}:/data").check().stdout == "old\n"
    # The next one is built already, with the folder that is there now.
    assert until(
        lambda: any(each.spec.binds for waiting in standbys.current()._waiting.values() for each in waiting)
    )
    shown.rename(tmp_path / "away")
    shown.mkdir()
    (shown / "f").write_text("new")
    assert nsmagic.run(run, bind=f"{shown}:/data").check().stdout == "new\n"


# ---- standbys ------------------------------------------------------------------------------------


def test_what_the_host_writes_between_runs_is_seen(project: Path) -> None:
    code = "import os\nprint(sorted(os.listdir('.')), open('edit.txt').read())"
    assert "before" in nsmagic.run(code).check().stdout
    (project / "edit.txt").write_text("after")
    (project / "new.txt").write_text("new")
    (project / "gone.txt").unlink()
    out = nsmagic.run(code).check().stdout
    assert "after" in out
    assert "new.txt" in out
    assert "gone.txt" not in out
    (project / "mod.py").write_text("x = 1")
    assert nsmagic.run("import mod; print(mod.x)").check().stdout == "1\n"
    (project / "mod.py").write_text("x = 22")
    assert nsmagic.run("import mod; print(mod.x)").check().stdout == "22\n"
    assert not (project / "__pycache__").exists()


def test_an_edited_module_is_never_the_old_one(project: Path) -> None:
    for number in range(3):
        (project / "mod.py").write_text(f"x = {number}")
        assert nsmagic.run("import mod; print(mod.x)").check().stdout == f"{number}\n"


# ---- blanks --------------------------------------------------------------------------------------

CONFINEMENT = """
import os, resource
status = open('/proc/self/status').read().splitlines()
kept = ('Uid', 'Gid', 'Groups', 'Cap', 'NoNewPrivs', 'Seccomp', 'SigBlk', 'SigIgn', 'NSpid', 'NSsid', 'NSpgid')
print(*(line for line in status if line.startswith(kept)), sep='\\n')
print(sorted((fd, os.path.exists(f'/proc/self/fd/{fd}')) for fd in os.listdir('/proc/self/fd')))
print(os.getcwd(), os.stat('/').st_ino == os.stat('/..').st_ino, sorted(os.listdir('/')), os.umask(0))
print(sorted(line.split(' - ')[0].split()[3:] for line in open('/proc/self/mountinfo')))
print([resource.getrlimit(kind) for kind in range(16)])
print(os.readlink('/proc/self/root'), os.readlink('/proc/self/cwd'))
"""


@pytest.fixture
def blank(until: Callable[..., bool], quiet: Path) -> Container:
    """The blank that waits, nobody else's build under way."""
    nsmagic.run("pass").check()
    keeper = standbys.current()
    assert until(lambda: keeper._blank is not None and any(keeper._waiting.values()))
    assert keeper._blank is not None
    return keeper._blank


def test_a_spec_not_seen_before_takes_the_blank(blank: Container, tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("seen")
    code = "import os, socket; open('new', 'w'); print(os.getcwd(), os.listdir(), socket.gethostname())"
    result = nsmagic.run(
        code, workdir=tmp_path, hostname="late", pids=33, disk="7M", bind="/usr/share:/shown"
    ).check()
    assert result.stdout.startswith(f"{tmp_path} ")
    assert "here.txt" in result.stdout
    assert result.stdout.endswith(" late\n")
    assert any(step.call == "recvmsg(late)" for step in result.journal)
    assert blank.spec.hostname == "late"
    assert [change.path for change in result.changes] == [f"{tmp_path}/new"]
    assert "34" in result.isolation.limits["pids"]  # and one for init
    assert "7340032" in result.isolation.limits["disk"]


def test_a_blank_is_confined_as_one_that_was_built_at_once(blank: Container, tmp_path: Path) -> None:
    wanted = {"workdir": tmp_path, "pids": 44}
    late = nsmagic.run(CONFINEMENT, **wanted).check()
    assert blank.spec.pids == 44
    at_once = Container(keep=False, **wanted).start().run(CONFINEMENT).check()
    assert late.stdout == at_once.stdout
    assert late.isolation == at_once.isolation
    assert "Seccomp:\t2" in late.stdout
    assert "CapEff:\t0000000000000000" in late.stdout


def test_a_blank_whose_source_vanishes_is_an_error(blank: Container, tmp_path: Path) -> None:
    """Between the plan and the mount: as in a container that is built at once."""
    folder = tmp_path / "folder"
    folder.mkdir()
    wanted = Container(workdir=folder, keep=False)
    folder.rmdir()
    assert standbys.current()._take_blank(blank.kind) is blank
    assert blank.become(wanted)
    with pytest.raises(StartError) as error:
        blank.run("pass")
    assert error.value.errno == errno.ENOENT


def test_one_that_takes_fewer_namespaces_is_made_on_purpose(blank: Container) -> None:
    result = nsmagic.run("print(1)", ns="all-uts").check()
    assert "uts" not in result.isolation.namespaces
    assert not any(step.call == "recvmsg(late)" for step in result.journal)
    assert blank.usable()


def test_a_blank_ends_with_its_owner_and_leaves_no_process(
    blank: Container, until: Callable[..., bool]
) -> None:
    assert until(lambda: blank.init_pid is not None)
    pid = blank.init_pid
    standbys.current().drop()
    assert until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert until(lambda: not any(map(os.path.exists, blank.group.directories[:1])))
