"""Scratch processes, from the owner's side: start one, give it cells, know why it died.

A scratch process is **not a container**.  It is a second Python of the user's own, single-threaded and
disposable, in which system calls that would spoil a notebook's kernel can be tried.  It has limits against
accidents and a lifeline; nothing else keeps it from the host.  See ``launcher.guard`` for its side.

Limits come from the strongest mechanism of ``cgroups``; where that lacks one, by a resource limit, which is
weaker, and said.  Any thread may use a scratch process; its cells run one after the other.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nsmagic import cgroups, turns
from nsmagic.errors import HostError, ScratchError
from nsmagic.launcher import client
from nsmagic.launcher import scratch as side
from nsmagic.plan import require_linux
from nsmagic.result import seconds_text, size_text
from nsmagic.spec import MIB
from nsmagic.turns import Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsmagic.cgroups import Choice, Limits, Usage
    from nsmagic.turns import Sink

DEFAULT_MEM: Final = 1024 * MIB
DEFAULT_PIDS: Final = 64
DEFAULT_TIMEOUT: Final = 60.0

_BOOT: Final = "import sys; sys.path[:] = {path!r}; from nsmagic.launcher.guard import main; main()"
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0
_SAID: Final = 2000
_REMOVAL_RETRY: Final = 0.005


class Scratch:
    """One scratch process, started at once.

    Args:
        name: what the user calls it.
        limits: what was asked for; where something was not, the defaults hold as far as this host can.
        best_effort: take weaker limits also where they were asked for.

    Attributes:
        pid: the process' own.
        cells: how many it has run.
        reason: how it ended; empty while it lives.
        enforced: which limits hold and by what, in words.
        missing: which do not, and why.

    Raises:
        HostError: not Linux, or a limit that was asked for cannot be enforced.
        ScratchError: it did not start.
    """

    def __init__(self, name: str, limits: Mapping[str, Any], *, best_effort: bool = False) -> None:
        require_linux()
        self.name = name
        self.asked = dict(limits)
        self.started = time.monotonic()
        self.enforced: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.cells = 0
        self.reason = ""
        self._pidfd = -1
        self._lock = threading.RLock()
        self._limits = cgroups.Limits(
            mem=limits.get("mem", DEFAULT_MEM), pids=limits.get("pids", DEFAULT_PIDS)
        )
        choice = self._choose(best_effort=best_effort)
        self._group = choice.create()
        try:
            self._start(self._rlimits(choice), choice)
        except BaseException:
            self._group.remove()
            raise
        self.enforced = {**self._group.enforced, **self.enforced}
        attach = getattr(self._group, "attach", None)
        if attach is not None:
            attach(self.pid)

    # ---- start ------------------------------------------------------------------------

    def _choose(self, *, best_effort: bool) -> Choice:
        choice = cgroups.choose(self._limits, userns=False, best_effort=True)
        for lost in choice.missing:
            self.missing[lost.what] = lost.reason
            # Without a limit of swap one of memory would only move pages to the disk.
            asked = "mem" if lost.what == "swap" else lost.what
            if asked in self.asked and not best_effort:
                raise HostError(
                    cgroups.OPTIONS[asked],
                    lost.reason,
                    f"{lost.remedy}; or take less with --best-effort.",
                )
        return choice

    def _rlimits(self, choice: Choice) -> list[tuple[int, int]]:
        """What stands in for a group's limits, and how that is said."""
        import resource  # noqa: PLC0415 - Linux only, and this module must import everywhere

        found = {kind: hard for kind, (_, hard) in choice.rlimits.items()}
        if resource.RLIMIT_AS in found:
            self.missing.pop("mem", None)
            self.enforced["mem"] = f"RLIMIT_AS = {found[resource.RLIMIT_AS]}, of each process alone"
        if "pids" in self.missing and os.geteuid() != 0 and self._limits.pids is not None:
            # It counts all of the user's processes and threads, wherever they are: add those of now.
            found[resource.RLIMIT_NPROC] = _own_threads() + self._limits.pids + 2  # itself and its guard
            self.missing.pop("pids")
            self.enforced["pids"] = f"RLIMIT_NPROC = {found[resource.RLIMIT_NPROC]}, of all your processes"
        own = {kind: resource.getrlimit(kind)[1] for kind in found}
        return [
            (kind, value if own[kind] == resource.RLIM_INFINITY else min(value, own[kind]))
            for kind, value in found.items()
        ]

    def _start(self, rlimits: list[tuple[int, int]], choice: Choice) -> None:
        joins, group = self._group.open_joins(), self._group.open_directory()
        lifeline, our_lifeline = os.pipe()
        report, their_report = os.pipe()
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stdout, their_stdout = os.pipe()
        stderr, their_stderr = os.pipe()
        self.ends = turns.Ends(control, report, our_lifeline, {stdout: "stdout", stderr: "stderr"})
        for descriptor in (stdout, stderr, report):
            os.set_blocking(descriptor, False)
        client.owned.update((our_lifeline, control.fileno()))
        theirs = [lifeline, their_report, their_control.detach(), *joins, *([] if group is None else [group])]
        config = {
            "lifeline": lifeline, "report": their_report, "control": theirs[2], "joins": joins,
            "group": -1 if group is None else group, "directories": list(self._group.directories),
            "rlimits": rlimits, "path": [str(path) for path in sys.path],
        }  # fmt: skip
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT.format(path=[*client.python_path()]), json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=their_stdout,
                stderr=their_stderr,
                pass_fds=theirs,
                start_new_session=True,  # a Ctrl-C in our terminal is for us alone
            )
        except OSError as error:
            self._close()
            raise ScratchError(f"scratch process {self.name!r} could not be started: {error}") from error
        finally:
            for descriptor in (*theirs, their_stdout, their_stderr):
                os.close(descriptor)
        try:
            # Groups may lie elsewhere than this process; then the guard goes there before it forks.
            choice.mechanism.admit(self._guard.pid)
            with contextlib.suppress(OSError):  # it is dead: what it printed says why
                self.ends.control.send(side.GO)
            self.pid = self._wait_ready()
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._finish()
            raise

    def _wait_ready(self) -> int:
        """Wait until it takes cells; its pid."""
        self.ends.control.settimeout(_START_SECONDS)
        try:
            answer = side.decode_answer(self.ends.control.recv(side.MAX_PACKET))
        except (OSError, msgspec.MsgspecError) as error:
            said = b"".join(turns.read(descriptor) or b"" for descriptor in self.ends.streams)
            raise ScratchError(
                f"scratch process {self.name!r} did not start ({type(error).__name__}). It printed: "
                f"{said[-_SAID:].decode(errors='replace')}"
            ) from None
        if not isinstance(answer, side.Ready):
            raise ScratchError(f"scratch process {self.name!r} did not start: it said something else first")
        self.ends.control.settimeout(None)
        return answer.pid

    # ---- a cell ------------------------------------------------------------------------

    def run(self, code: str, sink: Sink, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Run one cell; returns when it is over.

        Args:
            code: Python.
            sink: who gets the output, as it comes.
            timeout: seconds; then the cell is interrupted, and where that does not help, the process killed.

        Raises:
            ScratchError: the cell raised something, or the process died, and ``reason`` says how.
        """
        code = code.encode(errors="replace").decode()  # a front end may send half a character
        if len(code.encode()) > side.MAX_CODE:
            raise ScratchError(
                f"a scratch cell has at most {side.MAX_CODE} bytes; put the rest into a module"
            )
        with self._lock:
            if self.reason:
                raise ScratchError(f"scratch process {self.name!r} {self.reason}; it takes no more cells")
            self.cells += 1
            turn = Turn(self, sink, timeout)
            with contextlib.suppress(OSError):  # it died between two cells: its guard says how
                self.ends.control.send(
                    side.encode(side.Cell(code, f"<scratch {self.name}, cell {self.cells}>"))
                )
            done = turn.wait()
        if turn.timed_out:
            raise ScratchError(
                f"time limit: the cell ran longer than {seconds_text(timeout or 0)} (--timeout); it was "
                "interrupted, and the scratch process lives on",
                done.traceback,
            )
        if done.error:
            raise ScratchError(f"{done.error}: {done.text}", done.traceback)

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C in a terminal: to the process and to the children in its group."""
        if not turns.poll([self._pidfd], 0):  # it lives, so its number is its own
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the process; its guard ends the rest."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # ---- its end -----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it still takes cells; looks, and takes note of its death."""
        if self._lock.acquire(blocking=False):  # else a cell runs in it now, and will see
            try:
                if not self.reason and turns.poll([self.ends.report], 0):
                    self.take_end()
            finally:
                self._lock.release()
        return not self.reason

    def take_end(self) -> None:
        """Its guard has said something, or is gone: find out how it ended, then let the guard go."""
        if self.reason:
            return
        packet, usage = turns.read(self.ends.report), self._group.usage()
        try:
            self.reason = turns.why(side.decode_ended(packet or b""), usage, self._limits)
        except msgspec.MsgspecError:
            self.reason = "lost its guard, which was killed, and was ended"
        self._finish()

    def stop(self) -> None:
        """End it and all that it started; waits some seconds at most."""
        if not self._lock.acquire(blocking=False):
            self.kill()  # so that the cell that runs in it ends
            self._lock.acquire()
        try:
            if not self.reason:
                self.reason = "was stopped"
                self._finish()
        finally:
            self._lock.release()

    def _finish(self) -> None:
        """Close the lifeline and wait for the guard, which ends the rest and removes the group."""
        self._close()
        try:
            self._guard.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode != 0:
            self._end_without_guard()
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def _end_without_guard(self) -> None:
        self.kill()
        self._group.kill()
        deadline = time.monotonic() + _END_SECONDS
        while not self._group.remove() and time.monotonic() < deadline:
            time.sleep(_REMOVAL_RETRY)  # the last process is not quite gone, and no event says when it is

    def _close(self) -> None:
        client.owned.difference_update((self.ends.lifeline, self.ends.control.fileno()))
        self.ends.close()

    def usage(self) -> Usage:
        """What it and its children use now."""
        return self._group.usage()

    def describe(self) -> str:
        """What it is, for whoever has just started it."""
        root = (
            " You are root: what it does to mounts or the host name outside namespaces of its own, it does "
            "to the machine."
            if os.geteuid() == 0
            else ""
        )
        held = [
            f"{_limit(what, self._limits)} ({how})" for what, how in self.enforced.items() if what != "swap"
        ]
        lost = [f"{_limit(what, self._limits)} is not enforced: {why}" for what, why in self.missing.items()]
        return (
            f"Scratch process {self.name!r} started, pid {self.pid}. It is not a container: its cells are "
            f"your own code with your own rights on this machine.{root} Limits: "
            f"{'; '.join([*held, *lost]) or 'none'}. It ends with %scratch stop {self.name}, or with this "
            "notebook's kernel."
        )


def _limit(what: str, limits: Limits) -> str:
    words = {
        "mem": f"memory {size_text(limits.mem or 0)}",
        "swap": "no swap",
        "pids": f"{limits.pids} processes",
    }
    return words[what]


def _own_threads() -> int:
    """How many processes and threads this user has, as far as /proc shows."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if folder.stat().st_uid == os.geteuid():
                    count += len(os.listdir(folder / "task"))  # noqa: PTH208 - a count
    return count


# ---- those of this process -----------------------------------------------------------------


class _Registry:
    """The scratch processes of one owner; a fork of it has none."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.by_name: dict[str, Scratch] = {}
        self.swept = False


_registry = _Registry()


def _current() -> _Registry:
    global _registry  # noqa: PLW0603 - there is one, and a fork of the owner starts anew
    if _registry.pid != os.getpid():
        _registry = _Registry()
    return _registry


def find(name: str) -> Scratch | None:
    """The living scratch process of this name."""
    found = _current().by_name.get(name)
    return found if found is not None and found.alive else None


def start(name: str, limits: Mapping[str, Any], *, best_effort: bool = False) -> tuple[Scratch, str]:
    """Start one in place of a dead one of that name.

    Returns:
        it, and how its forerunner died where nobody was told yet; else an empty text.

    Raises:
        HostError, ScratchError: see ``Scratch``.
    """
    registry = _current()
    with registry.lock:
        if not registry.swept:
            registry.swept = True
            cgroups.sweep()
        dead = registry.by_name.pop(name, None)
        registry.by_name[name] = Scratch(name, limits, best_effort=best_effort)
        told = dead is None or dead.reason in ("", "was stopped")
        return registry.by_name[name], "" if told or dead is None else dead.reason


def forget(name: str) -> None:
    """Drop a dead one whose death was told."""
    _current().by_name.pop(name, None)


def stop(name: str) -> bool:
    """End one; False where there is none."""
    found = _current().by_name.pop(name, None)
    if found is None:
        return False
    found.stop()
    return True


def all_living() -> list[Scratch]:
    """Those that live."""
    return [scratch for scratch in _current().by_name.values() if scratch.alive]


def stop_all() -> None:
    """End all of this process."""
    registry = _current()
    for name in list(registry.by_name):
        stop(name)


atexit.register(stop_all)
