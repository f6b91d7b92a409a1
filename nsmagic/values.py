"""Values on their way into and out of a container, in formats that hold data and nothing else.

None, bool, int, float, complex, str, bytes, datetime, lists, tuples, sets, dicts, numpy arrays and scalars of
plain types, pandas frames and series: MessagePack, with ``.npy`` for arrays.  Decoding runs no code that the
bytes could choose: **pickle is never used on what a container wrote**.
Used by the owner and by the runner; knows neither.
"""

from __future__ import annotations

import datetime as dt
import io
import math
import sys
from typing import Any, Final

import msgspec

MAX_DEPTH: Final = 64
MAX_OBJECTS: Final = 8 << 20
"""Encoded bytes of lists, dicts and the like: decoded, their objects may take 70 times as much."""
MAX_HASHED: Final = 10_000
"""Members of a set, or keys, that somebody could have chosen for all to have the same hash."""

_TEXT_OR_BYTES: Final = frozenset({0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_EXTS: Final = {0xD4: 1, 0xD5: 1, 0xD6: 1, 0xD7: 1, 0xD8: 1, 0xC7: 2, 0xC8: 3, 0xC9: 5}
"""MessagePack's extension headers, and where in them the type stands."""

_TUPLE, _SET, _FROZENSET, _INTEGER, _COMPLEX, _ARRAY, _SCALAR, _FRAME, _SERIES, _PAIRS, _DATETIME, _DATE = (
    range(1, 13)
)
_INT64: Final = 1 << 63
_MAX_DIGITS: Final = 4000


class NotDataError(ValueError):
    """This value has no data-only form; the text says which part and what it is."""


def encode(value: object) -> bytes:
    """The value as bytes.

    Raises:
        NotDataError: it, or a part of it, has no data-only form.
    """
    try:
        return msgspec.msgpack.encode(_pack(value, 0))
    except UnicodeEncodeError:
        raise NotDataError("a text with half a surrogate pair has no data-only form") from None


def decode(data: bytes) -> Any:
    """The value that the bytes stand for.

    Raises:
        NotDataError: the bytes are malformed, or would take much more memory or time than their size tells.
    """
    try:
        return _decode(data)
    except NotDataError:
        raise
    except Exception as error:  # noqa: BLE001 - numpy and pandas raise what they like at bytes made to hurt
        raise NotDataError(f"malformed value ({type(error).__name__})") from None


def _decode(data: bytes | memoryview | msgspec.Raw) -> Any:
    """Text, bytes and arrays of any size; other values up to ``MAX_OBJECTS`` bytes."""
    view = memoryview(data)
    kind = view[0] if len(view) > 0 else 0
    plain = 0xA0 <= kind <= 0xBF or kind in _TEXT_OR_BYTES  # noqa: PLR2004 - MessagePack's fixstr
    large = kind in _EXTS and view[_EXTS[kind]] in {_ARRAY, _SCALAR, _FRAME, _SERIES}
    if len(view) > MAX_OBJECTS and not plain and not large:
        raise NotDataError(f"more than {MAX_OBJECTS} bytes of single objects; use an array, or write a file")
    return msgspec.msgpack.decode(data, ext_hook=_unpack)


def _ext(code: int, value: object) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, value if isinstance(value, bytes) else msgspec.msgpack.encode(value))


def _pack(value: object, depth: int) -> object:  # noqa: C901, PLR0911 - a table of types reads best in one piece
    if depth > MAX_DEPTH:
        raise NotDataError(f"nested more than {MAX_DEPTH} deep, or within itself")
    kind = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        number: int = value  # type: ignore[assignment]
        if -_INT64 <= number < _INT64:
            return number
        return _ext(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))
    if kind is list:
        return [_pack(item, depth + 1) for item in value]  # type: ignore[attr-defined]
    if kind is dict:
        items: dict[object, object] = value  # type: ignore[assignment]
        if all(type(key) is str for key in items):
            return {key: _pack(item, depth + 1) for key, item in items.items()}
        return _ext(_PAIRS, [[_pack(key, depth + 1), _pack(item, depth + 1)] for key, item in items.items()])
    if kind in (tuple, set, frozenset):
        code = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}[kind]
        return _ext(code, [_pack(item, depth + 1) for item in value])  # type: ignore[attr-defined]
    if kind is complex:
        return _ext(_COMPLEX, [value.real, value.imag])  # type: ignore[attr-defined]
    if kind is bytearray:
        return bytes(value)  # type: ignore[call-overload]
    if kind is dt.datetime:
        return _ext(_DATETIME, value.isoformat())  # type: ignore[attr-defined]
    if kind is dt.date:
        return _ext(_DATE, value.isoformat())  # type: ignore[attr-defined]
    return _pack_array(value, depth)


