"""The launcher process: a warm Python, single-threaded, that containers are cloned from.

It is started by the owner, imports what cells will need, says hello and then waits: for requests from the
owner, and for the ends of the containers that it made.  It holds no secrets: its environment is made for it,
and its memory is what every container begins with.  It ends when the owner does, and takes all with it.

It imports ``frames``, ``runner`` and ``native`` and never the owner's side: what is inside a container
holds no way back.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nsmagic.launcher import frames, kernel, runner
from nsmagic.native._runtime import ffi, lib
from nsmagic.native.kinds import CLONE_NEW

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from nsmagic.launcher.shell import RunnerShell

_REPORT: Final = 1
MAX_DESCRIPTORS: Final = 32
_PR_SET_CHILD_SUBREAPER: Final = 36
_REMOVAL_RETRY_MS: Final = 5
_REMOVAL_TRIES: Final = 400
_STRAY_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 2.0


class _Child:
    """A container that was made here and may still live.

    Args:
        pid: its init's; -1 where it could not be made: then only its directories are left to remove.
        directories: its own cgroup directories, in the order in which they can be removed.
        private: its folder on the host, removed with all that is in it; or empty.
        gently: its init is no PID 1, and needs a moment to end what it has left behind.
    """

    def __init__(
        self, pid: int, directories: Sequence[str], private: str = "", *, gently: bool = False
    ) -> None:
        self.pid = pid
        self.ended = pid < 0
        self.pidfd = -1
        if not self.ended:
            try:
                self.pidfd = os.pidfd_open(pid)
            except OSError:  # no descriptor, no memory: then no container either, and the launcher lives on
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.ended = True
        self.directories = list(directories)
        self._private = private
        self._remover: subprocess.Popen[bytes] | None = None
        self.gently = gently
        self.released = False
        self.killed_at = 0.0
        self.tries = 0
        self.blank: _Blank | None = None

    def release(self) -> None:
        """The owner is done with it."""
        self.released = True
        if self.gently:
            self.killed_at = time.monotonic() + _GRACE_SECONDS  # the owner has closed its lifeline
        else:
            self.kill()

    def kill_if_due(self) -> None:
        """End an init that was given its moment."""
        if self.released and self.gently and not self.ended and time.monotonic() > self.killed_at:
            self.kill()

    def kill(self) -> None:
        """End init, and the kernel ends the rest."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> None:
        """Take init's exit status, so that its pid is free again."""
        if not self.ended:
            self.ended = True
            os.close(self.pidfd)
            if self.blank:
                self.blank.close()
                self.blank = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    @property
    def pids(self) -> set[int]:
        """Our own processes that have to do with it: init, and what removes its files."""
        return {self.pid, *([self._remover.pid] if self._remover else [])}

    def _remove_private(self) -> bool:
        """Remove its folder in a process of its own: hostile hands may have made it deep and wide."""
        if self._private:
            self._remover = subprocess.Popen(["rm", "-rf", "--", self._private], stderr=subprocess.DEVNULL)
            self._private = ""
        return self._remover is None or self._remover.poll() is not None

    def remove(self) -> bool:
        """Remove the cgroup directories and its folder; True when they are gone or cannot be removed."""
        if not self._remove_private():
            return False
        self.tries += 1
        for directory in list(self.directories):
            try:
                os.rmdir(directory)  # noqa: PTH106 - a plain path from the owner
            except FileNotFoundError:
                pass
            except OSError:
                # EBUSY: the last of its processes is not quite gone.
                return self.tries > _REMOVAL_TRIES
            self.directories.remove(directory)
        return True


class _Blank(NamedTuple):
    """What a container is still to be told over, and what it was made of.

    Attributes:
        late: where its init waits for the rest of its plan.
        report: the owner's, for the journal of what is done for it here.
        spawn: the request that it was made by.
    """

    late: socket.socket
    report: int
    spawn: frames.Spawn

    def close(self) -> None:
        """Let go of it; an init that still waits then ends."""
        self.late.close()
        os.close(self.report)


