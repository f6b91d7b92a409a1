"""ZMTP 3.0, as much of it as it takes to speak to an inner kernel over a Unix socket; typed and bounded.

Kernels listen with libzmq, and so the front end is served with it.  Towards the container we read the bytes
ourselves, because libzmq bounds a frame (ZMQ_MAXMSGSIZE) but not the number of frames in one message: a
hostile kernel could fill the supervisor's memory with a message that never ends.  Here a message over the
bound is not kept but counted, and what is not read yet stays in the kernel's socket buffer and slows down the
sender alone.

Knows nothing of Jupyter.  See https://rfc.zeromq.org/spec/23/ (greeting, NULL mechanism, framing) and
unix(7).
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import socket

MAX_FRAMES: Final = 1024
"""Frames of one message; a widget's message has one for each of its buffers."""
MAX_UNSENT: Final = 64 << 20
"""Bytes that may wait for a kernel that does not read."""

_READ_BYTES: Final = 1 << 18
_FRAMES_A_READ: Final = 2048
_MESSAGES_A_READ: Final = 32
_MOST_BYTES: Final = 1 << 40
"""A frame that claims to be longer is no frame."""
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_GREETING_BYTES: Final = 64
_SIGNATURE_END: Final = 9
_MAJOR: Final = 3
_MECHANISM: Final = slice(12, 32)
_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_MAX_SHORT: Final = 255
_MAX_COMMAND: Final = 4096
_LENGTH: Final = struct.Struct("!Q")
_PROPERTY_LENGTH: Final = struct.Struct("!I")


class ProtocolError(Exception):
    """What came is no ZMTP, or over a bound; the text says which, in our own words."""


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) <= _MAX_SHORT:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + _LENGTH.pack(len(body)) + body


def _ready(kind: str, identity: bytes) -> bytes:
    properties = b""
    for name, value in ((b"Socket-Type", kind.encode()), (b"Identity", identity)):
        properties += bytes((len(name),)) + name + _PROPERTY_LENGTH.pack(len(value)) + value
    return _frame(_COMMAND, b"\x05READY" + properties)


@dataclass(frozen=True)
class TooLarge:
    """A message that was over the bound, and so was not kept.

    Attributes:
        parts: the frames in front of the first that did not fit.
        size: bytes of all of them together.
    """

    parts: list[bytes]
    size: int


