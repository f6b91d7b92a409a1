"""The command line as a shell uses it: words in; output, exit status and nothing left out."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import cgroups, options
from nsmagic.cgroups import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = [sys.executable, "-m", "nsmagic.cli"]
SECONDS = 40.0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str | Path, stdin: bytes = b"", **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], input=stdin, capture_output=True, timeout=SECONDS, check=False, **more
    )


def run(*words: str | Path, stdin: bytes = b"", status: int = 0) -> str:
    """What ``nsmagic run`` prints, which must end with this status."""
    ended = call("run", *words, stdin=stdin)
    assert ended.returncode == status, ended
    return ended.stdout.decode()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Give a function that starts ``nsmagic run`` and does not wait; whatever still runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start_one(*words: str, **more: Any) -> subprocess.Popen[bytes]:
            plain = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            # In a session of its own, a signal to its group is for it alone.
            process = subprocess.Popen([*COMMAND, "run", *words], **{**plain, **more}, start_new_session=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_one


@pytest.fixture
def gate(folder: Path) -> Path:
    """A FIFO in a folder that can be bound: a container waits at it until the test writes."""
    (folder / "gate").mkdir()
    fifo = folder / "gate" / "fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    return fifo


def need(**limits: Any) -> None:
    """Skip where the host cannot enforce these limits."""
    missing = min((each.missing(Limits(**limits)) for each in cgroups.mechanisms()), key=len)
    if missing:
        pytest.skip("host: " + "; ".join(f"no {each.what} limit: {each.reason}" for each in missing))


def alive(word: str) -> list[str]:
    """The processes whose command line has this word, but not our own command's."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[0] == b"sleep" and word.encode() in words:
                    found.append(process.name)
    return found


# ---- what is run -------------------------------------------------------------------


def test_code() -> None:
    assert run("-c", "import os; print(os.getpid() < 10, os.uname().nodename)") == "True container\n"


def test_code_with_arguments() -> None:
    words = run("-c", "import sys; print(sys.argv[1:], sys.argv[0])", "a b", "--mem", "-x")
    assert words == "['a b', '--mem', '-x'] -c\n"


def test_a_script_with_arguments(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(
        "import sys\nprint(sys.argv, __name__, __file__)\nif __name__ == '__main__': print('é')\n"
    )
    assert run("--hostname", "box", "script.py", "--help", "b") == (
        "['script.py', '--help', 'b'] __main__ script.py\né\n"
    )


def test_a_script_outside_the_working_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = tmp_path_factory.mktemp("elsewhere") / "script.py"
    script.write_text("import os\nprint(os.getcwd())")
    assert run(script) == f"{folder}\n"


def test_a_scripts_neighbours_can_be_imported(folder: Path) -> None:
    (folder / "neighbour.py").write_text("answer = 42")
    (folder / "script.py").write_text("import neighbour\nprint(neighbour.answer)")
    assert run("script.py") == "42\n"


def test_the_last_line_is_not_displayed() -> None:
    assert run("-c", "1 + 1") == ""


def test_a_program() -> None:
    assert run("--hostname", "box", "--", "sh", "-c", 'uname -n; echo "$1"', "sh", "a  b") == "box\na  b\n"


def test_what_is_written_stays_inside(folder: Path) -> None:
    (folder / "kept").write_text("kept")
    assert run("--", "sh", "-c", "echo changed > kept; echo new > new; cat kept") == "changed\n"
    assert sorted(path.name for path in folder.iterdir()) == ["kept"]
    assert (folder / "kept").read_text() == "kept"


def test_a_traceback_names_the_script_and_the_line(folder: Path) -> None:
    (folder / "script.py").write_text("def inner():\n    raise ValueError('my text')\n\ninner()\n")
    ended = call("run", "script.py")
    text = ended.stderr.decode()
    assert ended.returncode == 1
    assert 'File "script.py", line 4, in <module>\n    inner()' in text
    assert text.endswith("ValueError: my text\n")
    assert "runner.py" not in text


# ---- how it ends --------------------------------------------------------------------

ENDINGS = {
    ("-c", "pass"): 0,
    ("-c", "raise SystemExit(3)"): 3,
    ("-c", "raise SystemExit('why')"): 1,
    ("-c", "x = = 1"): 1,
    ("-c", "import os; os._exit(9)"): 9,
    ("-c", "import os; os.kill(os.getpid(), 15)"): 143,
    ("-c", "import os; os.kill(os.getpid(), 11)"): 139,
    ("-c", "raise KeyboardInterrupt"): 130,
    ("--", "sh", "-c", "exit 7"): 7,
    ("--", "sh", "-c", "kill -KILL $$"): 137,
    ("--timeout", "200ms", "-c", "import time; time.sleep(1000)"): 124,
    ("--timeout", "200ms", "--", "sleep", "1000"): 124,
    ("--output-limit", "1K", "-c", "print('x' * 9999)"): 1,
    ("--output-limit", "1K:drop", "-c", "print('x' * 9999)"): 0,
    ("--", "no-such-program-anywhere"): 127,
    ("--", "/etc/passwd"): 126,
    ("--", "/"): 126,
}


@pytest.mark.parametrize("words", ENDINGS, ids=" ".join)
def test_exit_status(words: tuple[str, ...]) -> None:
    assert call("run", *words).returncode == ENDINGS[words]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--timeout", "200ms", "--", "sleep", "1000"),
            "nsmagic: time limit: it ran longer than 200 ms (--timeout)",
        ),
        (("--output-limit", "1K", "-c", "print('x' * 9999)"), "nsmagic: stopped at the output limit"),
        (
            ("--output-limit", "1K:drop", "-c", "print('x' * 9999)"),
            "nsmagic: 8976 bytes of output over the limit",
        ),
        (("--", "sh", "-c", "kill -SEGV $$"), "nsmagic: killed by signal 11 (SIGSEGV)"),
        (
            ("--", "no-such-program-anywhere"),
            "nsmagic: the program could not be run: No such file or directory",
        ),
        (("--", "/etc/passwd"), "nsmagic: the program could not be run: Permission denied"),
    ],
)
def test_an_end_that_is_not_the_programs_own_is_said(words: tuple[str, ...], said: str) -> None:
    text = call("run", *words).stderr.decode()
    assert text.startswith(said)
    assert text.count("\n") == 1


