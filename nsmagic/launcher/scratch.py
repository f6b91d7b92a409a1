"""The scratch process: runs cells one after the other, with no isolation at all.

It joins its cgroup and then runs what the owner sends.  A cell may put it behind a chroot, into other
namespaces, under a system-call filter.  So all that it needs is open and imported before: a channel that
works by read(2) and write(2) alone, streams, what shows a traceback, and the usual modules of such cells.

Here are also its messages, and its guard's.  What the owner gets from here is the user's own, but is parsed
typed and bounded like everything else.  Knows ``nsmagic.linux``, and never the owner's side; see ``guard``
for its parent.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import linecache
import os
import signal
import sys
import traceback
import types
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from nsmagic import linux, linux_hints

if TYPE_CHECKING:
    from typing import NoReturn

MAX_PACKET: Final = 160 * 1024
"""Bytes of one message, either way; the kernel's default limit for a packet is 208 KiB."""
MAX_CODE: Final = 128 * 1024
MAX_LINE: Final = 800
MAX_LINES: Final = 40
_CONTROL: Final = 200
"""Where the channel's descriptor lies: out of the way of what cells open, close and copy to fixed numbers."""
GO: Final = b"go"
"""Owner → guard, once: fork the scratch process now."""
EXIT_CHANNEL: Final = 75
"""The exit status of a scratch process that cannot answer any more."""


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
        shown = [compile(last, cell.name, "single", dont_inherit=True)]
    return [compile(tree, cell.name, "exec", dont_inherit=True), *shown]


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


def serve(config: dict[str, Any]) -> NoReturn:
    """In the guard's fork: run cells; the keys of ``config`` are named in ``guard.main``."""
    os.setsid()  # so that an interrupt reaches it and its children, and nobody else
    import fcntl  # noqa: PLC0415 - Linux only, and the owner imports this module for its messages
    import resource  # noqa: PLC0415 - likewise

    high = fcntl.fcntl(config["control"], fcntl.F_DUPFD_CLOEXEC, _CONTROL)
    for descriptor in (config["control"], config["report"], config["lifeline"]):
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
