"""Inside a container: a kernel instead of a single job.

Either a real ipykernel, in this clone of the launcher, where it is imported already; or another kernel's
program.  Both listen on Unix sockets in a folder of the container's own, and the supervisor outside connects
to them; see ``nsmagic.kernel``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    from nsmagic.launcher import frames

CONNECTION_FILE: Final = "connection.json"

_WARM: Final[tuple[str, ...]] = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "pdb",
    "psutil",
    "sqlite3",
    "tornado.platform.asyncio",
    "tornado.locks",
    "tornado.queues",
    "unittest.mock",
    "comm",
    "nsmagic.launcher.forks",
    "nsmagic.launcher.snapshot",
    "nsmagic.launcher.revive",
)
"""What an ipykernel imports until it has answered its first requests."""


_PIECE: Final = 1 << 18
"""Characters of output in one message."""


def warm(*, debugger: bool) -> list[tuple[str, str]]:
    """Import ipykernel in the launcher; gives what it needs and could not be imported, with the reason.

    Nothing is started here: its threads and sockets could not be cloned.

    Args:
        debugger: whether its clones offer the debugger, whose import takes as long as all the rest.
    """
    import importlib  # noqa: PLC0415 - in a launcher for kernels only
    import warnings  # noqa: PLC0415 - likewise

    failed = []
    if not debugger:
        # ipykernel asks once whether there is a debugger, by importing it; here the answer is no.
        sys.modules["debugpy"] = None  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _WARM:
            try:
                importlib.import_module(name)
            except ImportError as error:
                if name == "ipykernel.kernelapp":
                    failed.append((name, str(error)[:500]))
    if not debugger:
        del sys.modules["debugpy"]  # it is for the user's code to import what it likes
    return failed


def write_connection_file(text: str, folder: str) -> str:
    """Write what the supervisor sent where the kernel looks for it; gives the path."""
    path = Path(folder, CONNECTION_FILE)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def serve_ipykernel(text: str, folder: str, tell: Callable[[frames.FromRunner], None]) -> NoReturn:
    """Run an ipykernel until it is told to end; the process ends with it.

    Args:
        text: its connection file's, and what the supervisor wants beside (``nsmagic``).
        folder: of its sockets.
        tell: sends a frame to the owner.
    """
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - likewise
    from IPython.core.error import UsageError  # noqa: PLC0415 - imported in the launcher

    from nsmagic.launcher import forks, revive, snapshot  # noqa: PLC0415 - likewise

    # What python(1) would have made; it is what the user's code is run in.
    sys.argv[:] = ["nsmagic-kernel"]
    _send_in_pieces()
    connection = json.loads(text)
    wanted = connection.pop("nsmagic", {})
    connection_file = write_connection_file(json.dumps(connection), folder)
    keeper = snapshot.Keeper(wanted.get("keep_state", "off"), wanted.get("mem"), tell)
    before = set(snapshot.open_descriptors())
    app = IPKernelApp.instance()
    app.initialize(
        [
            "-f",
            connection_file,
            # Clients ask for the history by search and by range, and only what is in a file is found so.
            f"--HistoryManager.hist_file={Path(connection_file).with_name('history.sqlite')}",
            # Who starts us ends us; so it need neither watch its parent nor say how to end it by hand.
            "--IPKernelApp.parent_handle=1",
            # Our standard error goes into the server's log, where a kernel has nothing to say but errors.
            "--log-level=ERROR",
        ]
    )

    def isolation(line: str) -> Any:
        """Ask the supervisor outside; it looks for cells that hold nothing else."""
        raise UsageError(
            f"%isolation {line}".strip() + ": is answered from outside, so it stands alone in its cell"
        )

    app.shell.register_magic_function(isolation, "line", "isolation")
    forks.watch()
    forks.end_with_their_cell(app.kernel)
    keeper.attach(app.kernel, before=before)
    streams = revive.streams_of(app)
    while _was_revived(app):
        number = os.getpid()
        connection["ip"] = f"{folder}/kernel.{number}"
        app = revive.revive(app, streams, keeper, connection, f"{connection_file}.{number}")
    keeper.end()
    _end(0)


def _was_revived(app: Any) -> bool:
    """Run an app; whether we are a snapshot of it by now, because it has died."""
    from nsmagic.launcher import snapshot  # noqa: PLC0415 - imported in the launcher

    try:
        app.start()
    except snapshot.Revived:
        return True
    return False


def _send_in_pieces() -> None:
    """Have much output sent in several messages: while one passes the supervisor, the next is being made.

    ipykernel has no setting for that, so it is its buffers' content that is cut.
    """
    from ipykernel.iostream import OutStream  # noqa: PLC0415 - imported in the launcher

    whole = getattr(OutStream, "_flush_buffers", None)
    if whole is None:
        return

    def pieces(stream: Any) -> Iterator[tuple[Any, str]]:
        for parent, text in whole(stream):
            for start in range(0, len(text), _PIECE):
                yield parent, text[start : start + _PIECE]

    OutStream._flush_buffers = pieces  # noqa: SLF001 - see above


def _end(status: int) -> NoReturn:
    """Run what was registered for the exit, as the interpreter does at its end, then go."""
    import atexit  # noqa: PLC0415 - at the end only
    import contextlib  # noqa: PLC0415 - likewise

    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no public way
    os._exit(status)
