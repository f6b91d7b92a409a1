"""One inner kernel: a container with a kernel in it, and the supervisor's connections to it.

Its life: *building* (the launcher clones it), *connecting* (it binds its sockets; we open each by descriptor,
so that none can be swapped for a link, and connect to that very socket), *ready* (it has answered and is
heard), *over* (its container has ended, and ``Result`` says how).  It is never used again; the supervisor
makes a new one.

The container runs through ``Container.run_job`` in a thread of its own, as every job does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from nsmagic.container import Container
from nsmagic.errors import HostError, NsmagicError
from nsmagic.firewall import StreamCleaner
from nsmagic.kernel import wire
from nsmagic.kernel.revival import SECONDS as REVIVAL_SECONDS
from nsmagic.kernel.revival import Revival
from nsmagic.kernel.zmtp import Peer, ProtocolError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from nsmagic.firewall import Filtered
    from nsmagic.kernel.revival import Death
    from nsmagic.kernel.settings import Settings
    from nsmagic.launcher import frames
    from nsmagic.report import Exit
    from nsmagic.result import Result

InnerChannel = Literal["shell", "control", "stdin", "iopub"]

SOCKETS: Final = "/run/nsmagic"
"""Where an inner kernel's sockets lie, as it sees them."""

_PORTS: Final[dict[InnerChannel, int]] = {"shell": 1, "control": 2, "stdin": 3, "iopub": 4}
_HEARTBEAT_PORT: Final = 5  # nobody listens to it: a kernel lives as long as its container does
_IDENTITY: Final = b"nsmagic-supervisor"
_SLACK_BYTES: Final = 2 << 20
_TURN_SECONDS: Final = 0.01
_PROBE_SECONDS: Final = 0.1
_EOF_SECONDS: Final = 0.5
_START_SECONDS: Final = 120.0
_LOG_LINES: Final = 200
_MOST_SAID: Final = 100
_LOG_LINES_A_SECOND: Final = 10.0

log = logging.getLogger("nsmagic.kernel")


