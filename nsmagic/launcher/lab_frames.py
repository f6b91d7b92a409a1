"""What the owner of a lab and its holder say to each other: one packet each, MessagePack, typed.

Both are the user's own processes.  This module knows no other, and none of pyroute2.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_PACKET: Final = 160 * 1024
"""Bytes; 254 members take a tenth of it."""

# ---- owner -> holder ------------------------------------------------------------------------


class Join(msgspec.Struct, frozen=True, tag="join"):
    """A container will come; the socket to its init is with this packet."""

    name: str
    number: int


class Look(msgspec.Struct, frozen=True, tag="look"):
    """What is there now?"""


class End(msgspec.Struct, frozen=True, tag="end"):
    """End, if there are no members."""


# ---- holder -> owner ------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The bridge is there."""


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The name and this address are the container's, once it comes."""

    address: str
    mac: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No.

    Attributes:
        why: ``taken`` (the name), ``full``, ``busy`` (it has members), or of a start the call that failed.
        errno: of that call.
        members: who is there, by name and container number.
    """

    why: str
    errno: int = 0
    members: list[tuple[str, int]] = []


class Seen(msgspec.Struct, frozen=True):
    """A member, as the kernel shows it.

    Attributes:
        name: what others call it.
        number: the container's.
        address: IPv4.
        mac: of its interface.
        port: the bridge's end of its cable.
        up: whether both ends are.
        received: bytes that it was sent.
        sent: bytes that it sent.
        listens: what it serves on, such as ``80/tcp``.
    """

    name: str
    number: int
    address: str
    mac: str
    port: str
    up: bool
    received: int
    sent: int
    listens: list[str]


class View(msgspec.Struct, frozen=True, tag="view"):
    """What is there."""

    bridge: str
    mac: str
    subnet: str
    members: list[Seen]


Request = Join | Look | End
Reply = Ready | Joined | Refused | View
encode = msgspec.msgpack.encode
decode_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
decode_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
