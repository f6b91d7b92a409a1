"""Values in data-only formats: what goes in comes out, and bytes from a container run no code."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import pickle
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsmagic import values
from nsmagic.values import NotDataError

DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal and of equal types, all the way down; NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(type, one)) == list(map(type, other)) and all(
            same(one[key], other.get(key)) for key in one
        )
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    return bool(one == other)


@given(DATA)
def test_what_goes_in_comes_out(value: Any) -> None:
    assert same(values.decode(values.encode(value)), value)


@given(st.sets(st.integers() | st.text()), st.frozensets(st.integers()))
def test_sets(one: set[object], other: frozenset[int]) -> None:
    assert values.decode(values.encode([one, other])) == [one, other]
    assert type(values.decode(values.encode(other))) is frozenset


@pytest.mark.parametrize(
    "value",
    [
        2**64,
        -(2**64),
        2**63,
        -(2**63),
        -(2**63) - 1,
        10**3000,
        -(10**3000),
        True,
        0.0,
        -0.0,
        math.inf,
        "\U0001f600",
        "\0",
    ],
    ids=lambda value: str(value)[:20],
)
def test_odd_numbers_and_texts(value: object) -> None:
    assert same(values.decode(values.encode(value)), value)


class Strange(dict[str, int]):
    """Looks like data and is not: it may hold more than its items."""


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        print,
        type,
        Strange(a=1),
        [Strange()],
        {"a": {1: object()}},
        {object(): 1},
        range(3),
        iter([]),
        Ellipsis,
        dt.timezone.utc,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_data_is_refused(value: object) -> None:
    with pytest.raises(NotDataError, match="no data-only form"):
        values.encode(value)


def test_what_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(NotDataError, match="nested"):
        values.encode(loop)
    deep: list[object] = []
    for _ in range(values.MAX_DEPTH + 2):
        deep = [deep]
    with pytest.raises(NotDataError, match="nested"):
        values.encode(deep)


def test_a_text_that_is_no_text_is_refused_as_such() -> None:
    for value in ("\ud800", ["\ud800"], {"\ud800": 1}, ("\ud800",)):
        with pytest.raises(NotDataError):
            values.encode(value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("pickle was opened",))


def ext(code: int, body: bytes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, body))


@pytest.mark.parametrize("code", range(-128, 128))
def test_every_kind_with_a_pickle_or_with_nothing_in_it(code: int) -> None:
    for body in (
        pickle.dumps(Evil()),
        b"",
        b"\xc0",
        b"\x93\x01\x02\x03",
        b"\x90",
        b"\xff" * 50,
        b"\x91" * 50_000,
    ):
        try:
            values.decode(ext(code, body))
        except NotDataError as error:
            assert len(str(error)) < 400


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "body",
    [
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Evil()])),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Evil()])),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", b"x" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 99999999999999999999), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", b"x" * 8),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", b"x" * 9),
        npy("{'descr': '|V9999999999', 'fortran_order': False, 'shape': (0,), }"),
        npy("__import__('os').system('false')"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + " " * 9, b"x" * 8, b"\x09\x00"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"\x93NUMPY",
    ],
    ids=range(13),
)  # fmt: skip
def test_hostile_arrays(body: bytes) -> None:
    pytest.importorskip("numpy", reason="host: numpy is not installed")
    tracemalloc.start()
    try:
        with pytest.raises(NotDataError):
            values.decode(ext(6, body))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_an_error(data: bytes) -> None:
    with contextlib.suppress(NotDataError):
        values.decode(data)


def test_deep_bytes_are_refused() -> None:
    with pytest.raises(NotDataError):
        values.decode(b"\x91" * 1_000_000 + b"\xc0")
    nested = b"\xc0"
    for _ in range(300):
        nested = ext(1, b"\x91" + nested)
    with contextlib.suppress(NotDataError):
        values.decode(nested)


def test_an_integer_without_end_is_refused() -> None:
    with pytest.raises(NotDataError):
        values.decode(ext(4, b"\x7f" * 5000))


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", "f8", "c16", "S5", "U5", "M8[ns]", "m8[s]", ">i4"])
def test_arrays(dtype: str) -> None:
    numpy = pytest.importorskip("numpy", reason="host: numpy is not installed")
    array = numpy.zeros((2, 3), dtype)
    back = values.decode(values.encode(array))
    assert back.dtype == array.dtype
    assert (back == array).all()
    scalar = values.decode(values.encode(array[0, 0]))
    assert scalar == array[0, 0]
    assert type(scalar) is type(array[0, 0])


def test_odd_arrays() -> None:
    numpy = pytest.importorskip("numpy", reason="host: numpy is not installed")
    for array in (
        numpy.zeros(()),
        numpy.zeros((0, 3)),
        numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        numpy.arange(10)[::-2],
        numpy.zeros(3, [("a", "i4"), ("b", "S2")]),
    ):
        back = values.decode(values.encode(array))
        assert back.shape == array.shape
        assert (back == array).all()
    with pytest.raises(NotDataError, match="objects"):
        values.encode(numpy.array([None]))
    with pytest.raises(NotDataError, match="objects"):
        values.encode(numpy.zeros(2, [("a", "O")]))


def test_frames_and_series() -> None:
    pandas = pytest.importorskip("pandas", reason="host: pandas is not installed")
    frame = pandas.DataFrame(
        {"n": [1, 2], "s": ["a", None], "f": [0.5, float("nan")], 3: [True, False]},
        index=pandas.Index([5, 6], name="i"),
    )
    back = values.decode(values.encode(frame))
    pandas.testing.assert_frame_equal(back, frame)
    pandas.testing.assert_series_equal(values.decode(values.encode(frame["f"])), frame["f"])
    pandas.testing.assert_frame_equal(
        values.decode(values.encode(pandas.DataFrame())), pandas.DataFrame(), check_column_type=False
    )
    twice = pandas.DataFrame([[1, 2]], columns=["a", "a"])
    pandas.testing.assert_frame_equal(values.decode(values.encode(twice)), twice)


def test_a_table_of_many_columns_is_bounded() -> None:
    pandas = pytest.importorskip("pandas", reason="host: pandas is not installed")
    frame = pandas.DataFrame([[0] * 2000])
    assert values.decode(values.encode(frame)).shape == (1, 2000)


def test_a_forged_frame_that_asks_for_a_giant_index_is_refused() -> None:
    pytest.importorskip("pandas", reason="host: pandas is not installed")
    series = msgspec.msgpack.encode([None, [0, 10**12, 1], 5])
    with pytest.raises(NotDataError):
        values.decode(ext(9, series))
