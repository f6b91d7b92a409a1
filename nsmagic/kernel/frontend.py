"""The supervisor's side towards Jupyter: the five sockets of a kernel, on the connection file's ports.

Whoever connects here holds the connection file's key, and so is the user.  libzmq serves them.  What is sent
from here has been filtered before.

See https://jupyter-client.readthedocs.io/en/stable/kernels.html#connection-files, and
https://github.com/jupyter/enhancement-proposals/blob/master/65-jupyter-xpub/jupyter-xpub.md for the welcome.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import zmq

from nsmagic.errors import SpecError
from nsmagic.kernel import wire

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from nsmagic.kernel.requests import Request

Channel = Literal["shell", "control", "stdin"]

_CHANNELS: Final[tuple[Channel, ...]] = ("control", "shell", "stdin")
_PORTS: Final = ("shell_port", "control_port", "stdin_port", "iopub_port", "hb_port")
_BATCH: Final = 32
_LINGER_MS: Final = 1000
_PUBLISH_QUEUE: Final = 20_000
_SEEN: Final = 4096
_WELCOME_BYTES: Final = 1024
# Plain numbers: the enumeration's own operators take longer than a frame's way through the socket.
_NO_WAIT: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_IN: Final = int(zmq.POLLIN)
_EVENTS: Final = zmq.EVENTS


@dataclass(frozen=True)
class Connection:
    """What a connection file says.

    Attributes:
        transport: ``tcp`` or ``ipc``.
        ip: address, or the path that ipc sockets begin with.
        ports: by the names that the file uses: ``shell_port`` …
        key: signs messages; empty for none.
        scheme: how.
        curve: public and secret key of CurveZMQ, where the server encrypts.
    """

    transport: str
    ip: str
    ports: dict[str, int]
    key: bytes
    scheme: str
    curve: tuple[bytes, bytes] | None = None

    @classmethod
    def read(cls, path: str) -> Connection:
        """Read a connection file.

        Raises:
            SpecError: it is not there, or is none.
        """
        try:
            found: Any = json.loads(Path(path).read_bytes())
            transport = str(found.get("transport", "tcp"))
            if transport not in {"tcp", "ipc"}:
                raise ValueError(f"the transport {transport[:40]!r} is neither tcp nor ipc")
            curve = None
            if "curve_secretkey" in found:
                curve = (found["curve_publickey"].encode(), found["curve_secretkey"].encode())
            return cls(
                transport,
                str(found["ip"]),
                {name: int(found[name]) for name in _PORTS},
                str(found.get("key", "")).encode(),
                str(found.get("signature_scheme") or "hmac-sha256"),
                curve,
            )
        except OSError as error:
            raise SpecError("-f", f"{path!r} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError("-f", f"{path!r} is not a connection file: {error}") from None

    def address(self, port: str) -> str:
        """The endpoint of a port, as libzmq writes it."""
        number = self.ports[port]
        return f"ipc://{self.ip}-{number}" if self.transport == "ipc" else f"tcp://{self.ip}:{number}"


class FrontEnd:
    """The five sockets, bound.

    Args:
        connection: where.

    Raises:
        SpecError: a port is taken, or the connection file asks for what is not to be had.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        try:
            self._key = wire.Key(connection.key, connection.scheme)
        except ValueError as error:
            raise SpecError("-f", str(error)) from None
        self._writer = wire.Writer(self._key)
        self._context = zmq.Context()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        for channel in _CHANNELS:
            socket = self._bind(zmq.ROUTER, f"{channel}_port")
            # A client that comes back under its name gets its replies.
            socket.router_handover = 1
            self._sockets[channel] = socket
        self._iopub = self._bind(zmq.XPUB, "iopub_port")
        # A subscription holds from when we say so, which is just before its welcome: that comes first.
        self._iopub.xpub_manual = 1
        self._iopub.sndhwm = _PUBLISH_QUEUE
        everyone = (*self._sockets.values(), self._iopub)
        self._by_descriptor: dict[int, zmq.Socket[bytes]] = {each.fileno(): each for each in everyone}
        self._used = set(everyone)
        self._ready: set[zmq.Socket[bytes]] = set()
        self._heartbeat = _Heartbeat(connection)

    def _bind(self, kind: int, port: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = _LINGER_MS
        _bind(socket, self.connection, port)
        return socket

    @property
    def descriptors(self) -> Collection[int]:
        """To poll for input.  Each tells of news once, so ``look`` must be asked before every wait."""
        return self._by_descriptor.keys()

    def look(self, events: Collection[int] = ()) -> bool:
        """See what has come; whether anything has.

        Only sockets that may have news are asked: asking takes a system call or two each, and zmq_poll(3),
        which asks all of them twice, took as long as all that the supervisor does with a message.  See
        ZMQ_FD in zmq_getsockopt(3): a socket that was used since may have taken its own news along.

        Args:
            events: descriptors that have input.
        """
        for each in events:
            if each in self._by_descriptor:
                self._used.add(self._by_descriptor[each])
        for socket in self._used:
            if int(socket.get(_EVENTS)) & _IN:
                self._ready.add(socket)
        self._used.clear()
        return bool(self._ready)

    # ---- in ---------------------------------------------------------------------

    def receive(self) -> Iterator[tuple[Channel, wire.Message]]:
        """The messages that have come, control first; some at a time, so that no channel starves another."""
        for channel in _CHANNELS:
            socket = self._sockets[channel]
            if not self._is_ready(socket):
                continue
            for _ in range(_BATCH):
                try:
                    frames = socket.recv_multipart(_NO_WAIT)
                except zmq.Again:
                    break
                with contextlib.suppress(wire.WireError):  # without the key it is nobody's message
                    message = wire.parse(frames, self._key)
                    if self._is_new(message):
                        yield channel, message

    def _is_new(self, message: wire.Message) -> bool:
        """Whether it is not a copy of an earlier one: a signed message could otherwise be played again.

        Not told by ``msg_id``: a server's manager and its clients share a session, and each counts anew.
        """
        if not message.signature:
            return True
        if message.signature in self._seen:
            return False
        self._seen[message.signature] = None
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return True

    def _is_ready(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether something was seen to have come; it is going to be read, so that is looked at anew."""
        if socket not in self._ready:
            return False
        self._ready.remove(socket)
        self._used.add(socket)
        return True

    def welcome(self) -> None:
        """Greet new subscribers: from now on they miss nothing."""
        if not self._is_ready(self._iopub):
            return
        with contextlib.suppress(zmq.Again):
            for _ in range(_BATCH):
                event = self._iopub.recv(_NO_WAIT)
                topic = event[1:]
                if event[:1] == b"\x00":
                    self._iopub.setsockopt(zmq.UNSUBSCRIBE, topic)
                elif event[:1] == b"\x01" and len(topic) <= _WELCOME_BYTES:
                    self._iopub.setsockopt(zmq.SUBSCRIBE, topic)
                    with contextlib.suppress(UnicodeDecodeError):
                        content = {"subscription": topic.decode()}
                        self._publish(topic, self._writer.frames("iopub_welcome", content))

    # ---- out --------------------------------------------------------------------

    def reply(self, request: Request, msg_type: str, content: object, metadata: object = None,
              buffers: list[bytes] | None = None) -> None:  # fmt: skip
        """Answer a request, on the channel that it came by, to the client that sent it."""
        frames = self._writer.frames(
            msg_type, content, parent=request.header, metadata=metadata, buffers=buffers
        )
        self._send(request.channel, request.identities, frames)

    def ask(self, request: Request, content: object) -> None:
        """Ask the client that sent a request for a line of input."""
        frames = self._writer.frames("input_request", content, parent=request.header)
        self._send("stdin", request.identities, frames)

    def _send(self, channel: Channel, identities: list[bytes], frames: list[bytes]) -> None:
        self._send_frames(self._sockets[channel], [*identities, *frames])

    def publish(self, msg_type: str, content: object, *, parent: bytes = b"{}", metadata: object = None,
                buffers: list[bytes] | None = None) -> None:  # fmt: skip
        """Tell all clients.

        Args:
            msg_type: as the protocol names it.
            content: plain data.
            parent: the header of the request that it is about, as it came.
            metadata: plain data.
            buffers: binary frames.
        """
        frames = self._writer.frames(msg_type, content, parent=parent, metadata=metadata, buffers=buffers)
        self._publish(f"kernel.{self._writer.session}.{msg_type}".encode(), frames)

    def _publish(self, topic: bytes, frames: list[bytes]) -> None:
        self._send_frames(self._iopub, [topic, *frames])

    def _send_frames(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Send one message; whoever does not take it misses it."""
        self._used.add(socket)
        with contextlib.suppress(zmq.Again):
            for frame in frames[:-1]:
                socket.send(frame, _MORE)
            socket.send(frames[-1], _NO_WAIT)

    def close(self) -> None:
        """Send what is still to be sent, a second at most, and let go of the ports."""
        for socket in (*self._sockets.values(), self._iopub):
            socket.close()
        self._heartbeat.close()
        self._context.term()


def _bind(socket: zmq.Socket[bytes], connection: Connection, port: str) -> None:
    if connection.curve is not None:
        socket.curve_publickey, socket.curve_secretkey = connection.curve
        socket.curve_server = True
    try:
        socket.bind(connection.address(port))
    except zmq.ZMQError as error:
        raise SpecError("-f", f"{port} {connection.ports[port]} cannot be bound: {error.strerror}") from None


class _Heartbeat:
    """Echoes what comes, in a thread that needs nothing of Python's: the device is libzmq's own.

    It has a context of its own, whose end is its end.
    """

    def __init__(self, connection: Connection) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        _bind(self._socket, connection, "hb_port")
        self._thread = threading.Thread(target=self._echo, name="nsmagic-heartbeat", daemon=True)
        self._thread.start()

    def _echo(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            zmq.proxy(self._socket, self._socket)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.close()

    def close(self) -> None:
        """End the thread and let go of the port."""
        self._context.term()
        self._thread.join(_LINGER_MS / 1000)
