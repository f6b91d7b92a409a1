"""Network devices, as ``ip link``, ``ip address`` and ``ip route`` make them: one message to the kernel each.

>>> veth("port0", "eth0", pid)
>>> address("port0", "10.9.0.1/24")
>>> up("port0")

Everything is done in the network namespace of the caller.  A message is a header, a fixed part, and
attributes: a length, a kind, a value, some of which hold attributes again.  See netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Final

_NETLINK: Final = getattr(socket, "AF_NETLINK", 16)
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_ERROR: Final = 2
_NEW_LINK, _SET_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 19, 20, 24
_NAME, _MASTER, _LINK_INFO, _NET_NS_PID = 3, 10, 18, 19
_KIND, _DATA, _PEER = 1, 2, 1
_ADDRESS, _LOCAL, _GATEWAY = 1, 2, 5
_UP: Final = 1
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_HEADER: Final = struct.Struct("=IHHII")
_MOST: Final = 8192


def veth(name: str, peer: str, pid: int) -> None:
    """Lay a cable from here into the network namespace of a process: a device at each end.

    Raises:
        OSError: EPERM (no CAP_NET_ADMIN in the user namespace that owns one of the two network namespaces),
            EEXIST (a device of that name is there).

    See veth(4).
    """
    other = _link() + _text(_NAME, peer) + _number(_NET_NS_PID, pid)
    info = _text(_KIND, "veth") + _attribute(_DATA, _attribute(_PEER, other))
    _ask(
        _NEW_LINK,
        _CREATE | _EXCLUSIVE,
        _link() + _text(_NAME, name) + _attribute(_LINK_INFO, info),
        f"veth({name}, {peer}, {pid})",
    )


def bridge(name: str) -> None:
    """Make a switch, which knows nothing but Ethernet: what comes in at one port goes out at another.

    Raises:
        OSError: EPERM, EEXIST, EOPNOTSUPP (a kernel without bridges).
    """
    info = _attribute(_LINK_INFO, _text(_KIND, "bridge"))
    _ask(_NEW_LINK, _CREATE | _EXCLUSIVE, _link() + _text(_NAME, name) + info, f"bridge({name})")


def plug(name: str, switch: str) -> None:
    """Make a device a port of a bridge.

    Raises:
        OSError: EPERM, ENODEV.
    """
    _ask(_SET_LINK, 0, _link(_index(name)) + _number(_MASTER, _index(switch)), f"plug({name}, {switch})")


def up(name: str) -> None:
    """Switch a device on.

    Raises:
        OSError: EPERM, ENODEV.
    """
    _ask(_SET_LINK, 0, _link(_index(name), _UP), f"up({name})")


def address(name: str, network: str) -> None:
    """Give a device an IPv4 address with the length of its network's prefix: ``10.9.0.1/24``.

    Raises:
        OSError: EPERM, ENODEV, EEXIST.
        ValueError: that is no address.
    """
    given = ipaddress.IPv4Interface(network)
    fixed = struct.pack("=BBBBI", socket.AF_INET, given.network.prefixlen, 0, 0, _index(name))
    words = _attribute(_LOCAL, given.ip.packed) + _attribute(_ADDRESS, given.ip.packed)
    _ask(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, fixed + words, f"address({name}, {network})")


def gateway(through: str) -> None:
    """Send what is for nobody known to a neighbour: the default route.

    Raises:
        OSError: EPERM, ENETUNREACH (that is no neighbour), EEXIST.
        ValueError: that is no address.
    """
    neighbour = ipaddress.IPv4Address(through).packed
    fixed = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, 0)
    _ask(_NEW_ROUTE, _CREATE | _EXCLUSIVE, fixed + _attribute(_GATEWAY, neighbour), f"gateway({through})")


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(
            error.errno, f"there is no device {name!r} here: {os.strerror(error.errno or 0)}"
        ) from None


def _link(index: int = 0, flags: int = 0) -> bytes:
    """The fixed part of a message about a device; only the flags that are given are changed."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to a multiple of four bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return _attribute(kind, struct.pack("=I", number))


def _ask(kind: int, flags: int, body: bytes, call: str) -> None:
    """Send one message and wait for the kernel's answer: an errno, 0 where it is done."""
    header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0)
    with socket.socket(_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.sendto(header + body, (0, 0))
        answer = channel.recv(_MOST)
    number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if _HEADER.unpack_from(answer)[1] == _ERROR and number:
        raise OSError(number, f"{call}: {os.strerror(number)}")
