"""The owner's side of the launcher: start it, send it requests with descriptors, know when it died.

One launcher for each owner process; a fork of the owner starts its own.  Any thread may use it.
See unix(7) for descriptors in messages, and ``zygote`` for the other side.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from nsmagic.errors import LauncherError
from nsmagic.launcher import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Warm = Literal["cells", "kernel", "debuggable kernel", "programs"]

_START_SECONDS: Final = 60.0
_EXIT_SECONDS: Final = 2.0
_LOG_BYTES: Final = 4000
_KEPT_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "LD_LIBRARY_PATH")

_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""A launcher has one thread, so what it imports must not start a pool of them."""
_OURS: Final = str(Path(__file__).resolve().parents[2])
_BOOT: Final = "import sys; sys.path[:] = {path!r}; from nsmagic.launcher.zygote import main; main()"

owned: set[int] = set()
"""Descriptors that only the owner itself may hold, such as lifelines: a fork of it closes them."""


def _forget_in_fork() -> None:
    """In a fork of the owner: let go of what is the owner's.

    The numbers stay taken, by /dev/null: objects of the owner still hold them, and will close them some day.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in owned:
        with contextlib.suppress(OSError):
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)
    owned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_fork)


def python_path() -> tuple[str, ...]:
    """The owner's ``sys.path`` without the current folder, whose modules must run in containers only.

    Our own folder is there in any case, and last, so that nothing in it can stand for another module.
    """
    here = os.getcwd()  # noqa: PTH109 - compared as text
    return _without(here, tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _without(here: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Looked up once: a run has no time to resolve all of them again."""
    here = os.path.realpath(here)
    path = [path for path in paths if path and os.path.realpath(path) != here]
    return (*path, *({_OURS} - set(path)))


class Launcher:
    """A launcher process.

    Args:
        preload: modules that it imports, so that cells find them imported.
        warm: what it imports for its payloads: IPython's shell, which ``cells`` need, an ipykernel for a
            ``kernel`` (with debugpy for a ``debuggable kernel``), or nothing for ``programs`` (and scripts),
            which start sooner so.
    """

    def __init__(self, preload: Sequence[str] = (), *, warm: Warm = "cells") -> None:
        self.preload = tuple(preload)
        self.path = python_path()
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self.forgotten: deque[int] = deque()
        self._hello: frames.Hello | None = None
        self._log = os.memfd_create("nsmagic-launcher-log")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        owned.add(self._socket.fileno())
        config = json.dumps({"owner": theirs.fileno(), "preload": self.preload, "warm": warm})
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment |= dict.fromkeys(_ONE_THREAD, "1")
        # Matplotlib looks at this when it is imported, which may be here.
        environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _BOOT.format(path=list(self.path)), config],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    start_new_session=True,  # a Ctrl-C in our terminal is for us alone
                )
            except OSError as error:
                self._socket.close()
                raise LauncherError(f"the launcher could not be started: {error}") from error

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs.

        One that is dying closes its channel before it can be waited for, and takes no request from then on.
        """
        if self._process.poll() is not None:
            return False
        channel = select.poll()
        channel.register(self._socket.fileno(), select.POLLHUP)
        return not channel.poll(0)

    def ready(self) -> bool:
        """Whether it has said hello, without waiting."""
        return self._hello is not None

    def wait_ready(self, progress: Callable[[float], None] | None = None) -> frames.Hello:
        """Wait until it is warm.

        Args:
            progress: called with the seconds waited so far, a few times a second.

        Raises:
            LauncherError: it died or took longer than a minute; the text ends with what it printed.
        """
        with self._lock:
            while self._hello is None:
                self._socket.settimeout(0.2)
                try:
                    packet = self._socket.recv(frames.MAX_REQUEST)
                except TimeoutError:
                    # Looked at here, not before: it may have said hello long ago, and nobody asked until now.
                    waited = time.monotonic() - self.started
                    if waited > _START_SECONDS:
                        raise LauncherError(
                            f"the launcher did not get ready within {_START_SECONDS:.0f} s. {self.log()}"
                        ) from None
                    if progress:
                        progress(waited)
                    continue
                except OSError:
                    packet = b""
                if not packet:
                    raise LauncherError(f"the launcher {self.how_it_died()}. {self.log()}")
                try:
                    self._hello = frames.decode_hello(packet)
                except msgspec.MsgspecError as error:
                    raise LauncherError(f"the launcher said what it should not: {error}") from None
                self._socket.settimeout(None)
            return self._hello

    def send(self, request: frames.Request, descriptors: Sequence[int] = ()) -> bool:
        """Send a request; False where the launcher is gone.

        Raises:
            LauncherError: the request is larger than a packet may be (too many binds).
        """
        packet = frames.encode(request)
        if len(packet) > frames.MAX_REQUEST:
            raise LauncherError(f"too many or too long binds: the request has {len(packet)} bytes")
        with self._lock:
            try:
                # Containers that were forgotten while somebody was here; see Container.__del__.
                while self.forgotten:
                    self._socket.send(frames.encode(frames.Release(self.forgotten.popleft())))
                socket.send_fds(self._socket, [packet], list(descriptors))
            except OSError:
                return False
        return True

    def how_it_died(self) -> str:
        """Its end in words, such as "was killed by signal 9"."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_EXIT_SECONDS)
            return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return "closed its channel"

    def log(self) -> str:
        """The end of what it printed."""
        if self._log < 0:
            return ""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace").strip()
        return f"It printed:\n{text}" if text else ""

    def stop(self) -> None:
        """End it and every container that it made; waits at most two seconds."""
        owned.discard(self._socket.fileno())
        self._socket.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        log, self._log = self._log, -1
        if log >= 0:
            os.close(log)


class _Current:
    """The launcher of this process, started when it is first wanted."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.launcher: Launcher | None = None
        self.preload: tuple[str, ...] = ()
        self.warm: Warm = "cells"
        self.deaths: list[str] = []


_current = _Current()


def _state() -> _Current:
    global _current  # noqa: PLW0603 - there is one launcher, and a fork of the owner starts anew
    if _current.pid != os.getpid():
        preload = _current.preload
        _current = _Current()
        _current.preload = preload
    return _current


def start() -> Launcher:
    """The running launcher; started now, in the background, if there is none or it died."""
    state = _state()
    with state.lock:
        if state.launcher is not None and not state.launcher.alive():
            state.deaths.append(state.launcher.how_it_died())
            state.launcher.stop()
            state.launcher = None
        if state.launcher is None:
            state.launcher = Launcher(state.preload, warm=state.warm)
        return state.launcher


def running() -> Launcher | None:
    """The launcher if there is one."""
    return _state().launcher


def take_deaths() -> list[str]:
    """How earlier launchers died, told once."""
    state = _state()
    with state.lock:
        deaths, state.deaths = state.deaths, []
        return deaths


def set_preload(modules: Sequence[str]) -> None:
    """Have the launcher import these modules; a running one is replaced."""
    state = _state()
    with state.lock:
        if tuple(modules) != state.preload:
            state.preload = tuple(modules)
            stop()


def expect(warm: Warm) -> None:
    """Say what this process will run, before its launcher is started; see ``Launcher``."""
    _state().warm = warm


def stop() -> None:
    """End the launcher, if there is one, and all its containers."""
    state = _state()
    with state.lock:
        if state.launcher is not None:
            state.launcher.stop()
            state.launcher = None


atexit.register(stop)
