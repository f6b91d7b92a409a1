"""Standbys: containers already built and waiting for their one job; used once, never again.

A run takes one of an equal spec, and another is built behind it, so that the next run of that spec starts
in about a millisecond.  Beside them waits one *blank*: namespaces and a warm Python, but no files, name or
limits yet.  A run of a spec that was not seen before takes that, and only the rest is built for it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
from collections import OrderedDict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nsmagic import cgroups, orphans
from nsmagic.container import Container
from nsmagic.launcher import client

if TYPE_CHECKING:
    from nsmagic.spec import ContainerSpec

EACH: Final = 1
"""Standbys of one spec."""
KINDS: Final = 3
"""Specs that standbys are kept of: those used last."""

Key = tuple[object, ...]
Kind = tuple[object, ...]


class Standbys:
    """The standbys of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Key, deque[Container]] = OrderedDict()
        self._launcher: client.Launcher | None = None
        self._blank: Container | None = None
        self._wanted: queue.SimpleQueue[tuple[int, ContainerSpec | Container] | None] = queue.SimpleQueue()
        self._drops = 0
        self._keeper: threading.Thread | None = None
        self._building = threading.Lock()
        self._stopped = False
        self.pid = os.getpid()

    def take(self, spec: ContainerSpec) -> Container:
        """A container that is built, or else a new one that is being built.

        Raises:
            HostError: this host cannot enforce the spec.
            LauncherError: the launcher cannot be started.
        """
        container = self._find(spec)
        container.let_go = self._stop_later
        return container

    def _find(self, spec: ContainerSpec) -> Container:
        launcher = client.start()
        if launcher is not self._launcher:
            self._launcher = launcher
            self._purge()
        while (waiting := self._take_waiting(_key(spec))) is not None:
            if waiting.usable():
                return waiting
            waiting.stop()
        wanted = Container(spec, keep=False)
        blank = self._take_blank(wanted.kind)
        if blank is not None:
            if blank.usable() and blank.become(wanted):
                return blank
            blank.stop()
        return wanted.start()

    def _take_waiting(self, key: Key) -> Container | None:
        with self._lock:
            waiting = self._waiting.get(key)
            return waiting.popleft() if waiting else None

    def _take_blank(self, kind: Kind | None) -> Container | None:
        with self._lock:
            if kind is None or self._blank is None or self._blank.kind != kind:
                return None
            blank, self._blank = self._blank, None
        return blank

    def _purge(self) -> None:
        """End those that can be of no more use: mostly because their launcher died."""
        useless = []
        with self._lock:
            for waiting in self._waiting.values():
                bad = [container for container in waiting if not container.usable()]
                for container in bad:
                    waiting.remove(container)
                useless += bad
            if self._blank is not None and not self._blank.usable():
                useless.append(self._blank)
                self._blank = None
        for container in useless:
            container.stop()

    def prepare(self, spec: ContainerSpec) -> None:
        """Have one built for the next run of this spec; returns at once.  A failure shows in that run.

        None waits for a network that is built for it alone: it would hold a name and an address, or ports.
        """
        if spec.net in {"none", "host"}:
            self._have_done(spec)

    def _stop_later(self, container: Container) -> None:
        """Processes that die take time, which the caller who waits for a result need not lose."""
        if self._stopped:
            container.stop()
        else:
            self._have_done(container)

    def _have_done(self, work: ContainerSpec | Container) -> None:
        with self._lock:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="nsmagic-standbys", daemon=True)
                self._keeper.start()
        self._wanted.put((self._drops, work))

    def _keep(self) -> None:
        """In a thread of its own, so that a run answers before its container ends and the next is built."""
        while (wanted := self._wanted.get()) is not None:
            asked, work = wanted
            with self._building, contextlib.suppress(Exception):  # whoever runs the next one is told
                if isinstance(work, Container):
                    work.stop()
                elif asked == self._drops:  # else it was asked for before a drop, and not begun
                    self._prepare_blank(work)  # first: whoever has just taken it may want another
                    self._prepare(work)
            del wanted, work

    def _prepare(self, spec: ContainerSpec) -> None:
        key = _key(spec)
        old: list[Container] = []
        with self._lock:
            self._waiting.setdefault(key, deque())
            self._waiting.move_to_end(key)
            wanted = EACH - len(self._waiting[key])
            while len(self._waiting) > KINDS:
                old += self._waiting.popitem(last=False)[1]
        for container in old:
            container.stop()
        new = [Container(spec, keep=False).start() for _ in range(wanted)]
        with self._lock:
            if not self._stopped:
                self._waiting.setdefault(key, deque()).extend(new)
                return
        for container in new:
            container.stop()

    def payload_pids(self) -> list[int]:
        """The host's process ids of the Pythons that wait in them."""
        with self._lock:
            waiting = [container for containers in self._waiting.values() for container in containers]
        return [pid for pid in (container.payload_pid for container in waiting) if pid is not None]

    def _prepare_blank(self, spec: ContainerSpec) -> None:
        """One of the kind of this spec; without limits, since those that it gets may be higher."""
        bare = replace(spec, mem=None, swap=0, cpus=None, binds=(), workdir="", sockets="", image=None)
        new = Container(bare, keep=False)
        with self._lock:
            if new.kind is None or (self._blank is not None and self._blank.kind == new.kind):
                return
        new.start(blank=True)
        old: Container | None = new
        with self._lock:
            if not self._stopped:
                old, self._blank = self._blank, new
        if old is not None:
            old.stop()

    def stop(self) -> None:
        """End them all, and build no more."""
        with self._lock:
            self._stopped = True
        self.drop()
        self._wanted.put(None)

    def drop(self) -> None:
        """End those that wait, and those that are asked for."""
        self._drops += 1
        with contextlib.suppress(queue.Empty):
            while True:
                wanted = self._wanted.get_nowait()
                if wanted is not None and isinstance(wanted[1], Container):
                    wanted[1].stop()
        with self._building, self._lock:
            waiting, self._waiting = self._waiting, OrderedDict()
            blank, self._blank = self._blank, None
        if blank is not None:
            blank.stop()
        for containers in waiting.values():
            for container in containers:
                container.stop()


def _key(spec: ContainerSpec) -> Key:
    """Equal for two specs only if the folders that they name are still the same folders."""
    folders = [
        spec.workdir,
        *(bind.source for bind in spec.binds),
        *(spec.image.layers if spec.image else ()),
    ]
    return (spec, *(_identity(folder) for folder in folders))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - hot
    except OSError:
        return None
    return status.st_dev, status.st_ino


_standbys = Standbys()


def current() -> Standbys:
    """The standbys of this process; a fork of the owner has its own, none at first."""
    global _standbys  # noqa: PLW0603 - one for each process
    if _standbys.pid != os.getpid():
        _standbys = Standbys()
    return _standbys


def end() -> None:
    """At the end of the process, in this order: the containers, the launcher, their groups."""
    current().stop()
    client.stop()
    orphans.remove()
    cgroups.close()


atexit.register(end)
