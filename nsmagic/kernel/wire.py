"""Jupyter's messages as frames: signed, typed, bounded.

A message is: identities, ``<IDS|MSG>``, a signature, then header, parent header, metadata and content as
JSON, then binary buffers, which are not signed.  Two keys are in use, the front end's and the inner kernel's,
and neither side ever learns the other's.  Pure: no sockets.

See https://jupyter-client.readthedocs.io/en/stable/messaging.html#the-wire-protocol.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Final

import msgspec

DELIMITER: Final = b"<IDS|MSG>"
PROTOCOL_VERSION: Final = "5.4"
_PARTS: Final = 4
_MAX_IDENTITIES: Final = 16
_MAX_NAME: Final = 200
MAX_VALUES: Final = 1 << 20
"""Values in one part: as Python's objects, small ones take up to thirty times the room of their text."""
_STRING: Final = re.compile(rb'"[^"]*"')

Name = Annotated[str, msgspec.Meta(max_length=_MAX_NAME)]


class WireError(Exception):
    """Frames that are no message, or whose signature is not right."""


class Header(msgspec.Struct, frozen=True):
    """What of a header is read; all else in it is passed on or left out as a whole."""

    msg_id: Name
    msg_type: Name
    session: Name = ""
    subshell_id: Name | None = None


class _Parent(msgspec.Struct, frozen=True):
    msg_id: Name = ""


@dataclass(frozen=True)
class Message:
    """A message whose signature was right.

    Attributes:
        identities: the frames in front.
        header: of it, what is read.
        parent_id: the message that it answers; empty for none.
        parts: header, parent header, metadata and content, as they came.
        buffers: as they came.
        signature: as it came; empty where messages are not signed.
    """

    identities: list[bytes]
    header: Header
    parent_id: str
    parts: list[bytes]
    buffers: list[bytes]
    signature: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of all that it carries."""
        return sum(map(len, self.parts)) + sum(map(len, self.buffers))


_header: Final = msgspec.json.Decoder(Header)
_parent: Final = msgspec.json.Decoder(_Parent)
_any: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


class Key:
    """What signs and checks messages.

    Args:
        key: the connection file's; empty where messages are not signed.
        scheme: such as ``hmac-sha256``.

    Raises:
        ValueError: a scheme that this Python cannot do.
    """

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        if not scheme.startswith("hmac-"):
            raise ValueError(f"signature scheme {scheme!r} is not hmac-…")
        self._key = key
        self._digest = scheme.removeprefix("hmac-")
        hmac.digest(key, b"", self._digest)

    def sign(self, parts: list[bytes]) -> bytes:
        """The signature of the four parts."""
        if not self._key:
            return b""
        return hmac.digest(self._key, b"".join(parts), self._digest).hex().encode()

    def right(self, signature: bytes, parts: list[bytes]) -> bool:
        """Whether a signature is right."""
        return not self._key or hmac.compare_digest(signature, self.sign(parts))


def parse(frames: list[bytes], key: Key) -> Message:
    """Frames as a message.

    Raises:
        WireError: they are none, or the signature is not right.
    """
    try:
        at = frames[: _MAX_IDENTITIES + 1].index(DELIMITER)
    except ValueError:
        raise WireError("frames without a delimiter") from None
    parts = frames[at + 2 : at + 2 + _PARTS]
    if len(parts) < _PARTS:
        raise WireError("too few frames")
    if not key.right(frames[at + 1], parts):
        raise WireError("a signature that is not right")
    try:
        header, parent = _header.decode(parts[0]), _parent.decode(parts[1])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise WireError("a malformed header") from None
    return Message(frames[:at], header, parent.msg_id, parts, frames[at + 2 + _PARTS :], frames[at + 1])


def parent_of(frames: list[bytes]) -> str:
    """The message that one answers of which only the first frames were kept; empty where they do not tell."""
    with contextlib.suppress(ValueError, IndexError, msgspec.MsgspecError, RecursionError):
        return _parent.decode(frames[frames[: _MAX_IDENTITIES + 1].index(DELIMITER) + 3]).msg_id
    return ""


def loads(part: bytes) -> Any:
    """A part as plain data.

    Raises:
        WireError: it is no JSON, or of so many values that they would take up far more room than their text.
    """
    if _values(part) > MAX_VALUES:
        raise WireError("a part of too many values")
    try:
        return _any.decode(part)
    except (msgspec.MsgspecError, RecursionError, ValueError, MemoryError):
        pass
    try:
        # Kernels send what strict JSON has not: NaN, halves of surrogate pairs, bytes that are not UTF-8.
        return json.loads(part.decode(errors="replace"), parse_constant=_nothing)
    except (RecursionError, ValueError, MemoryError):
        raise WireError("a part that is no JSON") from None


def _values(part: bytes) -> int:
    """How many values there are, at most: as many as there are marks that stand before one."""
    found = _marks(part)
    if found > MAX_VALUES:
        # It may be text that is full of them.  Without its escapes a string ends at the next quote.
        part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        strings = part.count(b'"') // 2
        found = strings if strings > MAX_VALUES else _marks(_STRING.sub(b"", part))
    return found


def _marks(part: bytes) -> int:
    return part.count(b",") + part.count(b"[") + part.count(b"{")


def _nothing(name: str) -> None:
    """Stand for NaN and the infinities, which no front end could read."""
    del name


def dumps(value: object) -> bytes:
    """Plain data as JSON.

    Raises:
        WireError: it is nested too deeply.
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        # Halves of surrogate pairs are text to Python and to nobody else.
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")
    except RecursionError:
        raise WireError("data of too many levels") from None


class Writer:
    """Makes new messages of one session, signed.

    Args:
        key: signs them.
    """

    def __init__(self, key: Key) -> None:
        self.session = uuid.uuid4().hex
        self._key = key
        self._count = 0

    def frames(
        self,
        msg_type: str,
        content: object,
        *,
        parent: bytes = b"{}",
        metadata: object = None,
        buffers: list[bytes] | None = None,
    ) -> list[bytes]:
        """A message's frames from the delimiter on.

        Args:
            msg_type: as the protocol names it.
            content: plain data.
            parent: the header of the message that it answers, as it came.
            metadata: plain data.
            buffers: binary frames.
        """
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{self._count}",
            "msg_type": msg_type,
            "username": "kernel",
            "session": self.session,
            "date": datetime.now(timezone.utc),  # as ISO 8601, with a Z
            "version": PROTOCOL_VERSION,
        }
        parts = [dumps(header), parent, dumps(metadata) if metadata else b"{}", dumps(content)]
        return [DELIMITER, self._key.sign(parts), *parts, *(buffers or [])]


def signed(message: Message, key: Key) -> list[bytes]:
    """A message's frames from the delimiter on, under another key."""
    return [DELIMITER, key.sign(message.parts), *message.parts, *message.buffers]
