"""Our half of ZMTP against real libzmq, and against bytes that are anything."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from nsmagic.kernel import zmtp
from nsmagic.kernel.zmtp import Peer, ProtocolError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x06\x05READY"
MOST = 1 << 16


def pair(**given: Any) -> tuple[Peer, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # noqa: FBT003 - the library's signature
    return Peer(ours, "DEALER", **{"max_bytes": MOST, **given}), theirs


def read_all(peer: Peer) -> list[list[bytes] | TooLarge]:
    """What has come already."""
    found = []
    while True:
        found += peer.read()
        if peer.empty:
            return found


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | 2,)) + struct.pack("!Q", len(body)) + body


# ---- libzmq ---------------------------------------------------------------------------------


Connected = Callable[..., "tuple[Peer, zmq.Socket[bytes]]"]


@pytest.fixture
def connected(tmp_path: Path) -> Iterator[Connected]:
    """Give a function that connects a peer to a socket of libzmq's."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    opened: list[Any] = []

    def connect(kind: int, **given: Any) -> tuple[Peer, zmq.Socket[bytes]]:
        theirs = context.socket(kind)
        theirs.rcvtimeo = theirs.sndtimeo = 10_000
        theirs.bind(f"ipc://{tmp_path}/s")
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(f"{tmp_path}/s")
        ours.setblocking(False)  # noqa: FBT003 - the library's signature
        role: Any = "SUB" if kind in {zmq.PUB, zmq.XPUB} else "DEALER"
        peer = Peer(ours, role, **{"max_bytes": 64 << 20, **given})
        opened.extend([peer, theirs])
        return peer, theirs

    yield connect
    for each in opened:
        each.close()
    context.destroy(linger=0)


def shake_hands(peer: Peer) -> None:
    """Until both sides are ready and we have said what we had to say."""
    for _ in range(1000):
        if peer.ready and not peer.wants_write:
            return
        peer.write()
        if select.select([peer], [], [], 0.1)[0]:
            assert peer.read() == []
    raise AssertionError("no handshake")


def receive(peer: Peer, count: int) -> list[list[bytes] | TooLarge]:
    found: list[list[bytes] | TooLarge] = []
    while len(found) < count:
        wanted = [peer] if peer.wants_write else []
        if not peer.behind:
            assert select.select([peer], wanted, [], 10) != ([], [], []), "nothing came"
        peer.write()
        found += peer.read()
    return found


MESSAGES = [
    [b"one"],
    [b"", b"", b""],
    [b"x" * 255, b"y" * 256, b"z" * 257],
    [b"large" * 2_000_000, b"", b"small"],
    [b"part"] * 1000,
]


def test_requests_go_to_a_real_router_and_back(connected: Connected) -> None:
    peer, router = connected(zmq.ROUTER, identity=b"us")
    assert peer.send([b"first"])
    shake_hands(peer)
    assert router.recv_multipart() == [b"us", b"first"]
    for parts in MESSAGES:
        router.send_multipart([b"us", *parts])
    assert receive(peer, len(MESSAGES)) == MESSAGES
    for parts in MESSAGES[:3]:
        assert peer.send(parts)
        assert router.recv_multipart() == [b"us", *parts]


@pytest.mark.parametrize("kind", [zmq.PUB, zmq.XPUB])
def test_what_a_real_publisher_publishes_is_heard(connected: Connected, kind: int) -> None:
    peer, publisher = connected(kind)
    shake_hands(peer)
    if kind == zmq.XPUB:
        assert publisher.recv() == b"\x01"
    for _ in range(1000):  # a PUB does not tell of a subscription
        publisher.send(b"there?")
        if select.select([peer], [], [], 0.01)[0] and peer.read():
            break
    else:
        raise AssertionError("never heard")
    for parts in MESSAGES:
        publisher.send_multipart(parts)
    found = [each for each in receive(peer, len(MESSAGES)) if each != [b"there?"]]
    while len(found) < len(MESSAGES):
        found += [each for each in receive(peer, 1) if each != [b"there?"]]
    assert found == MESSAGES


