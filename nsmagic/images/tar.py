"""Reading a tar archive of unknown origin: one pass, bounded memory, nothing believed.

Headers are ustar's, with what pax and GNU tar add for long names and large numbers.  An archive that is not
well formed is refused, never guessed at.  This module hands out members and their bytes; what becomes of them
is for ``unpack`` and ``archive`` to say.

See pax(1) in POSIX for both formats, and tar(5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Source(Protocol):
        """Bytes, in order."""

        def read(self, count: int, /) -> bytes:
            """So many bytes; fewer only at the end."""


Kind = Literal["file", "folder", "link", "hard link", "device", "FIFO"]

BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_MAX_EXTENSION: Final = 1 << 20
"""Bytes of one pax header or long name."""
_MAX_EXTENSIONS: Final = 8
_MAX_PATH: Final = 4096
_LARGEST: Final = 1 << 62
_LATEST: Final = 1 << 33
_BASE_256: Final = 0x80
_KINDS: Final[dict[bytes, Kind]] = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "link", b"3": "device",
    b"4": "device", b"5": "folder", b"6": "FIFO",
}  # fmt: skip


class ArchiveError(Exception):
    """The archive is not well formed, or holds what is not taken; the text says what, without quoting it."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        kind: what it is.
        name: its path as written, not looked at.
        target: where a link points to, or which member a hard link is another name of; as written.
        mode: permission bits, set-uid and the like among them.
        size: bytes of a file's content; 0 for all else.
        mtime: seconds since the epoch.
        offset: where its content begins in the archive.
    """

    kind: Kind
    name: bytes
    target: bytes
    mode: int
    size: int
    mtime: float
    offset: int


@dataclass
class _Extensions:
    """What the next header is to be read with."""

    name: bytes | None = None
    target: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    count: int = 0


class TarReader:
    """The members of an archive, in order.

    Args:
        source: the archive's bytes, uncompressed.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._left = 0  # bytes of the current member's content that were not taken
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Give each member; its content can be taken until the next one is asked for.

        Raises:
            ArchiveError: the archive is not well formed.
        """
        extensions = _Extensions()
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            if kind in b"xgLK":
                self._extend(extensions, kind, header)
                continue
            yield self._member(header, extensions)
            extensions = _Extensions()
        if extensions.count:
            raise ArchiveError("it ends behind a header that belongs to a member")

    def content(self) -> Iterator[bytes]:
        """The current member's content, in pieces."""
        while self._left:
            piece = self._take(min(self._left, _CHUNK))
            self._left -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read what is left behind the last member, so that all of the source has been seen."""
        while piece := self._source.read(_CHUNK):
            self._position += len(piece)

    def _take(self, count: int) -> bytes:
        piece = self._source.read(count)
        self._position += len(piece)
        if len(piece) != count:
            raise ArchiveError("it ends in the middle of a member")
        return piece

    def _next_header(self) -> bytes | None:
        self._pass_over()
        header = self._source.read(BLOCK)
        self._position += len(header)
        if header == bytes(BLOCK) or (not header and self._position):
            return None
        if len(header) != BLOCK or not _sum_is_right(header):
            raise ArchiveError("it is no tar archive, or a header of it is damaged")
        return header

    def _pass_over(self) -> None:
        """Go on to the next header."""
        skip = getattr(self._source, "skip", None)  # of a file that need not be read
        if skip is not None and self._left:
            if not skip(self._left):
                raise ArchiveError("it ends in the middle of a member")
            self._position += self._left
            self._left = 0
        for _ in self.content():
            pass
        self._take(self._padding)
        self._padding = 0

    def _begin(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK

    def _extend(self, extensions: _Extensions, kind: bytes, header: bytes) -> None:
        size = _number(header[124:136])
        extensions.count += 1
        if size > _MAX_EXTENSION or extensions.count > _MAX_EXTENSIONS:
            raise ArchiveError("a member has a header that is too long")
        self._begin(size)
        text = b"".join(self.content())
        if kind == b"L":
            extensions.name = text.split(b"\0")[0]
        elif kind == b"K":
            extensions.target = text.split(b"\0")[0]
        elif kind == b"x":
            extensions.pax |= _pax(text)
        elif _pax(text).keys() & {b"path", b"linkpath", b"size"}:
            raise ArchiveError("a global header renames every member")

    def _member(self, header: bytes, extensions: _Extensions) -> Member:
        pax = extensions.pax
        if header[156:157] == b"S" or any(key.startswith(b"GNU.sparse") for key in pax):
            raise ArchiveError("it is a sparse archive; make it without tar's --sparse")
        kind = _KINDS.get(header[156:157])
        if kind is None:
            raise ArchiveError(f"it holds a member of the unknown type {header[156]:#04x}")
        name, target = _text(header[0:100]), _text(header[157:257])
        if header[257:263] == b"ustar\0" and header[345]:
            name = _text(header[345:500]) + b"/" + name
        name = pax.get(b"path", extensions.name if extensions.name is not None else name)
        target = pax.get(b"linkpath", extensions.target if extensions.target is not None else target)
        if kind == "file" and name.endswith(b"/") and header[156:157] == b"\0":
            kind = "folder"  # as tar wrote them before there was a type
        size = _decimal(pax[b"size"]) if b"size" in pax else _number(header[124:136])
        if kind != "file":
            size = 0
        if max(len(name), len(target)) > _MAX_PATH or b"\0" in name + target:
            raise ArchiveError("it holds a path that no file system takes")
        mtime = _time(pax[b"mtime"]) if b"mtime" in pax else _old_time(header[136:148])
        self._begin(size)
        return Member(kind, name, target, _number(header[100:108]) & 0o7777, size, mtime, self._position)


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def _number(raw: bytes) -> int:
    """Octal digits, or GNU tar's base 256."""
    if raw[0] & _BASE_256:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    else:
        digits = raw.split(b"\0", 1)[0].strip(b" ")
        if digits.strip(b"01234567"):
            raise ArchiveError("a header of it holds no number where one belongs")
        value = int(digits or b"0", 8)
    if value > _LARGEST:
        raise ArchiveError("a header of it holds a number out of range")
    return value


def _decimal(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > len(str(_LARGEST)):
        raise ArchiveError("a header of it holds no number where one belongs")
    return min(int(raw), _LARGEST)


def _time(raw: bytes) -> float:
    try:
        seconds = float(raw[:40])
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < _LATEST else 0.0  # not-a-number is not in between


def _old_time(raw: bytes) -> float:
    try:
        return float(min(_number(raw), _LATEST))
    except ArchiveError:  # before 1970, or nonsense: no reason to refuse the file
        return 0.0


def _sum_is_right(header: bytes) -> bool:
    """The sum of all bytes, its own field taken as blanks; some old programs took the bytes as signed."""
    try:
        wanted = _number(header[148:156])
    except ArchiveError:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    return wanted in {unsigned, unsigned - 256 * sum(byte >= _BASE_256 for byte in rest)}


def _pax(text: bytes) -> dict[bytes, bytes]:
    """Records of the form ``LENGTH KEY=VALUE``, the length in decimal and counting all of it."""
    found = {}
    position = 0
    while position < len(text) and text[position]:
        blank = text.find(b" ", position, position + 10)
        length = _decimal(text[position:blank]) if blank > 0 else 0
        record = text[blank + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or position + length > len(text):
            raise ArchiveError("a pax header of it is damaged")
        found[key] = value[:-1]
        position += length
    return found