def _pack_array(value: Any, depth: int) -> object:
    """Numpy's and pandas' types, without importing what the value's owner has not imported itself."""
    numpy, pandas = (sys.modules.get(name) for name in ("numpy", "pandas"))
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _ext(_SCALAR if isinstance(value, numpy.generic) else _ARRAY, _npy(numpy, value))
    if pandas is not None and type(value) is pandas.Series:
        return _ext(_SERIES, _pack_series(value, depth))
    if pandas is not None and type(value) is pandas.DataFrame:
        columns = [_pack_series(value.iloc[:, i], depth) for i in range(value.shape[1])]
        return _ext(_FRAME, [_pack_index(value.index, depth), columns])
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise NotDataError(f"a {name[:200]} has no data-only form")


def _npy(numpy: Any, value: Any) -> bytes:
    if value.dtype.hasobject:
        raise NotDataError("a numpy array of Python objects has no data-only form")
    buffer = io.BytesIO()
    numpy.save(buffer, value, allow_pickle=False)
    return buffer.getvalue()


def _pack_index(index: Any, depth: int) -> object:
    if type(index).__name__ == "RangeIndex":
        return [index.start, index.stop, index.step]
    return {"name": _pack(index.name, depth + 1), "values": _pack_column(index, depth)}


def _pack_column(column: Any, depth: int) -> object:
    array = column.to_numpy()
    if array.dtype.hasobject:
        return _pack(array.tolist(), depth + 1)
    return _pack_array(array, depth)


def _pack_series(series: Any, depth: int) -> list[object]:
    return [_pack(series.name, depth + 1), _pack_index(series.index, depth), _pack_column(series, depth)]


def _load_npy(data: memoryview) -> Any:
    import numpy as np  # noqa: PLC0415 - only where an array arrives

    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=4096)
    # A header may claim any size; memory is given out only for what is really there.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise NotDataError("an array whose header does not fit its data")
    file.seek(0)
    return np.load(file, allow_pickle=False, max_header_size=4096)


def _hashable(members: list[Any]) -> list[Any]:
    """Members whose hashes nobody can have made all equal; or few of them.

    Python's hash of text is keyed, that of numbers is not: of whole numbers beyond 64 bits, of fractions and
    of tuples one can make any number with one hash, and then a set of them takes quadratic time.
    """
    if len(members) > MAX_HASHED and not all(
        type(each) in (str, bytes, bool) or (type(each) is int and -_INT64 <= each < _INT64)
        for each in members
    ):
        raise NotDataError(
            f"more than {MAX_HASHED} members of a set, or keys, that are not text or plain numbers"
        )
    return members


def _unpack_index(raw: msgspec.Raw, length: int) -> Any:
    import pandas as pd  # noqa: PLC0415 - only where a frame arrives

    index = _decode(raw)
    if isinstance(index, list):
        start, stop, step = (int(part) for part in index)
        found = pd.RangeIndex(start, stop, step)
    else:
        found = pd.Index(_column(index["values"]), name=index["name"])
    if len(found) != length:
        raise NotDataError("an index whose length is not that of its columns")
    return found


def _column(values: Any) -> Any:
    """A list or an array of one dimension: anything else pandas would spread over the whole index."""
    if not isinstance(values, list) and getattr(values, "ndim", 0) != 1:
        raise NotDataError("a column that is no list and no array")
    return values


def _unpack(code: int, data: memoryview) -> Any:  # noqa: C901, PLR0911 - the same table the other way
    if code == _INTEGER:
        if len(data) > _MAX_DIGITS:
            raise NotDataError("an integer of too many digits")
        return int.from_bytes(data, "big", signed=True)
    if code == _ARRAY:
        return _load_npy(data)
    if code == _SCALAR:
        return _load_npy(data)[()]
    if code in (_FRAME, _SERIES):
        return _unpack_pandas(code, data)
    inner = _decode(data)
    if code == _TUPLE:
        return tuple(inner)
    if code == _SET:
        return set(_hashable(inner))
    if code == _FROZENSET:
        return frozenset(_hashable(inner))
    if code == _COMPLEX:
        return complex(*inner)
    if code == _PAIRS:
        _hashable([key for key, _ in inner])
        return {key: item for key, item in inner}  # noqa: C416 - each must be a pair; dict() takes more
    if code == _DATETIME:
        return dt.datetime.fromisoformat(inner)
    if code == _DATE:
        return dt.date.fromisoformat(inner)
    raise NotDataError(f"unknown kind of value {code}")


def _unpack_pandas(code: int, data: memoryview) -> Any:
    import pandas as pd  # noqa: PLC0415 - only where a frame arrives

    if code == _SERIES:
        name, index, column = msgspec.msgpack.decode(data, type=tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw])
        values = _column(_decode(column))
        return pd.Series(values, index=_unpack_index(index, len(values)), name=_decode(name))
    index, raw_columns = msgspec.msgpack.decode(
        data, type=tuple[msgspec.Raw, list[tuple[msgspec.Raw, msgspec.Raw, msgspec.Raw]]]
    )
    columns = [_column(_decode(column)) for _, _, column in raw_columns]
    if not columns:
        return pd.DataFrame()
    rows = _unpack_index(index, len(columns[0]))
    frame = pd.DataFrame({i: pd.Series(column, index=rows) for i, column in enumerate(columns)}, index=rows)
    frame.columns = pd.Index([_decode(name) for name, _, _ in raw_columns])
    return frame
