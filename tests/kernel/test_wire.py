"""Messages as frames: what is one, what is none, and how large it may get."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsmagic.kernel import wire

KEY = wire.Key(b"key")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(JSON, JSON, st.lists(st.binary(max_size=50), max_size=3))
def test_a_message_comes_out_as_it_went_in(content: Any, metadata: Any, buffers: list[bytes]) -> None:
    frames = wire.Writer(KEY).frames(
        "x_reply", content, parent=b'{"msg_id":"p"}', metadata=metadata, buffers=buffers
    )
    message = wire.parse([b"identity", *frames], KEY)
    assert (message.header.msg_type, message.parent_id, message.identities) == ("x_reply", "p", [b"identity"])
    assert wire.loads(message.parts[3]) == content
    assert wire.loads(message.parts[2]) == (metadata or {})
    assert message.buffers == buffers
    again = wire.parse(wire.signed(message, wire.Key(b"other")), wire.Key(b"other"))
    assert again.parts == message.parts


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([wire.DELIMITER, b"{}", b'{"msg_id":"a","msg_type":"b"}']),
        max_size=24,
    )
)
def test_any_frames_are_a_message_or_a_wire_error(frames: list[bytes]) -> None:
    for key in (KEY, wire.Key(b"")):
        try:
            message = wire.parse(frames, key)
        except wire.WireError:
            continue
        assert len(message.parts) == 4
        assert key is not KEY
    assert isinstance(wire.parent_of(frames), str)


def test_a_wrong_signature_is_refused_whatever_is_changed() -> None:
    frames = wire.Writer(KEY).frames("stream", {"text": "x"}, parent=b'{"msg_id":"p"}')
    assert wire.parse(frames, KEY).parent_id == "p"
    for place in range(1, 6):
        changed = [*frames]
        changed[place] = frames[place] + b" "
        with pytest.raises(wire.WireError):
            wire.parse(changed, KEY)
    with pytest.raises(wire.WireError):
        wire.parse(frames, wire.Key(b"another"))


@given(st.binary(max_size=200) | st.text(max_size=100).map(json.dumps).map(str.encode))
def test_any_bytes_are_data_or_a_wire_error_and_data_can_be_written(part: bytes) -> None:
    try:
        value = wire.loads(part)
    except wire.WireError:
        return
    json.loads(wire.dumps(value))


@pytest.mark.parametrize(
    "part",
    [
        b'"\\ud800"',
        b'{"\\udfff":["\\ud800x"]}',
        b"NaN",
        b"[Infinity,-Infinity,1e999]",
        b"9" * 4000,
        b'"\xff\xfe"',
        b"[" * 900 + b"]" * 900,
    ],
)
def test_what_strict_json_has_not_is_read_and_written_so_that_anybody_can(part: bytes) -> None:
    json.loads(wire.dumps(wire.loads(part)).decode("utf-8"))


@pytest.mark.parametrize(
    "part",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b"9" * 5000,
        b"",
        b"{",
        b"\0",
        b"[" + b"[]," * (wire.MAX_VALUES // 2 + 1) + b"0]",
    ],
    ids=["deep", "long number", "empty", "cut off", "NUL", "many"],
)
def test_what_is_no_json_or_too_much_is_refused(part: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.loads(part)


BRACKETS = b'{[,\\"\\\\' * 300_000


@pytest.mark.parametrize(
    "text", [b'"' + b"{[," * 700_000 + b'"', b'{"text":"' + BRACKETS + b'"}', b'["' + BRACKETS + b'",1,2]']
)
def test_text_may_hold_as_many_brackets_as_it_likes(text: bytes) -> None:
    assert len(str(wire.loads(text))) > 1_000_000


@pytest.mark.parametrize("unit", [b'{"":0},', b"[[]],", b'"",', b"300,", b'"a\\"b",', b'"\\\\",', b'{"a":'])
def test_json_never_takes_up_much_more_memory_than_its_bound(unit: bytes) -> None:
    part = b"[" + unit * (12_000_000 // len(unit)) + b"0]"
    tracemalloc.start()
    try:
        with pytest.raises(wire.WireError):
            wire.loads(part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20, f"{peak >> 20} MiB"
