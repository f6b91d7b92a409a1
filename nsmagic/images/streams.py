"""Bytes on their way from an image's file to the one who reads them: cut out, hashed, uncompressed, counted.

How much comes out of a compressed stream is not known before, so whoever reads asks for so much and gets no
more, and a budget ends what goes on too long.
"""

from __future__ import annotations

import bz2
import errno
import hashlib
import lzma
import os
import zlib
from typing import TYPE_CHECKING, Any, Final

from nsmagic.images.tar import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.images.tar import Source

_CHUNK: Final = 1 << 20
_LOOK_AT_DISK: Final = 64 << 20
_RESERVE: Final = 256 << 20
_INPUT: Final = 1 << 16
_LZMA_MEMORY: Final = 1 << 28
_GZIP: Final = 31  # zlib's number for a gzip stream with the largest window
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
}
_LONGEST_MAGIC: Final = max(map(len, _MAGIC))


class Window:
    """A part of an open file.

    Args:
        descriptor: the file; the caller's to close.
        offset: where the part begins.
        size: its bytes.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._position = offset
        self._end = offset + size

    def read(self, count: int, /) -> bytes:
        """So many bytes; fewer only at the end."""
        parts = []
        while count > 0 and self._position < self._end:
            part = os.pread(self._descriptor, min(count, self._end - self._position), self._position)
            if not part:
                break  # the file was cut meanwhile
            parts.append(part)
            self._position += len(part)
            count -= len(part)
        return b"".join(parts)


class Hashed:
    """Bytes that are hashed as they pass.

    Attributes:
        count: bytes that have passed.
    """

    def __init__(self, source: Source, passed: Callable[[int], None] | None = None) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._passed = passed
        self.count = 0

    def read(self, count: int, /) -> bytes:
        """So many bytes; fewer only at the end."""
        data = self._source.read(count)
        self._hash.update(data)
        self.count += len(data)
        if self._passed is not None:
            self._passed(len(data))
        return data

    def drain(self) -> None:
        """Read all that is left."""
        while self.read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        """Of all that has passed: ``sha256:…``."""
        return f"sha256:{self._hash.hexdigest()}"


class _Gzip:
    """zlib's decompressor with the face that those of bz2, lzma and zstd have."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _zstd() -> Any:
    try:
        from compression import zstd  # noqa: PLC0415 - from Python 3.14 on
    except ImportError:
        try:
            from backports import zstd  # noqa: PLC0415 - optional
        except ImportError:
            raise ArchiveError(
                "it is compressed with zstd, which this Python cannot read; pip install backports.zstd"
            ) from None
    return zstd.ZstdDecompressor()


_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    "zstd": _zstd,
}


def compression(start: bytes) -> str:
    """What a stream is compressed with, by its first bytes; empty for nothing that we know."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")


class Uncompressed:
    """What comes out of a compressed stream, or of several behind one another; out of a plain one, itself.

    Args:
        source: the bytes.
        method: ``gzip``, ``zstd``, ``bzip2``, ``xz``, empty for a plain stream, None to look.
        most: bytes that may come out.

    Raises:
        ArchiveError: from ``read`` too; the stream is damaged, or more than ``most`` comes out.
    """

    def __init__(self, source: Source, method: str | None, most: int) -> None:
        self._source = source
        self._input = source.read(_INPUT) if method is None else b""
        self._make = _MAKERS.get(compression(self._input) if method is None else method)
        self._decompressor = self._make() if self._make else None
        self._most = most
        self._ended = False

    def read(self, count: int, /) -> bytes:
        """So many bytes; fewer only at the end."""
        parts = []
        while count > 0 and not self._ended:
            part = self._more(min(count, _CHUNK))
            parts.append(part)
            count -= len(part)
            self._most -= len(part)
            if self._most < 0:
                raise ArchiveError("it unpacks to more than an image may have")
        return b"".join(parts)

    def _more(self, count: int) -> bytes:
        """Some bytes, maybe none; sets ``_ended`` where there are no more."""
        if self._decompressor is None:
            data, self._input = self._input[:count], self._input[count:]
            data = data or self._source.read(count)
            self._ended = not data
            return data
        if self._decompressor.eof:
            return self._next_stream()
        exhausted = False
        if self._decompressor.needs_input and not self._input:
            self._input = self._source.read(_INPUT)
            exhausted = not self._input
        data, self._input = self._input, b""
        try:
            found = bytes(self._decompressor.decompress(data, count))
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
            raise ArchiveError("its compressed stream is damaged") from None
        except Exception as error:  # zstd's error is a class of its own, of a module that may not be there
            raise ArchiveError("its compressed stream is damaged") from error
        # Without asking for more it may give nothing, too: behind a piece that was just as long as wanted.
        if exhausted and not found and not self._decompressor.eof:
            raise ArchiveError("its compressed stream is cut off")
        return found

    def _next_stream(self) -> bytes:
        """Streams may follow one another; what follows and is none is padding, which is passed over."""
        rest = (self._decompressor.unused_data if self._decompressor else b"") + self._input
        if len(rest) < _LONGEST_MAGIC:
            rest += self._source.read(_INPUT)
        if self._make is None or not compression(rest):
            self._ended = True
        else:
            self._decompressor, self._input = self._make(), rest
        return b""


class Disk:
    """Stops before a disk is full: other programs need it too.

    Args:
        descriptor: a file or folder on it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unseen = 0

    def will_take(self, size: int) -> None:
        """So many bytes are about to be written.

        Raises:
            OSError: ``ENOSPC``: little is left.
        """
        self._unseen += size
        if self._unseen < _LOOK_AT_DISK:
            return
        self._unseen = 0
        status = os.fstatvfs(self._descriptor)
        if status.f_bavail * status.f_frsize < min(_RESERVE, status.f_blocks * status.f_frsize // 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
