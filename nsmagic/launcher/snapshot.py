"""Inside a container: before each cell an ipykernel makes a snapshot of itself.

The snapshot is a fork that sleeps, beside us and not below us; ``native/snapshot.c`` says how it is made, how
it ends and how it wakes.  Here is decided whether and when one is made, and seen to it that nobody's code
notices.  When we die it goes on from here: see ``revive``.

When: behind a cell, when its reply is out and nobody waits.  Where the next cell comes before that, or
something may have changed variables since, it is made before that cell.  The one before is kept to go back
to until the next cell begins.

What a fork cannot copy faithfully speaks against it: threads but ipykernel's own (and those that their
library ends before each fork, and starts again, as OpenBLAS does), a GPU's driver.  So does what it would
cost: memory, when most pages may have to be there twice; time, when there are many pages to share.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal

from nsmagic.launcher import frames
from nsmagic.native._runtime import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

Against = Literal["", "off", "host", "threads", "accelerator", "memory", "slow"]

_SHARE: Final = 0.5
"""Of the memory limit: with more in use, a cell that touches it all would not fit beside its snapshot."""
_SLOW_NS: Final = 100_000_000
_EASIER: Final = 0.7
"""Of the memory that a slow fork had to share: with less than that another one is tried."""
_IDLE_SECONDS: Final = 0.01
"""Behind a cell: a fork holds up all threads, and its reply shall be out."""
_JOIN_SECONDS: Final = 0.005
_OWN_FOLDERS: Final = (
    "/ipykernel/",
    "/tornado/",
    "/zmq/",
    "/IPython/",
    "/jupyter_client/",
    "/asyncio/",
    "/nsmagic/",
)
_OWN_MODULES: Final = tuple(name.strip("/") for name in _OWN_FOLDERS)
_FILES: Final = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)


class Revived(SystemExit):
    """Raised in a snapshot that was woken, to leave the dead one's event loop.

    asyncio lets an exit through to whoever runs the loop, and keeps everything else for whoever waits.
    """


class Keeper:
    """Makes the snapshots of one kernel, and of those that revive from them.

    Args:
        mode: ``auto``, ``on`` or ``off``.
        memory: the container's limit in bytes, or None.
        tell: sends a frame to the owner.
    """

    def __init__(self, mode: str, memory: int | None, tell: Callable[[frames.FromRunner], None]) -> None:
        self._mode = mode
        self._memory = memory
        self.tell = tell
        self.taking = False
        self._told: Against = "off" if mode == "off" else ""
        self._facts = ffi.new("struct nsm_facts *")
        self._snapshot = ffi.new("struct nsm_snapshot *", {"pidfd": -1, "older_pidfd": -1, "oom": -1})
        self._slow_resident = 0
        self._began = False
        self._fresh = False
        self._later: asyncio.TimerHandle | None = None
        self._threads = 0
        self._stuck: set[str] = set()
        self._random: Any = None
        self._writing = 0
        self._writers: list[weakref.ref[Any]] = []
        self._which = 0
        self.descriptors: dict[int, str] = {}
        self._open_before: set[int] = set()
        if mode != "off":
            self._guard_fork_hooks()

    # ---- when ------------------------------------------------------------------------

    def attach(self, kernel: Any, *, before: set[int]) -> None:
        """Make one before each cell of this kernel.

        Args:
            kernel: an ipykernel that has not run a cell yet.
            before: the descriptors that were open before it was made.
        """
        self._began = self._fresh = False
        self._later = None
        self._open_before = before
        run = kernel.do_execute

        @functools.wraps(run)
        async def do_execute(code: str, silent: bool, *rest: Any, **more: Any) -> Any:  # noqa: FBT001 - ipykernel's signature
            if threading.current_thread() is not threading.main_thread():  # a subshell's
                self._fresh = False
                return await run(code, silent, *rest, **more)
            self._begin()
            self._cancel()
            if not silent:
                self._before_cell(kernel)
            self._fresh = False
            try:
                return await run(code, silent, *rest, **more)
            finally:
                self._later = asyncio.get_running_loop().call_later(
                    _IDLE_SECONDS, self._when_idle, kernel, not silent
                )

        if self._mode != "off":
            kernel.do_execute = do_execute
            for name in ("comm_open", "comm_msg", "comm_close"):
                kernel.shell_handlers[name] = self._changing(kernel.shell_handlers[name])

    def _changing(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """What a widget does may change variables."""

        def handler(*arguments: Any) -> Any:
            self._fresh = False
            return handle(*arguments)

        return handler

    def _cancel(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _when_idle(self, kernel: Any, after_cell: bool) -> None:  # noqa: FBT001 - a callback's argument
        """Nobody waits: make the next cell's snapshot now, and keep the last cell's to go back to."""
        self._later = None
        try:
            if not self._against()[0] and not _others_run():
                self._fresh = not self._take(kernel, keep=after_cell)[0]
        except Revived:
            raise
        except Exception:  # noqa: BLE001 - it will be tried again before the cell, and told then
            self._fresh = False

    def _begin(self) -> None:
        """Before the first cell, whatever is there is ipykernel's own."""
        if not self._began:
            self._began = True
            lib.nsm_look(self._facts)
            self._threads = self._facts.threads
            if not self._writing:  # one that has revived has the user's files open, too
                self._writing = lib.nsm_note_positions(self._snapshot)
            self.descriptors = {
                number: text for number, text in open_descriptors().items() if number not in self._open_before
            }

    def _before_cell(self, kernel: Any) -> None:
        try:
            against, amount = self._against()
            if not against and self._fresh and not _others_run():
                lib.nsm_snapshot_end_older(self._snapshot)
            elif not against:
                against, amount = self._take(kernel, keep=False)
        except Revived:
            raise
        except Exception:  # noqa: BLE001 - whatever is wrong here, the cell runs
            against, amount = "host", 0
        if against:
            lib.nsm_snapshot_end(self._snapshot)
        if against != self._told:
            self._told = against
            self.tell(frames.Keeping(against, amount))

    def _against(self) -> tuple[Against, int]:
        facts = self._facts
        if lib.nsm_look(facts) < 0:
            return "host", 0
        if self._mode == "on":
            return "", 0
        if facts.accelerator:
            return "accelerator", 0
        if self._memory is not None and facts.private > self._memory * _SHARE:
            return "memory", facts.private
        if self._slow_resident and facts.resident > self._slow_resident * _EASIER:
            return "slow", self._snapshot.nanoseconds // 1000
        if self._stuck and self._stuck.intersection(os.listdir("/proc/self/task")):  # noqa: PTH208 - names
            return "threads", self._extra_threads()
        return "", 0

    def _extra_threads(self) -> int:
        """Threads beyond ipykernel's own, as far as can be counted: subshells are its own, too."""
        own = sum(type(thread).__name__ == "SubshellThread" for thread in threading.enumerate())
        return max(0, int(self._facts.threads) - self._threads - own)

    # ---- how -------------------------------------------------------------------------

    def _take(self, kernel: Any, *, keep: bool) -> tuple[Against, int]:
        """Fork; gives what speaks against the snapshot after all.

        Raises:
            Revived: in the snapshot, when it was woken.
        """
        if lib.nsm_note_positions(self._snapshot) > self._writing:
            self._flush_files()
            lib.nsm_note_positions(self._snapshot)
        random = sys.modules.get("random")
        self._random = random.getstate() if random is not None else None
        history = kernel.shell.history_manager
        # IPython stops its thread before each fork; it is not in the way of this one.
        saver, history.save_thread = history.save_thread, None
        self.taking = True
        pid = lib.nsm_snapshot_python(self._snapshot, keep)
        self.taking = False
        if pid == 0:
            raise Revived
        history.save_thread = saver
        if pid < 0:
            return "host", ffi.errno
        self._slow_resident = 0
        if self._snapshot.nanoseconds > _SLOW_NS and self._mode == "auto":
            # This one is there, and as good as any.
            self._slow_resident = int(self._facts.resident)
        if self._mode == "auto" and self._extra_threads():
            return self._threads_left()
        return "", 0

    def _threads_left(self) -> tuple[Against, int]:
        """What threads there are now that libraries had the occasion to end theirs."""
        deadline = time.monotonic() + _JOIN_SECONDS
        while True:
            lib.nsm_look(self._facts)
            extra = self._extra_threads()
            if not extra:
                self._stuck = set()
                return "", 0
            if time.monotonic() > deadline:
                break
            time.sleep(0.0002)
        known = {str(thread.native_id) for thread in threading.enumerate() if _is_ipykernels(thread)}
        tasks = sorted(os.listdir("/proc/self/task"), key=int)  # noqa: PTH208 - names
        # Those that came last, and are not known to be ipykernel's.
        self._stuck = set([task for task in tasks if task not in known][-extra:])
        return "threads", extra

    def _flush_files(self) -> None:
        """Write out what the user's files hold: both copies would.

        Only where more files are open for writing than ipykernel's own, since it takes a look at all objects;
        and not again while they are the same.
        """
        known = [file for file in (reference() for reference in self._writers) if file is not None]
        if int(self._snapshot.which) != self._which or len(known) != len(self._writers):
            known = [each for each in gc.get_objects() if type(each) in _FILES]
            self._which, self._writers = int(self._snapshot.which), [weakref.ref(file) for file in known]
        for file in sorted(known, key=lambda each: type(each) is not io.TextIOWrapper):
            if not file.closed:
                try:
                    file.flush()
                except (OSError, ValueError):  # it is the user's, who will hear of it
                    continue

    def _guard_fork_hooks(self) -> None:
        """The user's own hooks are about the user's own forks; libraries' hooks keep their locks in order."""
        register = os.register_at_fork

        def guarded(hook: Callable[[], object]) -> Callable[[], object]:
            if getattr(getattr(hook, "func", hook), "__module__", None) != "__main__":
                return hook

            def run() -> None:
                if not self.taking:
                    hook()

            return run

        @functools.wraps(register)
        def register_at_fork(**hooks: Callable[[], object]) -> None:
            register(**{name: guarded(hook) if callable(hook) else hook for name, hook in hooks.items()})

        setattr(os, "register_at_fork", register_at_fork)  # noqa: B010 - it takes whatever the other one takes

    # ---- the end -----------------------------------------------------------------------

    def end(self) -> None:
        """The kernel ends as it was told to: nobody shall go on in its place."""
        lib.nsm_snapshot_end(self._snapshot)

    def restore_random(self) -> None:
        """In a snapshot that was woken: Python's own hook has seeded it anew, and others have used it."""
        random = sys.modules.get("random")
        if random is not None and self._random is not None:
            random.setstate(self._random)

    def lost(self) -> tuple[int, int]:
        """In a snapshot that was woken: processes and threads that are gone."""
        return int(self._snapshot.processes), self._extra_threads()