class Peer:
    """One connection to a kernel's socket.

    Args:
        connection: connected, non-blocking; it is closed with the peer.
        kind: ``DEALER`` for requests, ``SUB`` for what a kernel publishes.
        identity: by which a ROUTER over there knows us.
        max_bytes: of one message that is kept; of a larger one only its size is told.
    """

    def __init__(
        self,
        connection: socket.socket,
        kind: Literal["DEALER", "SUB"],
        *,
        identity: bytes = b"",
        max_bytes: int,
    ) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._incoming = bytearray()
        # One for all reads: a fresh one of this size would be mapped, and unmapped, each time.
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._parts: list[bytes] = []
        self._size = 0
        self._kept = True
        self._to_skip = 0
        self._greeted = False
        self.ready = False
        self.behind = False
        self._drained = False
        self._outgoing = bytearray(_GREETING + _ready(kind, identity))
        # A subscription to everything is a message like any other, in 3.0; it waits for the handshake.
        self._waiting = bytearray(_frame(0, b"\x01")) if kind == "SUB" else bytearray()

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._connection.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait to be written."""
        return bool(self._outgoing)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the kernel to read."""
        return len(self._outgoing) + len(self._waiting)

    @property
    def empty(self) -> bool:
        """Whether all that had come was given; whatever comes next wakes who polls."""
        return self._drained and not self.behind

    def send(self, parts: list[bytes]) -> bool:
        """Send one message, now or when the kernel reads; False where too much waits already."""
        size = sum(len(part) for part in parts)
        if self.unsent + size > MAX_UNSENT:
            return False
        target = self._outgoing if self.ready else self._waiting
        for part in parts[:-1]:
            target += _frame(_MORE, part)
        target += _frame(0, parts[-1])
        self.write()
        return True

    def write(self) -> None:
        """Write what the kernel takes."""
        while self._outgoing:
            try:
                sent = self._connection.send(self._outgoing[: 1 << 20])
            except BlockingIOError:
                return
            except OSError:  # reading will tell
                self._outgoing.clear()
                return
            del self._outgoing[:sent]

    def read(self) -> list[list[bytes] | TooLarge]:
        """Read once; gives the messages that are complete, not more than a few.

        ``behind`` says whether more may be complete in what was read, so that there is no event to wait for.

        Raises:
            EOFError: the connection has ended, and all that came before was given.
            ProtocolError: what came makes no sense; the connection is of no more use.
        """
        if not self.behind and not self._receive():
            return []
        messages: list[list[bytes] | TooLarge] = []
        offset = 0
        if not self._greeted:
            if len(self._incoming) < _GREETING_BYTES:
                return []
            self._check_greeting(bytes(self._incoming[:_GREETING_BYTES]))
            offset = _GREETING_BYTES
        self.behind = True
        with memoryview(self._incoming) as view:
            for _ in range(_FRAMES_A_READ):
                if len(messages) == _MESSAGES_A_READ:
                    break
                found = self._next_frame(view, offset)
                if found is None:
                    self.behind = False
                    break
                flags, body, offset = found
                self._take(flags, body, messages)
        del self._incoming[:offset]
        return messages

    def _receive(self) -> bool:
        """Read from the connection; whether something came that is not skipped."""
        try:
            size = self._connection.recv_into(self._buffer)
        except BlockingIOError:
            self._drained = True
            return False
        except OSError:
            size = 0
        if not size:
            raise EOFError
        self._drained = size < _READ_BYTES
        skipped = min(self._to_skip, size)
        self._to_skip -= skipped
        self._incoming += self._buffer[skipped:size]
        return skipped < size

    def _check_greeting(self, greeting: bytes) -> None:
        mechanism = greeting[_MECHANISM].rstrip(b"\0")
        if greeting[0] != 0xFF or not greeting[_SIGNATURE_END] & 1 or greeting[_SIGNATURE_END + 1] < _MAJOR:  # noqa: PLR2004 - the signature
            raise ProtocolError("a greeting that is not ZMTP 3")
        if mechanism != b"NULL":
            raise ProtocolError("a security mechanism that nobody asked for")
        self._greeted = True

    def _next_frame(self, view: memoryview, offset: int) -> tuple[int, bytes | None, int] | None:
        """The frame at this place of what came, and the place behind it; None where it is not complete.

        A frame that does not fit has no body: what of it is still to come is skipped.
        """
        if len(view) - offset < 2:  # noqa: PLR2004 - flags and a length
            return None
        flags = view[offset]
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise ProtocolError("a frame with unknown flags")
        if flags & _LONG:
            start = offset + 1 + _LENGTH.size
            if len(view) < start:
                return None
            (length,) = _LENGTH.unpack_from(view, offset + 1)
        else:
            start, length = offset + 2, view[offset + 1]
        if length > (_MAX_COMMAND if flags & _COMMAND else _MOST_BYTES):
            raise ProtocolError(f"a frame of {length} bytes")
        end = start + length
        if not flags & _COMMAND and (not self._kept or self._size + length > self._max_bytes):
            self._kept = False
            self._size += length
            self._to_skip = max(0, end - len(view))
            return flags, None, min(end, len(view))
        return None if len(view) < end else (flags, bytes(view[start:end]), end)

    def _take(self, flags: int, body: bytes | None, messages: list[list[bytes] | TooLarge]) -> None:
        if flags & _COMMAND:
            self._obey(body or b"")
            return
        if not self.ready:
            raise ProtocolError("a message before the handshake")
        if body is not None:
            self._parts.append(body)
            self._size += len(body)
            if len(self._parts) == MAX_FRAMES and flags & _MORE:
                self._kept = False
        if not flags & _MORE:
            messages.append(self._parts if self._kept else TooLarge(self._parts, self._size))
            self._parts, self._size, self._kept = [], 0, True

    def _obey(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if name == b"ERROR":
            raise ProtocolError("a refusal of the handshake")
        if name == b"READY" and not self.ready:
            self.ready = True
            self._outgoing += self._waiting
            self._waiting.clear()
            self.write()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.close()
