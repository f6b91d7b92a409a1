"""A scratch process: runs cells one after the other, with no isolation at all, and its guard.

    owner ── lifeline, report ── guard ── scratch process ── whatever its cells start
      └───── cells, stdout, stderr ────────┘

Both are one program, forked after all is imported.  The **guard** runs no cell.  It waits for the scratch
process' end, which it reports, and for the owner's, which closes the lifeline; then it ends everything below
it (it is a subreaper, so orphans come to it), and removes the cgroup directories.

The **scratch process** joins its cgroup and then runs what the owner sends.  A cell may put it behind a
chroot, into other namespaces, under a system-call filter.  So all that it needs is open and imported before:
a channel that works by read(2) and write(2) alone, streams, what shows a traceback, and the usual modules of
such cells.

What the owner gets from here is the user's own, but is parsed typed and bounded like everything else.
Knows ``strays`` and ``nsmagic.linux``; never the owner's side.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import importlib
import io
import json
import linecache
import os
import select
import signal
import sys
import time
import traceback
import types
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from nsmagic import linux, linux_hints
from nsmagic.launcher import strays

if TYPE_CHECKING:
    from typing import NoReturn

MAX_PACKET: Final = 160 * 1024
"""Bytes of one message, either way; the kernel's default limit for a packet is 208 KiB."""
MAX_CODE: Final = 128 * 1024
MAX_LINE: Final = 500
MAX_LINES: Final = 100
_CONTROL: Final = 200
"""Where the channel's descriptor lies: out of the way of what cells open, close and copy to fixed numbers."""
_PR_SET_CHILD_SUBREAPER: Final = 36
EXIT_CHANNEL: Final = 75
"""The exit status of a scratch process that cannot answer any more."""
_PF_FORKNOEXEC: Final = 0x40
_REMOVAL_TRIES: Final = 400
_REMOVAL_RETRY: Final = 0.005
_CELLS_USE: Final = (
    "argparse", "array", "base64", "collections", "copy", "ctypes.util", "dataclasses", "datetime",
    "encodings.idna", "encodings.latin_1", "enum", "errno", "fcntl", "functools", "glob", "grp", "hashlib",
    "inspect", "itertools", "json", "logging", "math", "mmap", "multiprocessing.context", "pathlib",
    "platform", "pprint", "pwd", "random", "re", "resource", "select", "selectors", "shlex", "shutil",
    "socket", "stat", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time",
    "typing", "uuid",
)  # fmt: skip
"""Modules of the standard library that a cell can import even where no file of it is to be seen any more."""