def _others_run() -> bool:
    """Whether code of the user's is due to run in the event loop: then variables may change between cells."""
    loop = asyncio.get_running_loop()
    timers = [handle._callback for handle in getattr(loop, "_scheduled", ()) if not handle.cancelled()]  # noqa: SLF001 - no public way
    return any(map(is_users_task, asyncio.all_tasks(loop))) or any(map(_is_users_call, timers))


def is_users_task(task: asyncio.Task[Any]) -> bool:
    """Whether a task of the event loop is the user's, or a library's that the user called."""
    code = getattr(task.get_coro(), "cr_code", None)
    return not task.done() and code is not None and not any(name in code.co_filename for name in _OWN_FOLDERS)


def _is_users_call(call: Any) -> bool:
    call = getattr(call, "func", call)
    owner = getattr(call, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return is_users_task(owner)
    module = str(getattr(call, "__module__", None) or type(owner).__module__)
    return not module.startswith(_OWN_MODULES)


def _is_ipykernels(thread: threading.Thread) -> bool:
    return type(thread).__module__.startswith(("ipykernel.", "IPython.")) or thread.name in {
        "MainThread",
        "IOPub",
    }


def open_descriptors() -> dict[int, str]:
    """What is open, and what each one is, as /proc/self/fd has it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - a name of the kernel's
        except OSError:  # the listing's own
            continue
    return found