class Launcher:
    """Takes requests until the owner is gone."""

    def __init__(self, owner: socket.socket, shell: RunnerShell | None) -> None:
        self._owner = owner
        self._shell = shell
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(owner.fileno(), select.POLLIN)
        self._idmaps: dict[tuple[int, int, int, int], int] = {}
        self._bases: set[str] = set()
        self._strays = False

    def serve(self) -> NoReturn:
        """Answer requests; returns never: not here, and not in a payload."""
        try:
            while True:
                waiting = [
                    child
                    for child in self._children.values()
                    if child.released and (child.ended or child.gently)
                ]
                events = self._poll.poll(_REMOVAL_RETRY_MS if waiting else None)
                for descriptor, _ in events:
                    if descriptor == self._owner.fileno():
                        self._take_request()
                    else:
                        self._reap(descriptor)
                if len(events) != 1 or events[0][0] != self._owner.fileno() or waiting:
                    self._tidy()  # nothing ends by a request alone: init must die first
        except (EOFError, ConnectionError):
            self._end()

    def _take_request(self) -> None:
        packet, descriptors, flags, _ = socket.recv_fds(self._owner, frames.MAX_REQUEST, MAX_DESCRIPTORS)
        if not packet:
            raise EOFError
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                return
            request = frames.decode_request(packet)
            if isinstance(request, frames.Release):
                child = self._children.get(request.id)
                if child:
                    child.release()
            elif isinstance(request, frames.Finish):
                self._finish(request)
            else:
                self._spawn(request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _spawn(self, request: frames.Spawn, descriptors: list[int]) -> None:
        late, theirs = (
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if request.blank else (None, None)
        )
        with theirs or contextlib.nullcontext():
            pid = self._clone(request, descriptors, theirs.fileno() if theirs else -1)
        # The bases, where all containers' directories lie, are for our end: until then there will be more.
        bases = {os.path.dirname(directory) for directory in request.directories}.intersection(  # noqa: PTH120 - as text
            request.directories
        )
        self._bases |= bases
        self._strays = self._strays or not request.namespaces & CLONE_NEW["pid"]
        own = [directory for directory in request.directories if directory not in bases]
        gently = bool(request.joins) and not request.namespaces & CLONE_NEW["pid"]
        child = _Child(pid, own, request.private, gently=gently)
        self._children[request.id] = child
        if not child.ended:
            self._poll.register(child.pidfd, select.POLLIN)
        if late:
            child.blank = _Blank(late, os.dup(descriptors[_REPORT]), request)

    def _clone(self, request: frames.Spawn, descriptors: list[int], late: int) -> int:
        control, report, lifeline, stdin, stdout, stderr, *rest = descriptors
        tasks = ffi.new("int[]", [rest.pop(0) for _ in range(request.tasks)])
        plan, entries, keep = self._plan(request, request)
        plan.cgroup_joins, plan.cgroup_join_count = tasks, request.tasks
        plan.cgroup_directory = rest.pop(0) if request.into_cgroup else -1
        joins = ffi.new("struct nsm_join[]", [(kind, rest.pop(0)) for kind in request.joins])
        plan.joins, plan.join_count = joins, len(request.joins)
        plan.proc_from = rest.pop(0) if request.proc_from else -1
        plan.hold = request.hold
        plan.lifeline, plan.report, plan.control = lifeline, report, control
        plan.stdin_fd, plan.stdout_fd, plan.stderr_fd = stdin, stdout, stderr
        plan.late = late
        plan.network = rest.pop(0) if request.network else -1
        pid: int = lib.nsm_spawn_python(plan, entries)
        if pid == 0:
            self._become_payload(plan, confined=bool(request.joins))
        del keep
        return pid

    def _finish(self, request: frames.Finish) -> None:
        """Give a blank the rest of its plan; whatever goes wrong, the owner hears of it by the report."""
        child = self._children.get(request.id)
        if child is None or child.blank is None:
            return
        blank, child.blank = child.blank, None
        with contextlib.closing(blank):
            plan, entries, keep = self._plan(blank.spawn, request)
            plan.report = blank.report
            lib.nsm_finish(plan, entries, blank.late.fileno())
            del keep

    def _plan(self, made: frames.Spawn, rest: frames.Spawn | frames.Finish) -> tuple[Any, Any, list[Any]]:
        """Plan and entries for C, and what they only point at, which must live as long as they.

        Args:
            made: what is known when the container is made.
            rest: what may come later.
        """
        words = [word for entry in rest.entries for word in (entry.target, entry.source)]
        words += [rest.workdir, (rest.hostname or "").encode()]
        texts = ffi.new("char[]", b"\0".join(words))  # one piece for all: they are many
        starts = itertools.accumulate((len(word) + 1 for word in words), initial=0)
        places = [texts + start for start, _ in zip(starts, words, strict=False)]
        keep: list[Any] = [texts]

        entries = ffi.new("struct nsm_entry[]", max(len(rest.entries), 1))
        for number, wanted in enumerate(rest.entries):
            entry = entries[number]
            entry.kind, entry.flags, entry.mode = wanted.kind, wanted.flags, wanted.mode
            entry.target, entry.source = places[2 * number], places[2 * number + 1]
            entry.length, entry.tree, entry.idmap = len(wanted.source), -1, self._idmap(made, wanted)
        rlimits = ffi.new("struct nsm_rlimit[]", rest.rlimits)
        keep.append(rlimits)
        plan = ffi.new(
            "struct nsm_plan *",
            {
                "namespaces": made.namespaces,
                "uid": made.uid, "gid": made.gid,
                "host_uid": made.host_uid, "host_gid": made.host_gid,
                "parent_uid": made.parent_uid, "parent_gid": made.parent_gid, "proc_from": -1,
                "hostname": ffi.NULL if rest.hostname is None else places[-1],
                "hostname_wished": rest.hostname_wished, "confine": made.confine,
                "snapshots": made.snapshots,
                "workdir": places[-2] if rest.workdir else ffi.NULL,
                "disk_bytes": rest.disk_bytes, "disk_inodes": rest.disk_inodes,
                "entry_count": len(rest.entries),
                "rlimits": rlimits, "rlimit_count": len(rest.rlimits),
                "cgroup_directory": -1, "late": -1, "network": -1,
            },
        )  # fmt: skip
        return plan, entries, keep

    def _idmap(self, request: frames.Spawn, entry: frames.Entry) -> int:
        """A user namespace that shows the entry's owner as the payload; made once for each owner."""
        if entry.owner is None or os.geteuid() != 0:
            return -1
        key = (*entry.owner, request.host_uid, request.host_gid)
        if self._idmaps.get(key, -1) < 0:
            self._idmaps[key] = lib.nsm_userns_for_idmap(*key)
        return self._idmaps[key]

    def _become_payload(self, plan: Any, *, confined: bool) -> NoReturn:
        """In the container: forget the launcher's descriptors (C has closed them) and run the job.

        Args:
            plan: what C was given.
            confined: whether C has given up every right already.
        """

        def confine() -> None:
            if lib.nsm_confine(plan) < 0:
                os._exit(1)

        try:
            self._owner.detach()
            for child in self._children.values():
                child.ended = True
                if child.blank:
                    child.blank.late.detach()
            runner.serve(self._shell, None if confined else confine)
        finally:
            # No exception may unwind into the launcher's loop.
            os._exit(125)

    def _reap(self, pidfd: int) -> None:
        for child in self._children.values():
            if not child.ended and child.pidfd == pidfd:
                self._poll.unregister(pidfd)
                child.reap()
                return

    def _tidy(self) -> None:
        for number, child in list(self._children.items()):
            child.kill_if_due()
            if child.released and child.ended and child.remove():
                del self._children[number]
        if self._strays:
            self._end_strays()

    def _end_strays(self) -> None:
        """A container without a PID namespace whose init was killed leaves orphans, and they come to us.

        Each that ends may send us its own children, so this goes on until none is left; two seconds at most.
        """
        known = {pid for child in self._children.values() for pid in child.pids}
        deadline = time.monotonic() + _STRAY_SECONDS
        while time.monotonic() < deadline:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123 - hot
                strays = [int(pid) for pid in file.read().split() if int(pid) not in known]
            if not strays:
                return
            for stray in strays:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(stray, signal.SIGKILL)
                    os.waitpid(stray, os.WNOHANG)
            time.sleep(0.001)

    def _end(self) -> NoReturn:
        """The owner is gone: end every container, remove every directory, then go too."""
        for child in self._children.values():
            child.kill()
        # The youngest first: a PID 1 ends only when those who have joined it are reaped, and they came later.
        for child in reversed(self._children.values()):
            child.reap()
        self._end_strays()
        left = list(self._children.values())
        while left:
            left = [child for child in left if not child.remove()]
            if left:
                time.sleep(_REMOVAL_RETRY_MS / 1000)
        for base in self._bases:
            with contextlib.suppress(OSError):
                os.rmdir(base)  # noqa: PTH106 - a plain path from the owner
        os._exit(0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count


def _preload(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Import the modules; those that cannot be are named, with the reason.

    A module that starts threads (a BLAS, a network client) is left out by starting over without it: a clone
    has only the thread that called, and the locks of the others would never open again.
    """
    failed = [(name, reason) for name, reason in config.get("failed", [])]
    for name in config["preload"]:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - any module may fail in any way
            failed.append((name, f"{type(error).__name__}: {error}"[:500]))
        if _threads() > 1:
            failed.append((name, "it starts threads, which a clone would not have"))
            config["preload"] = [other for other in config["preload"] if other != name]
            config["failed"] = failed
            os.execv(sys.executable, [*sys.orig_argv[:-1], json.dumps(config)])  # noqa: S606 - ourselves again
    return failed


def main() -> NoReturn:
    """Run the launcher; the last argument is JSON: ``owner`` (a descriptor), ``preload``, ``warm``."""
    config = json.loads(sys.argv[-1])
    if os.geteuid() == 0:
        # A payload keeps our supplementary groups (its user namespace forbids it to drop them), and root's
        # groups may open sockets that are as good as root.
        with contextlib.suppress(PermissionError):
            os.setgroups([])
    # Without a PID namespace a killed init's children would become the machine's; so they become ours.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failed = _preload(config)
    if config["warm"] in {"kernel", "debuggable kernel"}:
        failed += kernel.warm(debugger=config["warm"] == "debuggable kernel")
    shell = runner.make_shell() if config["warm"] == "cells" else None
    if _threads() > 1:
        raise SystemExit("the launcher has more than one thread; it could not be cloned safely")
    owner = socket.socket(fileno=config["owner"])
    # Objects made so far live as long as we: the collector need not touch (and so copy) their pages.
    gc.collect()
    gc.freeze()
    owner.send(frames.encode(frames.Hello(os.getpid(), failed)))
    Launcher(owner, shell).serve()