class Cell(msgspec.Struct, frozen=True, tag="cell"):
    """Owner → scratch process: run this.

    Attributes:
        name: what its lines are called in tracebacks.
    """

    code: str
    name: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Scratch process → owner: it takes cells."""

    pid: Annotated[int, msgspec.Meta(gt=0)]


_Line = Annotated[str, msgspec.Meta(max_length=MAX_LINE)]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Scratch process → owner: the cell is over.

    Attributes:
        error: the name of what it raised; empty where it ended well.
        text: what that says.
        traceback: its lines.
    """

    error: _Line = ""
    text: _Line = ""
    traceback: Annotated[list[_Line], msgspec.Meta(max_length=MAX_LINES)] = []  # msgspec copies it


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Guard → owner: the scratch process has ended.

    Attributes:
        status: as waitpid(2) gives it.
        became: the name of the program that it had become by execve(2); empty where it had not.
    """

    status: int
    became: Annotated[str, msgspec.Meta(max_length=MAX_LINE)]


_encoder = msgspec.msgpack.Encoder()
_cell = msgspec.msgpack.Decoder(Cell)
_answer: msgspec.msgpack.Decoder[Ready | Done] = msgspec.msgpack.Decoder(Ready | Done)
_ended = msgspec.msgpack.Decoder(Ended)


def encode(message: Cell | Ready | Done | Ended) -> bytes:
    """A message as a packet."""
    return _encoder.encode(message)


def decode_answer(packet: bytes) -> Ready | Done:
    """What the scratch process says.

    Raises:
        msgspec.MsgspecError: something else.
    """
    return _answer.decode(packet)


def decode_ended(packet: bytes) -> Ended:
    """What the guard says.

    Raises:
        msgspec.MsgspecError: something else.
    """
    return _ended.decode(packet)


# ---- the scratch process -----------------------------------------------------------------


class Runner:
    """Runs cells until the owner is gone.

    Args:
        control: descriptor of the channel, a socket of packets.
    """

    def __init__(self, control: int) -> None:
        self._control = control
        self._pid = os.getpid()
        self._forked = False
        self._in_cell = False
        self._module = types.ModuleType("__main__")
        self.variables = self._module.__dict__
        self.forget()
        # Before a fork what was printed goes out, or parent and child would both send it.
        os.register_at_fork(before=_flush, after_in_child=self._become_child)
        signal.signal(signal.SIGINT, self._interrupt)

    def forget(self) -> None:
        """Have no variables but those that every program has."""
        self.variables.clear()
        self.variables.update(__name__="__main__", __builtins__=builtins)
        builtins.__dict__.pop("_", None)

    def serve(self) -> NoReturn:
        """Take cells; never returns, not in a child that a cell has forked either."""
        sys.modules["__main__"] = self._module
        self._send(Ready(self._pid))
        while True:
            try:
                packet = os.read(self._control, MAX_PACKET)
            except OSError:
                os._exit(EXIT_CHANNEL)
            if not packet:  # the owner is gone
                os._exit(0)
            done = self.run(_cell.decode(packet))
            if self._forked or os.getpid() != self._pid:
                _leave_child(done)
            _flush()
            self._send(done)

    def run(self, cell: Cell) -> Done:
        """Run one cell and tell what it raised."""
        # Without a time the entry counts as current, whatever the file system shows.
        lines = cell.code.splitlines(keepends=True)
        linecache.cache[cell.name] = (len(cell.code), None, lines, cell.name)
        error: BaseException | None = None
        try:
            self._in_cell = True
            for code in _compile(cell):
                exec(code, self.variables)  # noqa: S102 - that is what we are for
            self._in_cell = False
        except BaseException as raised:  # noqa: BLE001 - whatever a cell can raise, the next one is taken
            self._in_cell = False
            error = raised
        return Done() if error is None else _describe(error)

    def _send(self, message: Ready | Done) -> None:
        try:
            os.write(self._control, encode(message))
        except OSError:
            # A cell has closed the channel, or forbidden us to use it.
            os._exit(EXIT_CHANNEL)

    def _interrupt(self, number: int, frame: object) -> None:
        del number, frame
        if self._in_cell:
            raise KeyboardInterrupt

    def _become_child(self) -> None:
        """In a child that a cell forked: the channel is the parent's.  Its number stays taken."""
        self._forked = True
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, self._control, inheritable=False)
            os.close(null)
            return
        with contextlib.suppress(OSError):  # there is no /dev behind a chroot
            os.close(self._control)


def _compile(cell: Cell) -> list[types.CodeType]:
    """The cell's code; a last expression apart, to be printed as Python's own prompt does it."""
    tree = ast.parse(cell.code, cell.name)
    shown: list[types.CodeType] = []
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not cell.code.rstrip().endswith(";"):
        last = ast.Interactive([tree.body.pop()])
        shown = [compile(last, cell.name, "single")]
    return [compile(tree, cell.name, "exec"), *shown]


def _describe(error: BaseException) -> Done:
    """An error as lines that name the cell's; without our own frames, and with a hint where one is known."""
    ours = {__file__, linux.__file__}
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in ours:
        frames = frames.tb_next
    try:
        found = traceback.TracebackException(type(error), error, frames)
        # What nsmagic.linux does in its own lines is told by the error's text.
        kept = [frame for frame in found.stack if frame.filename not in ours]
        found.stack = traceback.StackSummary.from_list(kept)
        text = "".join(found.format()).splitlines()
    except Exception as failed:  # noqa: BLE001 - an error's own methods may raise anything
        text = [f"{type(error).__name__}: it cannot be shown: {type(failed).__name__}"]
    if isinstance(error, OSError) and not isinstance(error, linux.LinuxError):
        hint = linux_hints.fork_hint(error.errno or 0)
        text += [f"Hint: {hint}."] if hint else []
    lines = [_cut(line) for line in text]
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[: half - 1], "  …", *lines[-half:]]
    said = ""
    with contextlib.suppress(Exception):
        said = _cut(str(error))
    return Done(type(error).__name__[:MAX_LINE], said, lines)


def _cut(line: str) -> str:
    """A line of bounded length, as UTF-8 can carry it."""
    return line[:MAX_LINE].encode("utf-8", "backslashreplace").decode()[:MAX_LINE]


