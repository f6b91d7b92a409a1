"""The wire format: what is sent arrives, and nothing else gets through."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsmagic.launcher import frames
from nsmagic.launcher.frames import FrameError, FrameReader

MESSAGES: list[Any] = [
    frames.Ready(),
    frames.Display(
        "display",
        {"text/plain": msgspec.Raw(b"\xa1x"), "image/png": msgspec.Raw(b"\xc4\x01\x89")},
        msgspec.Raw(msgspec.msgpack.encode({"a": [1, {"b": None}]})),
        "id",
        update=True,
    ),
    frames.Clear(wait=False),
    frames.Failure("E", "v\n", ["a", "b"]),
    frames.Ask("? ", password=True),
    frames.NoProgram(2),
    frames.Done(3, {"a": b"\xc0"}, {"b": "no"}),
    frames.Exited(256),
]


def raw(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def bodies(messages: list[Any]) -> list[bytes]:
    """Messages as they are on the wire: what a display holds stays undecoded, so it cannot be compared itself."""
    return [frames.encode(message) for message in messages]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_each_message_arrives(message: Any) -> None:
    (found,) = FrameReader().feed(frames.encode_frame(message))
    assert type(found) is type(message)
    assert frames.encode(found) == frames.encode(message)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64])
def test_frames_arrive_in_pieces(size: int) -> None:
    stream = b"".join(map(frames.encode_frame, MESSAGES))
    reader, found = FrameReader(), []
    for at in range(0, len(stream), size):
        found += list(reader.feed(stream[at : at + size]))
    assert bodies(found) == bodies(MESSAGES)


def test_what_a_display_holds_is_decoded_within_bounds() -> None:
    (found,) = FrameReader().feed(frames.encode_frame(MESSAGES[1]))
    assert isinstance(found, frames.Display)
    assert {name: frames.loads(value) for name, value in found.data.items()} == {
        "text/plain": "x",
        "image/png": b"\x89",
    }
    assert frames.loads(found.metadata) == {"a": [1, {"b": None}]}
    many = msgspec.Raw(msgspec.msgpack.encode([None] * (frames.MAX_OBJECTS + 1)))
    with pytest.raises(FrameError, match="too many objects"):
        frames.loads(many)
    text = msgspec.Raw(msgspec.msgpack.encode("x" * (frames.MAX_OBJECTS + 1)))
    assert len(frames.loads(text)) == frames.MAX_OBJECTS + 1
    for raw_value in (b"", b"\xc1", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        with pytest.raises(FrameError):
            frames.loads(msgspec.Raw(raw_value))


@pytest.mark.parametrize(
    "message",
    [
        frames.Done(0, {str(n): b"" for n in range(frames.MAX_ENTRIES + 1)}, {}),
        frames.Done(0, {}, {str(n): "" for n in range(frames.MAX_ENTRIES + 1)}),
        frames.Failure("E", "v", [""] * (frames.MAX_LINES + 1)),
        frames.Display("display", {}, msgspec.Raw(b"\x80"), "x" * (frames.MAX_NAME + 1)),
        frames.Display(
            "display",
            {str(n): msgspec.Raw(b"\xc0") for n in range(frames.MAX_ENTRIES + 1)},
            msgspec.Raw(b"\x80"),
        ),
    ],
    ids=["values", "problems", "lines", "name", "kinds"],
)
def test_too_many_parts_are_refused(message: Any) -> None:
    with pytest.raises(FrameError):
        list(FrameReader().feed(frames.encode_frame(message)))


def test_many_frames_in_one_piece() -> None:
    stream = frames.encode_frame(frames.Ready()) * 10_000
    assert len(list(FrameReader().feed(stream))) == 10_000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xc1", b"\xc0", b"\x01", b"\x90", b"\x80", b"\xa5ready",
        msgspec.msgpack.encode({"type": "unknown"}),
        msgspec.msgpack.encode({"type": "job"}),
        msgspec.msgpack.encode({"type": "spawn"}),
        msgspec.msgpack.encode({"type": "answer", "text": "x"}),
        msgspec.msgpack.encode({"type": "exited"}),
        msgspec.msgpack.encode({"type": "exited", "status": "x"}),
        msgspec.msgpack.encode({"type": "exited", "status": 1.5}),
        msgspec.msgpack.encode({"type": "exited", "status": None}),
        msgspec.msgpack.encode({"type": "clear", "wait": 1}),
        msgspec.msgpack.encode({"type": "failure", "ename": "E", "evalue": "v", "traceback": [1]}),
        msgspec.msgpack.encode({"type": "done", "exit_status": 0, "values": {"a": "text"}, "problems": {}}),
        msgspec.msgpack.encode({"type": "display", "kind": "k", "data": {1: 2}, "metadata": {}}),
        frames.encode(frames.Ready()) + b"\x00",
        b"\x81\xa4type\xa5rea\xffy",
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ],
    ids=range(26),
)  # fmt: skip
def test_what_is_no_frame_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError) as error:
        list(FrameReader().feed(raw(body)))
    assert len(str(error.value)) < 300


def test_deep_data_is_refused_or_held_but_no_crash() -> None:
    for depth in (10, 100, 1000, 10_000, 100_000):
        body = (
            b"\x84\xa4type\xa7display\xa4kind\xa1k\xa8metadata\x80\xa4data\x81\xa1x"
            + b"\x91" * depth
            + b"\xc0"
        )
        try:
            list(FrameReader().feed(raw(body)))
        except FrameError:
            assert depth > 100


@pytest.mark.parametrize("length", [frames.MAX_SMALL_FRAME + 1, frames.MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_at_once(length: int) -> None:
    with pytest.raises(FrameError, match="over the limit"):
        list(FrameReader().feed(struct.pack("!I", length)))


def test_the_limit_may_be_raised_where_values_were_asked_for() -> None:
    reader = FrameReader()
    reader.limit = frames.MAX_FRAME
    assert list(reader.feed(struct.pack("!I", frames.MAX_FRAME))) == []
    with pytest.raises(FrameError, match="over the limit"):
        list(FrameReader().feed(struct.pack("!I", frames.MAX_FRAME)))


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        frames.encode_frame(frames.Done(0, {"a": bytes(frames.MAX_FRAME)}, {}))


def test_what_is_announced_is_not_allocated() -> None:
    reader = FrameReader()
    assert list(reader.feed(struct.pack("!I", reader.limit) + b"x")) == []
    assert len(reader._buffer) == 5


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_an_error(data: bytes) -> None:
    for stream in (data, raw(data)):
        try:
            for message in FrameReader().feed(stream):
                assert isinstance(message, frames.FromRunner)
        except FrameError:
            pass


@given(st.sampled_from(MESSAGES), st.integers(0, 200), st.integers(0, 255))
def test_a_flipped_byte_gives_a_message_or_an_error(message: Any, at: int, byte: int) -> None:
    data = bytearray(frames.encode_frame(message))
    data[at % len(data)] = byte
    with contextlib.suppress(FrameError):
        list(FrameReader().feed(bytes(data)))


def test_requests_arrive() -> None:
    entry = frames.Entry(1, b"/\xff", b"text", 3, 0o700, (1, 2))
    spawn = frames.Spawn(
        1,
        2**31,
        0,
        0,
        5,
        6,
        7,
        8,
        None,
        b"/",
        2**60,
        7,
        [entry],
        [(4, 2**63)],
        2,
        into_cgroup=False,
        directories=["/a"],
        joins=[2**28, 2**30],
        proc_from=True,
    )
    assert frames.decode_request(frames.encode(spawn)) == spawn
    assert frames.decode_request(frames.encode(frames.Release(3))) == frames.Release(3)
    assert frames.decode_hello(frames.encode(frames.Hello(1, [("a", "b")]))) == frames.Hello(1, [("a", "b")])
    with pytest.raises(msgspec.MsgspecError):
        frames.decode_request(frames.encode(frames.Ready()))


def test_a_runner_takes_only_what_is_for_it() -> None:
    assert frames.decode_to_runner(frames.encode(frames.Go())) == frames.Go()
    with pytest.raises(msgspec.MsgspecError):
        frames.decode_to_runner(frames.encode(frames.Ready()))