def test_a_plain_exit_status_is_not_commented() -> None:
    assert call("run", "-c", "raise SystemExit(3)").stderr == b""


def test_out_of_memory() -> None:
    need(mem=64 << 20)
    ended = call("run", "--mem", "64M", "-c", "print('on', flush=True); hog = bytearray(b'x' * (256 << 20))")
    assert (ended.returncode, ended.stdout) == (137, b"on\n")
    assert re.fullmatch(rb"nsmagic: out of memory: .*64 MiB.*peak.*\n", ended.stderr)


def test_a_limit_that_cannot_be_enforced_is_refused() -> None:
    missing = min((each.missing(Limits(mem=64 << 20)) for each in cgroups.mechanisms()), key=len)
    if not missing:
        pytest.skip("host: it can limit memory")
    ended = call("run", "--mem", "64M", "-c", "print('ran')")
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert re.fullmatch(rb"nsmagic: --mem cannot be enforced here: .*--best-effort.*\n", ended.stderr)
    ended = call("run", "--mem", "64M", "--best-effort", "-c", "print('ran')")
    assert (ended.returncode, ended.stdout) == (0, b"ran\n")
    assert ended.stderr.startswith(b"nsmagic: mem is not enforced: ")


def test_too_few_descriptors_is_one_line() -> None:
    line = f"ulimit -n 14; exec {' '.join(COMMAND)} run -c \"print('ran')\""
    ended = subprocess.run(["sh", "-c", line], capture_output=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert re.fullmatch(rb"nsmagic: .*\n", ended.stderr)


# ---- streams --------------------------------------------------------------------------


def test_output_is_live(start: Callable[..., subprocess.Popen[bytes]], gate: Path) -> None:
    code = f"print('first')\nopen({str(gate)!r}).read()\nprint('second')"
    process = start("--bind", f"{gate.parent}:rw", "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    gate.write_bytes(b"")
    assert process.stdout.read() == b"second\n"
    assert process.wait(SECONDS) == 0


def test_the_streams_stay_apart() -> None:
    ended = call("run", "--", "sh", "-c", "echo out; echo err >&2")
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")


def test_standard_input_is_passed_on() -> None:
    assert run("-c", "import sys; print(sys.stdin.read().upper())", stdin="é\nb".encode()) == "É\nB\n"
    assert run("-c", "print(input('? ') + '!')", stdin=b"Ada\nrest") == "? Ada!\n"
    assert run("--", "wc", "-c", stdin=b"x" * 5_000_000) == "5000000\n"
    assert run("--", "wc", "-c") == "0\n"


def test_standard_input_may_be_closed() -> None:
    line = f"exec {' '.join(COMMAND)} run -- wc -c <&-"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"0\n"), ended.stderr


def test_standard_input_that_nobody_reads_does_not_hold_it(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = start("-c", "print('done')", stdin=subprocess.PIPE)
    assert process.wait(SECONDS) == 0


def test_standard_input_that_never_ends_does_not_hold_it(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    with open("/dev/zero", "rb") as endless:
        process = start("--", "head", "-c", "3", stdin=endless)
        assert process.wait(SECONDS) == 0
    assert process.stdout is not None
    assert process.stdout.read() == b"\0\0\0"


HOSTILE = r"printf '\033]0;title\007\033[31mred\033[0m\033[2J\377\303\251\n'"


def test_a_file_gets_the_very_bytes(folder: Path) -> None:
    with (folder / "out").open("wb") as file:
        subprocess.run([*COMMAND, "run", "--", "sh", "-c", HOSTILE], stdout=file, timeout=SECONDS, check=True)
    assert (folder / "out").read_bytes() == b"\x1b]0;title\x07\x1b[31mred\x1b[0m\x1b[2J\xff\xc3\xa9\n"


def from_terminal(leader: int) -> bytes:
    """All that a terminal shows until nobody has it open any more."""
    found = b""
    while select.select([leader], [], [], SECONDS)[0]:
        try:
            data = os.read(leader, 1 << 16)
        except OSError:  # EIO: the other side is closed
            break
        found += data
    return found


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_terminal_gets_what_it_may_obey(start: Callable[..., subprocess.Popen[bytes]], name: str) -> None:
    leader, follower = pty.openpty()
    try:
        redirected = HOSTILE if name == "stdout" else f"{HOSTILE} >&2"
        process = start("--", "sh", "-c", redirected, **{name: follower})
        os.close(follower)
        assert from_terminal(leader) == "\x1b[31mred\x1b[0m\ufffdé\r\n".encode()
        assert process.wait(SECONDS) == 0
    finally:
        os.close(leader)


def test_a_reader_that_goes_away_ends_it(
    start: Callable[..., subprocess.Popen[bytes]], until: Callable[..., bool]
) -> None:
    mark = f"{2_000_000 + os.getpid()}"
    process = start("--", "sh", "-c", f"sleep {mark} & while echo y; do :; done; wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(SECONDS) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert until(lambda: not alive(mark), 1.0)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_a_signal_ends_it_and_leaves_nothing(
    start: Callable[..., subprocess.Popen[bytes]], until: Callable[..., bool], number: int, status: int
) -> None:
    mark = f"{3_000_000 + os.getpid()}.{number}"
    process = start("--", "sh", "-c", f"sleep {mark} & echo on; wait")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert until(lambda: alive(mark))
    os.killpg(process.pid, number)
    assert process.wait(SECONDS) == status
    assert until(lambda: not alive(mark), 1.0)
    assert process.stderr is not None
    assert process.stderr.read() == b""


# ---- the report, doctor, ps ---------------------------------------------------------------


def test_the_report(folder: Path) -> None:
    code = "import sys; open('new', 'w').write('hi'); print('out'); sys.exit(3)"
    run("--report", "report.json", "--hostname", "box", "-c", code, status=3)
    report = json.loads((folder / "report.json").read_text())
    assert (report["outcome"], report["exit_status"], report["signal"]) == ("exited", 3, None)
    assert report["detail"] == "exit status 3"
    assert report["stdout_bytes"] == 4
    assert [(c["kind"], Path(c["path"]).name, c["size"]) for c in report["changes"]] == [("added", "new", 2)]
    assert set(report["isolation"]["namespaces"]) >= {"pid", "net", "mount", "uts"}
    assert report["usage"]["wall"] > 0
    assert any("sethostname" in step["call"] for step in report["journal"])


def test_the_report_of_a_failure(folder: Path) -> None:
    run("--report", "report.json", "--timeout", "200ms", "--", "sleep", "1000", status=124)
    report = json.loads((folder / "report.json").read_text())
    assert (report["outcome"], report["exit_status"]) == ("timeout", None)


def test_the_doctor() -> None:
    ended = call("doctor", "--json")
    assert ended.returncode == 0
    found = json.loads(ended.stdout)
    features = {each["feature"]: each["status"] for each in found["findings"]}
    assert features["pid namespace"] == "works"
    assert set(features.values()) <= {"works", "weaker", "missing"}
    text = call("doctor").stdout.decode()
    assert all(feature in text for feature in features)


def test_ps_lists_a_container_as_long_as_it_lives(
    start: Callable[..., subprocess.Popen[bytes]], until: Callable[..., bool]
) -> None:
    mark = f"{4_000_000 + os.getpid()}"
    process = start("--", "sh", "-c", f"echo on; exec sleep {mark}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert until(lambda: alive(mark))
    (line,) = (line for line in call("ps").stdout.decode().splitlines() if mark in line)
    init, owner, payload, *_ = line.split()
    assert int(owner) == process.pid
    assert Path(f"/proc/{init}/comm").read_text() == "nsmagic-init\n"
    assert payload in alive(mark)
    process.terminate()
    process.wait(SECONDS)
    assert mark not in call("ps").stdout.decode()


# ---- help and bad input ---------------------------------------------------------------------


def test_help_documents_every_option() -> None:
    for words in (["--help"], ["-h"], ["help"], ["run", "--help"]):
        ended = call(*words)
        text = ended.stdout.decode()
        assert ended.returncode == 0
        for option in options.of(options.COMMAND_SCOPES):
            assert f"  {', '.join(option.flags)}" in text
            assert option.help in text
    assert call().returncode == 2
    assert call("--version").stdout == f"nsmagic {nsmagic.__version__}\n".encode()


BAD = {
    ("runn",): "runn: there is no such command; did you mean run?",
    ("run",): "nsmagic run: needs FILE.py, -c CODE or -- PROGRAM",
    ("run", "--"): "--: needs a program behind it",
    ("run", "-c"): "-c: needs a value: -c CODE",
    ("run", "missing.py"): "missing.py: cannot be read: No such file or directory",
    ("run", "/"): "/: cannot be read: Is a directory",
    ("run", "latin.py"): "latin.py: is not UTF-8 text (byte 9)",
    ("run", "zero.py"): "zero.py: holds a zero byte",
    ("run", "--meme", "1G", "ok.py"): "--meme: there is no such option; did you mean --mem?",
    ("run", "--bg", "ok.py"): "--bg: there is no such option",
    ("run", "--mem", "12Q", "ok.py"): "--mem: '12Q' is not a size",
    ("run", "--mem=", "ok.py"): "--mem: '' is not a size",
    ("run", "--cpus", "0", "ok.py"): "--cpus: '0' is not a number of CPUs",
    ("run", "--cpus", "nan", "ok.py"): "--cpus: 'nan' is not a number of CPUs",
    ("run", "--pids", "1.5", "ok.py"): "--pids: '1.5' is not a number of processes",
    ("run", "--ns", "pid,foo", "ok.py"): "--ns: 'foo' is not a namespace",
    ("run", "--net", "dial-up", "ok.py"): "--net: 'dial-up' is not a network",
    ("run", "--bind", "missing", "ok.py"): "--bind: ",
    ("run", "--bind", ":ro", "ok.py"): "--bind: ':ro' is not SRC[:DST][:ro|rw|cow]",
    ("run", "--workdir", "missing", "ok.py"): "--workdir: ",
    ("run", "--hostname", "h" * 300, "ok.py"): "--hostname: ",
    ("run", "--user", "99999999", "ok.py"): "--user: '99999999' is not a user",
    ("run", "--timeout", "soon", "ok.py"): "--timeout: 'soon' is not a duration",
    ("run", "--disk", "0", "ok.py"): "--disk: '0' is out of range",
    ("run", "--report", "missing/report.json", "ok.py"): "--report: there is no folder",
    ("run", "--report", "/", "ok.py"): "--report: ",
    ("doctor", "--jason"): "nsmagic doctor: takes --json or nothing",
    ("ps", "all"): "nsmagic ps: takes nothing behind it",
}


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words)[:40])
def test_bad_input_is_one_line_and_starts_nothing(folder: Path, words: tuple[str, ...]) -> None:
    (folder / "ok.py").write_text("print('ran')")
    (folder / "latin.py").write_bytes(b"print('caf\xe9')"[1:])
    (folder / "zero.py").write_bytes(b"print('\0')")
    ended = call(*words)
    assert (ended.returncode, ended.stdout) == (2, b"")
    text = ended.stderr.decode()
    assert text.startswith(f"nsmagic: {BAD[words]}")
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_it_says_so_where_there_is_no_linux() -> None:
    code = textwrap.dedent("""\
        import sys
        sys.platform = "win32"
        from nsmagic.cli import main
        sys.exit(main(["run", "-c", "print('ran')"]))
    """)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert re.fullmatch(rb"nsmagic: .*Linux.*\n", ended.stderr)