def test_a_message_over_the_bound_is_counted_and_the_next_is_whole(connected: Connected) -> None:
    peer, router = connected(zmq.ROUTER, identity=b"us", max_bytes=MOST)
    peer.send([b"first"])
    shake_hands(peer)
    assert router.recv_multipart() == [b"us", b"first"]
    router.send_multipart([b"us", b"head", b"x" * (5 * MOST), b"tail"])
    router.send_multipart([b"us", b"part"] + [b""] * zmtp.MAX_FRAMES)
    router.send_multipart([b"us", b"next"])
    large, many, after = receive(peer, 3)
    assert large == TooLarge([b"head"], 8 + 5 * MOST)
    assert isinstance(many, TooLarge)
    assert len(many.parts) == zmtp.MAX_FRAMES
    assert after == [b"next"]


# ---- anything else ---------------------------------------------------------------------------------


def piece() -> st.SearchStrategy[bytes]:
    """Bytes that look like ZMTP more often than chance would have it."""
    return st.one_of(
        st.binary(max_size=80),
        st.sampled_from(
            [
                GREETING,
                READY,
                b"\x04\x06\x05ERROR",
                b"\x01\x01x",
                b"\x00\x00",
                b"\x02" + b"\xff" * 8,
                b"\x06" + bytes(8),
            ]
        ),
        st.builds(frame, st.binary(max_size=300), st.sampled_from([0, 1, 4, 5])),
        st.builds(lambda size: b"\x02" + struct.pack("!Q", size), st.integers(0, (1 << 64) - 1)),
    ).filter(lambda data: len(data) < 1000)


@given(st.lists(piece(), max_size=20), st.booleans())
def test_any_bytes_give_messages_or_one_of_two_errors(pieces: list[bytes], greeted: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    peer, theirs = pair(max_bytes=500)
    try:
        for data in [GREETING + READY, *pieces] if greeted else pieces:
            theirs.sendall(data)
            for message in read_all(peer):
                parts = message.parts if isinstance(message, TooLarge) else message
                assert sum(map(len, parts)) <= 500
                assert len(parts) <= zmtp.MAX_FRAMES
            assert len(peer._incoming) < 6000
        theirs.close()
        read_all(peer)
    except (ProtocolError, EOFError):
        pass
    finally:
        theirs.close()
        peer.close()


@given(st.lists(st.lists(st.binary(max_size=600), min_size=1, max_size=6), max_size=10), st.integers(1, 700))
def test_messages_come_whole_however_they_are_cut(messages: list[list[bytes]], cut: int) -> None:
    data = GREETING + READY + b"".join(
        b"".join(frame(part, 1) for part in parts[:-1]) + frame(parts[-1]) for parts in messages
    )  # fmt: skip
    peer, theirs = pair()
    found = []
    for begin in range(0, len(data), cut):
        theirs.sendall(data[begin : begin + cut])
        found += read_all(peer)
    assert found == messages
    theirs.close()
    peer.close()


@pytest.mark.parametrize("body", [b"\0\0", b"\x04\x00"])
def test_a_read_takes_a_few_frames_however_many_came(body: bytes) -> None:
    peer, theirs = pair()
    theirs.sendall(GREETING + READY)
    read_all(peer)
    theirs.sendall(body * 20_000)
    assert len(peer.read()) <= 32
    assert peer.behind
    assert not peer.empty
    found = len(read_all(peer))
    assert not peer.behind
    assert found >= 20_000 - 64 if body == b"\0\0" else found == 0
    theirs.close()
    with pytest.raises(EOFError):
        peer.read()
    peer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n".ljust(64),
        GREETING.replace(b"NULL", b"PLAI"),
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING + b"\x00\x01x",
        GREETING + b"\x04\x06\x05ERROR",
        GREETING + READY + b"\xf0\x00",
        GREETING + READY + b"\x06" + struct.pack("!Q", 5000),
        GREETING + READY + b"\x02" + b"\xff" * 8,
    ],
)
def test_what_is_no_zmtp_is_an_error(data: bytes) -> None:
    peer, theirs = pair()
    theirs.sendall(data)
    with pytest.raises(ProtocolError):
        read_all(peer)
    theirs.close()
    peer.close()


def test_a_kernel_that_does_not_read_is_owed_so_much_and_no_more() -> None:
    peer, theirs = pair()
    theirs.sendall(GREETING + READY)
    read_all(peer)
    sent = 0
    while peer.send([b"x" * (8 << 20)]):
        sent += 1
        assert sent < 20
    assert peer.unsent <= zmtp.MAX_UNSENT
    assert peer.wants_write
    theirs.close()
    peer.close()