def _leave_child(done: Done) -> NoReturn:
    """A child that a cell has forked came to the cell's end: it must not take the parent's next cell."""
    with contextlib.suppress(BaseException):
        if done.error == "SystemExit":
            sys.stderr.write(
                f"nsmagic: the child {os.getpid()} ended by SystemExit; in a child say os._exit(STATUS)\n"
            )
        elif done.error:
            sys.stderr.write("\n".join([*done.traceback, f"nsmagic: that was in the child {os.getpid()}\n"]))
        else:
            sys.stderr.write(
                f"nsmagic: the child {os.getpid()} ran to the end of the cell and was ended there; "
                "end a child with os._exit(0)\n"
            )
    _flush()
    os._exit(1 if done.error else 0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user may have put anything there
            stream.flush()


def _open_streams() -> None:
    """Text streams over 1 and 2 whose text is sent line by line, and which take any text."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False), 1 << 16)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _warm(runner: Runner) -> None:
    """Do once what a cell will do, so that nothing has to be imported when no file is to be seen any more."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet):
        for code in (
            "1 + 1",
            "1 /\\\n 0",
            "nane",
            "import os; os.pth",
            "from os import pth",
            "import no_such_module",
            "(",
            "open('/no/such/file')",
            "raise LinuxError(12, 'fork()')",
            "try: 1 / 0\nexcept Exception as e: raise ValueError('a') from e",
            "'é'.encode('ascii')",
            "raise ExceptionGroup('a', [ValueError('b')])",
        ):
            runner.variables["LinuxError"] = linux.LinuxError
            runner.run(Cell(code, "<warm>"))
    runner.forget()
    linecache.cache.pop("<warm>", None)


def _be_scratch(config: dict[str, Any], control: int) -> NoReturn:
    """The fork that runs cells."""
    os.setsid()  # so that an interrupt reaches it and its children, and nobody else
    import fcntl  # noqa: PLC0415 - Linux only, and the owner imports this module for its messages
    import resource  # noqa: PLC0415 - likewise

    high = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, _CONTROL)
    for descriptor in (control, config["report"], config["lifeline"]):
        os.close(descriptor)
    for join in config["joins"]:
        os.write(join, b"0")
        os.close(join)
    if config["group"] >= 0:
        procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=config["group"])
        os.write(procs, b"0")
        os.close(procs)
        os.close(config["group"])
    for kind, limit in config["rlimits"]:
        resource.setrlimit(kind, (limit, limit))
    sys.path[:] = config["path"]
    sys.argv[:] = [""]
    _open_streams()
    runner = Runner(high)
    _warm(runner)
    try:
        runner.serve()
    finally:
        os._exit(1)


# ---- the guard -----------------------------------------------------------------------------


def _guard(child: int, config: dict[str, Any]) -> NoReturn:
    """Wait for the ends of the scratch process and of the owner, and leave nothing."""
    lifeline, report = config["lifeline"], config["report"]
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, config["control"]):
        os.dup2(null, descriptor, inheritable=False)
    for descriptor in (*config["joins"], *([config["group"]] if config["group"] >= 0 else [])):
        os.close(descriptor)
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(lifeline, select.POLLHUP)
    poll.register(pidfd, select.POLLIN)
    if pidfd in dict(poll.poll()):
        became = _became(child)
        _, status = os.waitpid(child, 0)
        _end_all(config["directories"])
        with contextlib.suppress(OSError):
            os.write(report, encode(Ended(status, became)))
        # The owner still reads what the group has counted.
        poll.unregister(pidfd)
        poll.poll()
    _end_all(config["directories"])
    _remove(config["directories"])
    os._exit(0)


def _became(pid: int) -> str:
    """The program that a dead child, not yet reaped, had become; empty where it never called execve(2).

    The kernel marks a process that was forked and has run no other program since: ``flags`` in proc(5).
    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no path to speak of
        before, _, after = file.read().rpartition(")")
    flags = int(after.split()[6])
    return "" if flags & _PF_FORKNOEXEC else before.partition("(")[2]


def _remove(directories: list[str]) -> None:
    """Remove the cgroup directories: first our own, then the bases, which others may still use."""
    for directory in directories:
        for _ in range(_REMOVAL_TRIES):
            try:
                os.rmdir(directory)  # noqa: PTH106 - a plain path from the owner
            except FileNotFoundError:
                break
            except OSError:
                # EBUSY: other groups lie in it, or the last process is not quite gone, and no event says
                # when.
                if _has_groups(directory):
                    break
                time.sleep(_REMOVAL_RETRY)
            else:
                break


def _has_groups(directory: str) -> bool:
    with contextlib.suppress(OSError):
        return any(entry.is_dir() for entry in os.scandir(directory))
    return False


def _end_all(directories: list[str]) -> None:
    """End all that the scratch process has started; what forks all the time must not grow back meanwhile."""
    for directory in directories:
        if directory.rpartition("/")[2].startswith("c"):  # a group, not the base of groups
            with contextlib.suppress(OSError), open(f"{directory}/pids.max", "w", encoding="ascii") as file:  # noqa: PTH123
                file.write("0")
    strays.end_all(set())


def main() -> NoReturn:
    """Run both; the last argument is JSON, whose keys ``nsmagic.scratch`` names."""
    config = json.loads(sys.argv[-1])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in _CELLS_USE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    child = os.fork()
    if child == 0:
        _be_scratch(config, config["control"])
    _guard(child, config)
