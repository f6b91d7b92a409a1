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
    return msgspec.msgpack.encode(_pack(value, 0))


def decode(data: bytes) -> Any:
    """The value that the bytes stand for.

    Raises:
        NotDataError: the bytes are malformed.
    """
    try:
        return msgspec.msgpack.decode(data, ext_hook=_unpack)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, EOFError, OverflowError) as error:
        raise NotDataError(f"malformed value: {str(error)[:200]}") from None
    except (MemoryError, ImportError) as error:
        raise NotDataError(f"this value cannot be held here: {error}") from None


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


def _unpack_index(index: Any) -> Any:
    import pandas as pd  # noqa: PLC0415 - only where a frame arrives

    if isinstance(index, list):
        start, stop, step = (int(part) for part in index)
        return pd.RangeIndex(start, stop, step)
    return pd.Index(index["values"], name=index["name"])


def _unpack(code: int, data: memoryview) -> Any:  # noqa: C901, PLR0911 - the same table the other way
    if code == _INTEGER:
        if len(data) > _MAX_DIGITS:
            raise NotDataError("an integer of too many digits")
        return int.from_bytes(data, "big", signed=True)
    if code == _ARRAY:
        return _load_npy(data)
    if code == _SCALAR:
        return _load_npy(data)[()]
    inner = msgspec.msgpack.decode(data, ext_hook=_unpack)
    if code == _TUPLE:
        return tuple(inner)
    if code == _SET:
        return set(inner)
    if code == _FROZENSET:
        return frozenset(inner)
    if code == _COMPLEX:
        return complex(*inner)
    if code == _PAIRS:
        return {key: item for key, item in inner}  # noqa: C416 - each must be a pair; dict() takes more
    if code == _DATETIME:
        return dt.datetime.fromisoformat(inner)
    if code == _DATE:
        return dt.date.fromisoformat(inner)
    if code in (_FRAME, _SERIES):
        return _unpack_pandas(code, inner)
    raise NotDataError(f"unknown kind of value {code}")


def _unpack_pandas(code: int, inner: Any) -> Any:
    import pandas as pd  # noqa: PLC0415 - only where a frame arrives

    if code == _SERIES:
        name, index, column = inner
        return pd.Series(column, index=_unpack_index(index), name=name)
    index, columns = inner
    rows = _unpack_index(index)
    frame = pd.DataFrame(
        {i: pd.Series(column, index=rows) for i, (_, _, column) in enumerate(columns)}, index=rows
    )
    frame.columns = pd.Index([name for name, _, _ in columns])
    return frame
