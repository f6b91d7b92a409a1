"""Inside a container: runs one job and tells what came of it.

The process is a clone of the launcher, so IPython is imported and warm.  Descriptors 0, 1 and 2 are the
job's streams; 3 is the control socket: a job comes in, frames go out.  **Everything in this process may be
taken over by the user's code**, so the owner believes nothing of what it says that the kernel can say better.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import io
import os
import pickle
import select
import signal
import socket
import sys
import time
import types
import warnings
from typing import TYPE_CHECKING, Any, Final

from nsmagic import values
from nsmagic.launcher import frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from IPython.core.interactiveshell import ExecutionResult

    from nsmagic.launcher.shell import RunnerShell

CONTROL: Final = 3
_GO: Final = 5
_PR_SET_DUMPABLE: Final = 4
_LEFTOVER_TRIES: Final = 500
_EXIT_FAILED: Final = 1
_EXIT_NOT_EXECUTABLE: Final = 126
_EXIT_NOT_FOUND: Final = 127


class Channel:
    """The control socket: frames to and from the owner."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=CONTROL)

    def send(self, message: frames.FromRunner) -> None:
        """Send one frame."""
        self._socket.sendall(frames.encode_frame(message))

    def waiting(self) -> bool:
        """Whether a frame has come already."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def wait_for_end(self) -> None:
        """Wait until the owner lets go of the channel."""
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass

    def receive(self) -> frames.ToRunner:
        """Wait for one frame; the end of the channel ends the process."""
        header = self._read(frames.LENGTH.size)
        return frames.decode_to_runner(self._read(*frames.LENGTH.unpack(header)))

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def show(self, message: frames.Display | frames.Clear) -> None:
        """Send rich output, and wait until all that was printed before it has been shown."""
        flush()
        self.send(message)
        self.receive()


def flush() -> None:
    """Everything printed so far is in the pipes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user may have put anything there
            stream.flush()


def _open_streams() -> None:
    """New text streams over 0, 1 and 2; a line is sent when it is complete."""
    stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r")), encoding="utf-8", errors="surrogateescape")
    setattr(sys, "stdin", stdin)  # noqa: B010 - as below
    setattr(sys, "__stdin__", stdin)  # noqa: B010 - typeshed calls it final, which a clone cannot respect
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(descriptor, "w"), 1 << 16)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _reseed() -> None:
    """Clones must not share random numbers; ``random`` reseeds itself in CPython's fork hook."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(None)


def make_shell() -> RunnerShell:
    """IPython's shell; its import takes longer than all the rest, and scripts and programs need none."""
    from nsmagic.launcher.shell import warm_shell  # noqa: PLC0415 - see above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shell = warm_shell()
    # IPython tells whoever calls sys.exit() how to leave a terminal; a cell leaves none.
    warnings.filterwarnings("ignore", message="To exit: use", category=UserWarning)
    return shell


def serve(shell: RunnerShell | None, confine: Callable[[], None] | None) -> NoReturn:
    """Take one job, or with ``keep`` many; the process ends with the last.

    Args:
        shell: the launcher's, or None where it was made for scripts and programs only.
        confine: waits until the root is built, goes there, and gives up every right; None if that is done.
    """
    os.set_inheritable(CONTROL, False)  # noqa: FBT003 - the library's signature
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A launcher has no interest in a broken pipe, a program has.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    channel = Channel()
    _open_streams()
    _reseed()
    # A fresh clone pays for page faults on its first work: while we wait, let that be ours.
    warm = shell is None
    if confine is not None:
        if shell is not None and not select.select([_GO], [], [], 0)[0]:
            shell.run_source("None")
            warm = True
        confine()
    if shell is not None and not warm and not channel.waiting():
        shell.run_source("None")
    channel.send(frames.Ready())
    while True:
        job = channel.receive()
        if not isinstance(job, frames.Job):
            os._exit(_EXIT_FAILED)
        if not job.keep:
            _run(job, channel, shell)
        _set_dumpable(0)  # a job may look into its own memory, not into ours, where the next job comes
        child = os.fork()
        if child == 0:
            _set_dumpable(1)
            _reseed()
            _replace_stdin(job.stdin)
            _run(job, channel, shell)
        _, status = os.waitpid(child, 0)
        if os.getppid() == 1:
            # In our own PID namespace "everybody" is what the job has left: it must not meet the next.
            with contextlib.suppress(ProcessLookupError):
                for _ in range(_LEFTOVER_TRIES):
                    os.kill(-1, signal.SIGKILL)
                    time.sleep(0.001)
        channel.send(frames.Exited(status))