class _Log:
    """The sink for a kernel's own streams, which are not its cells': they go into the server's log.

    Not faster than anybody could read them: a flood would fill the log, and keep the supervisor busy.
    """

    def __init__(self) -> None:
        self._cleaners = {name: StreamCleaner(cursor_up=False) for name in ("stdout", "stderr")}
        self._room = float(_LOG_LINES)
        self._refilled = time.monotonic()
        self._dropped = 0
        self.last = ""
        self.heard: Callable[[frames.Keeping | frames.Revived], None] | None = None

    def keeping(self, message: frames.Keeping | frames.Revived) -> None:
        """What a kernel says of its snapshots."""
        if self.heard is not None:
            self.heard(message)

    def stream(self, name: str, data: bytes) -> None:
        """Log it, cleaned."""
        text = self._cleaners[name].feed(data)
        self.last = (self.last + text)[-2000:]
        now = time.monotonic()
        self._room = min(_LOG_LINES, self._room + (now - self._refilled) * _LOG_LINES_A_SECOND)
        self._refilled = now
        lines = [line for line in text.splitlines() if line.strip()]
        shown = lines[: int(self._room)]
        if shown and self._dropped:
            log.warning("inner kernel: … (%d more lines)", self._dropped)
            self._dropped = 0
        for line in shown:
            log.warning("inner kernel: %s", line[:2000])
        self._room -= len(shown)
        self._dropped += len(lines) - len(shown)

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """No kernel sends this way."""

    def clear(self, *, wait: bool) -> None:
        """Likewise."""

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """Likewise."""

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Nobody is there."""
        del prompt, password
        return None


class InnerKernel:
    """One inner kernel.

    Args:
        settings: what it should be.
        wake: called, from a thread, when its container has ended.
        container: a standby to use; else one is built.

    Raises:
        NsmagicError: it cannot be built here.
    """

    def __init__(
        self, settings: Settings, wake: Callable[[], None], container: Container | None = None
    ) -> None:
        self._settings = settings
        self._wake = wake
        self.started = time.monotonic()
        self.result: Result | None = None
        self.error: NsmagicError | None = None
        self.over = False
        self.ready = False
        self.worked = False
        self.broken = ""
        self.forged = 0
        self.log = _Log()
        self.peers: dict[InnerChannel, Peer] = {}
        self._broken_since = 0.0
        self._told_to_end = False
        self._patience = _START_SECONDS
        self._key_text = secrets.token_hex(32)
        self._key = wire.Key(self._key_text.encode())
        self._writer = wire.Writer(self._key)
        self._probe = ""
        self._probed = 0.0
        self._answered = False
        self._heard = False
        self.container = container or make_container(settings)
        self._folder = self.container.spec.sockets
        self.revival = Revival()
        self.log.heard = self._hear
        self.container.watch_deaths(self._die)
        self._thread = threading.Thread(target=self._live, name="nsmagic-inner-kernel", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        """In a thread: the container's whole life."""
        connection = {
            "transport": "ipc",
            "ip": f"{self._folder}/kernel",
            "key": self._key_text,
            "signature_scheme": "hmac-sha256",
            "kernel_name": self._settings.name,
            "hb_port": _HEARTBEAT_PORT,
            **{f"{channel}_port": port for channel, port in _PORTS.items()},
        }
        if not self._settings.argv:
            connection["nsmagic"] = {"keep_state": self._settings.keep_state, "mem": self.container.spec.mem}
        job = replace(
            self._settings.job,
            at_output_limit="drop",  # the limit is for its cells; what goes to the log is no reason to end it
            code=wire.dumps(connection).decode(),
            argv=(self._folder, *self._settings.argv),
        )
        try:
            self.result = self.container.run_job(job, sink=self.log)
        except NsmagicError as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 - whoever waits for the end must hear of it
            self.error = NsmagicError(f"{type(error).__name__}: {error}")
        self.over = True
        self._wake()

    # ---- its snapshots ------------------------------------------------------------

    def _hear(self, message: frames.Keeping | frames.Revived) -> None:
        """In the container's thread."""
        if len(self.revival.said) < _MOST_SAID:
            self.revival.said.append(message)
            self._wake()

    def _die(self, exited: Exit) -> None:
        """In whichever thread reads the report."""
        self.revival.exits.append(exited)
        self._wake()

    def empty(self) -> bool:
        """Whether nothing that it has sent is left to read; its snapshot holds its sockets open."""
        return all(peer.empty and not peer.behind for peer in self.peers.values())

    def follow(self, death: Death) -> None:
        """It is dead: look for its snapshot at new sockets."""
        self.revival.begin(death)
        for channel in list(self.peers):
            self._drop(channel)
        self.started = time.monotonic()
        self.ready = self._answered = self._heard = False
        self.broken, self._probe, self._patience = "", "", REVIVAL_SECONDS

    # ---- connections --------------------------------------------------------------

    def connect(self) -> bool:
        """Try to connect what is not connected yet; whether all is.

        There is no event for "somebody has begun to listen", so the supervisor tries again and again.
        """
        if self.over or self.broken or len(self.peers) == len(_PORTS):
            return not self.broken
        if not self.revival.prefix:
            return False
        folder = self._open_folder()
        if folder is None:
            return False
        try:
            for channel, port in _PORTS.items():
                if channel not in self.peers:
                    connection = _connect(folder, f"{self.revival.prefix}-{port}")
                    if connection is None:
                        return False
                    self._add_peer(channel, connection)
        finally:
            os.close(folder)
        self._send_probe()
        return True

    def _open_folder(self) -> int | None:
        if "mount" in self.container.namespaces:
            return self.container.open_sockets()
        with contextlib.suppress(OSError):
            return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return None

    def _add_peer(self, channel: InnerChannel, connection: socket.socket) -> None:
        # Requests and what they ask the user go by the same identity: that is how a kernel finds us again.
        identity = _IDENTITY if channel != "iopub" else b""
        limit = self._settings.job.output_limit + _SLACK_BYTES
        kind: Literal["DEALER", "SUB"] = "SUB" if channel == "iopub" else "DEALER"
        self.peers[channel] = Peer(connection, kind, identity=identity, max_bytes=limit)

    def _send_probe(self) -> None:
        """Ask for its kernel's info: its answer, and what it publishes meanwhile, show that it is there."""
        if "shell" not in self.peers:
            return
        self._probe = self.ask("kernel_info_request")
        self._probed = time.monotonic()

    def ask(self, msg_type: str) -> str:
        """Send a request of our own, without content, on the shell's channel; gives its ``msg_id``."""
        frames = self._writer.frames(msg_type, {})
        peer = self.peers.get("shell")
        if peer is not None:
            peer.send(frames)
        return wire.parse(frames, self._key).header.msg_id

    def send(self, channel: InnerChannel, message: wire.Message) -> bool:
        """Send a client's message on, under the inner key; False where the kernel does not read."""
        peer = self.peers.get(channel)
        return peer is not None and peer.send(wire.signed(message, self._key))

    @property
    def behind(self) -> bool:
        """Whether more has been read than was given: then there is no event to wait for."""
        return any(peer.behind for peer in self.peers.values())

    def read(self, events: Collection[int]) -> Iterator[tuple[InnerChannel, wire.Message | TooLarge]]:
        """What has come; of each channel for a short time, so that none starves another, nor a front end.

        Args:
            events: descriptors of channels on which something has come.
        """
        for channel, peer in list(self.peers.items()):
            if not peer.behind and peer.fileno() not in events:
                continue
            end = time.monotonic() + _TURN_SECONDS
            while self.peers.get(channel) is peer:
                for frames in self._read_once(channel, peer):
                    message = self._parse(frames)
                    if message is not None and self._is_for_others(channel, message):
                        yield channel, message
                if peer.empty or time.monotonic() > end:
                    break
        if not self.ready:
            self._check_start()

    def _check_start(self) -> None:
        self.ready = self._answered and self._heard
        now = time.monotonic()
        if self._answered and not self.ready and now - self._probed > _PROBE_SECONDS:
            self._send_probe()
        if not self.ready and now - self.started > self._patience:
            self._break(f"it did not answer within {self._patience:.0f} s", at_once=True)

    def _read_once(self, channel: InnerChannel, peer: Peer) -> list[list[bytes] | TooLarge]:
        try:
            return peer.read()
        except EOFError:
            # It may be dying: in the other channels is its last word, and init will say how it died.
            self._break("it closed a channel", at_once=False)
            self._drop(channel)
        except ProtocolError as error:
            self.refuse(f"it sent {error}")
        return []

    def refuse(self, why: str) -> None:
        """Hear no more of it: it is going to be ended."""
        self._break(why, at_once=True)
        for channel in list(self.peers):
            self._drop(channel)

    def _parse(self, frames: list[bytes] | TooLarge) -> wire.Message | TooLarge | None:
        if isinstance(frames, TooLarge):
            return frames
        try:
            return wire.parse(frames, self._key)
        except wire.WireError:
            self.forged += 1
            return None

    def _is_for_others(self, channel: InnerChannel, message: wire.Message | TooLarge) -> bool:
        if isinstance(message, TooLarge):
            return True
        if channel == "iopub":
            self._heard = True
        if not self._probe or message.parent_id != self._probe:
            return True
        self._answered = self._answered or message.header.msg_type == "kernel_info_reply"
        return False

    def _break(self, why: str, *, at_once: bool) -> None:
        """A channel is of no more use, and so the kernel is not either."""
        if not self.broken:
            self.broken = why
            self._broken_since = time.monotonic() - (_EOF_SECONDS if at_once else 0.0)

    def _drop(self, channel: InnerChannel) -> None:
        peer = self.peers.pop(channel, None)
        if peer is not None:
            peer.close()

    def end_if_broken(self) -> None:
        """A kernel whose channels are gone is ended; one that is just dying may first say how."""
        due = self.broken and not self.over and not self._told_to_end
        if due and time.monotonic() - self._broken_since >= _EOF_SECONDS:
            self._told_to_end = True  # once: it waits for the end, and a process may be stuck in the kernel
            self.container.stop()

    # ---- end ---------------------------------------------------------------------------

    def stop(self) -> None:
        """End the container and everything in it."""
        for channel in list(self.peers):
            self._drop(channel)
        self.container.stop()
        self._thread.join(2.0)
        if "mount" not in self.container.namespaces:
            shutil.rmtree(self._folder, ignore_errors=True)

    def how_it_ended(self) -> str:
        """In words, for whoever loses by it."""
        if self.error is not None:
            return str(self.error)
        if self.broken and (self.result is None or self.result.outcome == "stopped"):
            return f"stopped, because {self.broken}"
        if self.result is None:
            return "it runs"
        if self.result.ok:
            return "its process ended by itself (exit status 0)"
        return self.result.describe()


