"""Inside a container: how a snapshot that was woken becomes the kernel.

It is a fork of a process that is dead now, from before its last cell.  All objects are there; what is not is
whatever lives outside of memory: threads, and with them ZeroMQ's sockets and the event loop.  So the old app,
kernel and loop are laid aside, and never touched or finalised again: that would write into what nobody reads.
A new app binds new sockets, and its kernel takes over the old *shell*, with everything that is the user's:
variables, history, magics, callbacks.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsmagic.launcher import forks, frames
from nsmagic.launcher.snapshot import is_users_task, open_descriptors

if TYPE_CHECKING:
    from nsmagic.launcher.snapshot import Keeper

_aside: list[Any] = []
"""What must not be finalised."""


def streams_of(app: Any) -> dict[str, Any]:
    """The streams that an app has put in the place of Python's."""
    del app
    return {"stdout": sys.stdout, "stderr": sys.stderr}


def revive(app: Any, streams: dict[str, Any], keeper: Keeper, connection: dict[str, Any], path: str) -> Any:
    """Make the app that goes on; gives it, ready to start.

    Args:
        app: the dead one's.
        streams: what it had put in the place of ``sys.stdout`` and ``sys.stderr``.
        keeper: makes the snapshots.
        connection: where to listen.
        path: of the file to write that to.
    """
    replaced = {
        name: getattr(sys, name) for name, stream in streams.items() if getattr(sys, name) is not stream
    }
    _let_go(app, streams, keeper.descriptors)
    shell, kernel = app.shell, app.kernel
    loop = asyncio.get_event_loop()
    tasks = asyncio.all_tasks(loop)
    _aside.append((app, kernel, loop, tasks, shell.history_manager.db))
    lost = sum(map(is_users_task, tasks))
    before = set(open_descriptors())
    asyncio.set_event_loop(asyncio.new_event_loop())
    new = _new_app(app, connection, path)
    _take_over(shell, kernel, new)
    with contextlib.suppress(Exception):  # the history is a comfort
        _copy_history(shell.history_manager, Path(f"{path}.sqlite"))
    for name, old in streams.items():
        # Whoever has kept the old stream, such as a log's handler, writes to the new one.
        vars(old).clear()
        vars(old).update(vars(getattr(sys, name)))
        _aside.append(old)
    streams.update(streams_of(new))
    for name, stream in replaced.items():
        setattr(sys, name, stream)
    with contextlib.suppress(Exception):  # it can be asked for again and refused; the kernel goes on
        _forget_debugger(shell, kernel)
    forks.end_with_their_cell(new.kernel)
    keeper.attach(new.kernel, before=before)
    keeper.restore_random()
    processes, threads = keeper.lost()
    keeper.tell(frames.Revived(os.getpid(), shell.execution_count, processes, threads, lost))
    return new


def _let_go(app: Any, streams: dict[str, Any], descriptors: dict[int, str]) -> None:
    for stream in streams.values():
        with contextlib.suppress(AttributeError, OSError):
            os.dup2(stream._original_stdstream_copy, stream._original_stdstream_fd)  # noqa: SLF001 - no public way
    atexit.unregister(app.close)
    for thread in (app.iopub_thread, app.shell.history_manager.save_thread):
        if thread is not None:
            atexit.unregister(thread.stop)
    for number, text in open_descriptors().items():
        # Its sockets and pipes: the other side shall see that they have ended.  And its history's files.
        if descriptors.get(number) == text:
            os.close(number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _new_app(app: Any, connection: dict[str, Any], path: str) -> Any:
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - imported in the launcher

    class RevivedApp(IPKernelApp):  # type: ignore[misc]
        """An app whose shell has been set up long ago."""

        def init_gui_pylab(self) -> None:
            """Done."""

        def init_extensions(self) -> None:
            """Likewise."""

        def init_code(self) -> None:
            """Likewise: the user's startup files run once."""

    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - a plain path
        json.dump(connection, file)
    type(app).clear_instance()
    type(app.kernel).clear_instance()
    new = RevivedApp.instance()
    new.initialize(["-f", path, "--IPKernelApp.parent_handle=1", "--log-level=ERROR"])
    return new


def _take_over(shell: Any, old: Any, new: Any) -> None:
    """Connect what the shell knows of its kernel to what is there now."""
    shell.kernel = new.kernel
    shell.parent = new.kernel
    for comm in new.kernel.comm_manager.comms.values():
        if getattr(comm, "kernel", None) is old:  # it sends by the kernel that it was opened in
            comm.kernel = new.kernel
    if shell.has_trait("enable_tip"):
        shell.enable_tip = False  # a tip of the day is chosen by the user's random numbers
    if old.eventloop is not None:
        new.kernel.eventloop = old.eventloop


def _forget_debugger(shell: Any, old: Any) -> None:
    """Undo what the debugger has changed: its threads, and the process that it spoke to, are gone.

    pydevd has the means for a fork that it knows of, which this is not; and debugpy would refuse to listen a
    second time.
    """
    api = sys.modules.get("debugpy.server.api")
    if api is None or not api.listen.called:
        return
    pydevd = sys.modules["pydevd"]
    pydevd.settrace_forked(setup_tracing=False)
    pydevd.stoptrace()
    pydevd.SetupHolder.setup = None
    for name in ("os", "subprocess", "_posixsubprocess"):
        # It makes each new process of Python one that connects to the debugger.
        module = vars(sys.modules[name])
        for original in [word for word in module if word.startswith("original_")]:
            module[original.removeprefix("original_")] = module.pop(original)
    api.listen.called = False
    removed = old.debugger._removed_cleanup  # noqa: SLF001 - no public way
    for index in sorted(removed):
        shell.input_transformer_manager.cleanup_transforms.insert(index, removed.pop(index))


def _copy_history(history: Any, path: Path) -> None:
    """Give the history a file of its own.

    The old one may have been in the middle of a write, by a thread that is not there any more: its locks, in
    SQLite and around it, would never open.  A copy has none, and SQLite mends it by its journal.  Then it is
    made what the lists in memory are: without the dead one's last cell.
    """
    old = str(history.hist_file)
    for end in ("", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(old + end, f"{path}{end}")
            os.unlink(old + end)  # noqa: PTH108 - as text
    finalizer = getattr(history, "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()
    history.db_input_cache_lock, history.db_output_cache_lock = threading.Lock(), threading.Lock()
    history.db_input_cache, history.db_output_cache = [], []
    history.hist_file = str(path)
    history.init_db()
    lines = enumerate(zip(history.input_hist_parsed, history.input_hist_raw, strict=False))
    rows = [(history.session_number, line, parsed, raw) for line, (parsed, raw) in lines if line]
    with history.db:
        for table in ("history", "output_history"):
            history.db.execute(
                f"DELETE FROM {table} WHERE session==? AND line>?",  # noqa: S608 - two words of ours
                (history.session_number, len(rows)),
            )
        history.db.executemany("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?)", rows)
    from IPython.core.history import HistorySavingThread  # noqa: PLC0415 - imported in the launcher

    history.save_thread = HistorySavingThread(history)
    history.save_thread.start()