def _set_dumpable(value: int) -> None:
    """See PR_SET_DUMPABLE(2const)."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, value, 0, 0, 0)


def _replace_stdin(data: bytes) -> None:
    """One of several jobs has an input of its own: what came with it."""
    memory = os.memfd_create("stdin")
    os.write(memory, data)
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    os.close(memory)


def _run(job: frames.Job, channel: Channel, shell: RunnerShell | None) -> NoReturn:
    os.environ.clear()
    os.environ.update(job.env)
    sys.argv[:] = job.argv or [""]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as Python itself does it
    if job.kind == "kernel":
        _run_kernel(job, channel)
    if job.kind == "program":
        _execute(job.argv, channel)
    if job.fresh:
        _execute_fresh(job, channel)
    try:
        _run_python(job, channel, shell)
    except BaseException:  # noqa: BLE001 - whatever a job can raise, the process ends here
        sys.excepthook(*sys.exc_info())
        flush()
        os._exit(_EXIT_FAILED)


def _run_python(job: frames.Job, channel: Channel, shell: RunnerShell | None) -> NoReturn:
    if job.kind == "cell":
        shell = shell or make_shell()
        shell.attach(channel)
        status, extracted, problems = _run_cell(job, shell, channel)
    else:
        status, extracted, problems = _run_script(job), {}, {}
    flush()
    channel.send(frames.Done(status, extracted, problems))
    if not job.keep:
        # The owner ends us when it has answered; two processes that die meanwhile would take its time.
        channel.wait_for_end()
    os._exit(status)


def _run_kernel(job: frames.Job, channel: Channel) -> NoReturn:
    from nsmagic.launcher import kernel  # noqa: PLC0415 - only kernels get here

    folder, *argv = job.argv
    if argv:
        # The program's own words, with the place of the file that it shall read.
        path = kernel.write_connection_file(job.code, folder)
        _execute([word.replace(frames.CONNECTION_FILE, path) for word in argv], channel)
    try:
        kernel.serve_ipykernel(job.code, folder, channel.send)
    except BaseException:  # noqa: BLE001 - whatever it can raise, the process ends here
        sys.__excepthook__(*sys.exc_info())
        os._exit(_EXIT_FAILED)


def _execute(argv: list[str], channel: Channel) -> NoReturn:
    flush()
    # What Python ignores, or the owner's own starter did, a program must not inherit.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - the program that was asked for
    except OSError as error:
        channel.send(frames.NoProgram(error.errno or 0))
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        os._exit(_EXIT_NOT_FOUND if missing else _EXIT_NOT_EXECUTABLE)


_FRESH: Final = """
import sys
sys.path[:] = {path!r}
from nsmagic.launcher import runner
runner.serve_fresh()
"""


def _execute_fresh(job: frames.Job, channel: Channel) -> NoReturn:
    """Start a new interpreter in our place; the job goes to it through a pipe."""
    again = frames.encode_frame(
        frames.Job(
            **{name: getattr(job, name) for name in job.__struct_fields__} | {"fresh": False, "keep": False}
        )
    )
    os.set_inheritable(CONTROL, True)  # noqa: FBT003 - the library's signature
    memory = os.memfd_create("job", 0)
    os.set_inheritable(memory, True)  # noqa: FBT003 - likewise
    os.write(memory, again)
    os.lseek(memory, 0, os.SEEK_SET)
    os.environ["NSMAGIC_JOB"] = str(memory)
    path = [entry for entry in sys.path[1:]]  # noqa: C416 - ours is put first again over there
    _execute([sys.executable, "-I", "-c", _FRESH.format(path=path)], channel)


def serve_fresh() -> NoReturn:
    """In a new interpreter: take the job that waits in a file, and run it."""
    memory = int(os.environ.pop("NSMAGIC_JOB"))
    with open(memory, "rb") as file:
        body = file.read()[frames.LENGTH.size :]
    job = frames.decode_to_runner(body)
    if not isinstance(job, frames.Job):
        os._exit(_EXIT_FAILED)
    os.set_inheritable(CONTROL, False)  # noqa: FBT003 - the library's signature
    channel = Channel()
    _open_streams()
    _run(job, channel, None)


def _ask_through(channel: Channel) -> None:
    """``input()`` and ``getpass()`` ask the owner, who asks the user."""

    def ask(prompt: object, *, password: bool) -> str:
        __tracebackhide__ = True  # a traceback is about the cell, not about us
        flush()
        channel.send(frames.Ask(str(prompt)[:10_000], password))
        reply = channel.receive()
        if not isinstance(reply, frames.Answer) or reply.text is None:
            raise EOFError("nobody can answer here: input() needs a front end that asks")
        return reply.text

    def ask_line(prompt: object = "", /) -> str:
        __tracebackhide__ = True
        return ask(prompt, password=False)

    def ask_password(prompt: str = "Password: ", stream: Any = None) -> str:
        __tracebackhide__ = True
        del stream
        return ask(prompt, password=True)

    import builtins  # noqa: PLC0415 - replaced here and nowhere else

    builtins.input = ask_line
    getpass.getpass = ask_password


def _run_cell(
    job: frames.Job, shell: RunnerShell, channel: Channel
) -> tuple[int, dict[str, bytes], dict[str, str]]:
    namespace = shell.user_ns
    for name, encoded in job.variables.items():
        namespace[name] = values.decode(encoded)
    for name, pickled in job.pickled.items():
        namespace[name] = pickle.loads(pickled)  # noqa: S301 - from the owner, who is trusted; never the other way
    if job.ask:
        _ask_through(channel)
    shell.execution_count = job.execution_count
    result = shell.run_source(job.code)
    extracted: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    status = _exit_status(result)
    if status == 0:
        extracted, problems = _extract(job.outputs, namespace)
    return status, extracted, problems


def _extract(names: list[str], namespace: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    extracted: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    room = frames.MAX_FRAME - (1 << 20)
    for name in names:
        if name not in namespace:
            problems[name] = "the cell did not set it"
            continue
        try:
            encoded = values.encode(namespace[name])
        except Exception as error:  # noqa: BLE001 - a value's own methods may raise anything
            problems[name] = str(error)[:500]
            continue
        if len(encoded) > room:
            problems[name] = (
                f"its {len(encoded)} bytes are more than can be taken out at once; write it to a file"
            )
            continue
        room -= len(encoded)
        extracted[name] = encoded
    return extracted, problems


def _exit_status(result: ExecutionResult) -> int:
    error = result.error_before_exec or result.error_in_exec
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return _system_exit(error)
    return _EXIT_FAILED


def _system_exit(error: SystemExit) -> int:
    """What python(1) makes of ``sys.exit(…)``."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{error.code}\n")
    return _EXIT_FAILED


def _run_script(job: frames.Job) -> int:
    """As ``python FILE`` or ``python -c CODE``: in ``__main__``, with a plain traceback, and no display."""
    name = job.argv[0] if job.argv and job.argv[0] != "-c" else "<string>"
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    if name != "<string>":
        module.__dict__["__file__"] = name
    sys.modules["__main__"] = module
    sys.displayhook, sys.excepthook = sys.__displayhook__, sys.__excepthook__
    status = 0
    try:
        exec(compile(job.code, name, "exec"), module.__dict__)  # noqa: S102 - that is what we are for
    except SystemExit as error:
        status = _system_exit(error)
    except BaseException as error:  # noqa: BLE001 - as the interpreter itself
        # Our own frame is not the user's business.
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error, error.__traceback__)
        status = 130 if isinstance(error, KeyboardInterrupt) else _EXIT_FAILED
    _shut_down()
    return status


def _shut_down() -> None:
    """What the interpreter does at its end: wait for threads, run what was registered for the exit."""
    import atexit  # noqa: PLC0415 - only scripts get here
    import threading  # noqa: PLC0415 - likewise

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001 - likewise