def make_container(settings: Settings) -> Container:
    """Build the container for an inner kernel; returns before it is built.

    Raises:
        NsmagicError: this host cannot do it.
    """
    spec = settings.spec
    if "mount" in spec.namespaces:
        container = Container(replace(spec, sockets=SOCKETS), keep=False)
        if not container.namespaces:
            # --best-effort runs single jobs without any, under a filter that lets nobody listen.
            raise HostError(
                "A kernel", "it listens on sockets, and without a container none can be made",
                "Use a host that can build containers; nsmagic doctor says what is missing here.",
            )  # fmt: skip
        return container.start()
    # Without a mount namespace it has no file system of its own: the sockets lie in a folder of the host.
    folder = tempfile.mkdtemp(prefix="nsmagic-")
    try:
        container = Container(replace(spec, sockets=folder), keep=False)
        os.chown(folder, container.host_uid, -1)
        return container.start()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _connect(folder: int, name: str) -> socket.socket | None:
    """Connect to a socket in a hostile folder; None where nobody listens there yet.

    The socket is opened first, as itself and without following a link, and then connected to by that
    descriptor: whatever lies under the name by then does not matter.  See openat(2) (O_PATH), unix(7).
    """
    try:
        found = os.open(name, getattr(os, "O_PATH", 0) | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    connection = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError
        connection.connect(f"/proc/self/fd/{found}")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(found)
    return connection
