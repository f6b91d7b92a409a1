"""Images from a container: real ones, of the type they claim, of a bearable size.

Only raster formats that a browser decodes without running anything (PNG, JPEG, GIF, WebP). The first bytes
must be those of the claimed type, so that nothing sniffs another one, and the dimensions are read from the
header, so that a small file cannot make a browser allocate gigabytes. The pixels themselves are not decoded.

Pure functions; this module knows nothing of MIME bundles or HTML.

See the PNG specification (ISO/IEC 15948) section 11.2.2, GIF89a sections 18 and 20, ITU T.81 annex B,
RFC 9649 (WebP), RFC 4648 (base64), RFC 2397 (data URLs).
"""

from __future__ import annotations

import base64
import re
import struct

from nsmagic.firewall.text import RefusedError

MAX_BYTES = 16 << 20
"""Largest image file, in bytes."""

MAX_PIXELS = 100_000_000
"""Most pixels in one image, and in all the images of one HTML output."""

_MAX_BLOCKS = 100_000
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,", re.IGNORECASE)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_END = frozenset({0xD9, 0xDA})
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


def check_image(mime: str, value: object) -> tuple[str, int]:
    """Check one image.

    Args:
        mime: one of ``IMAGE_TYPES``.
        value: the file's bytes, or its base64 text (line ends in it are allowed: ipykernel adds them).

    Returns:
        The file in base64 without line ends, written anew from the decoded bytes, and its number of pixels.

    Raises:
        RefusedError: it is not a whole image header of that type, or too large.
    """
    raw = _decoded(value)
    try:
        size = _READERS[mime](raw)
    except (IndexError, struct.error):
        size = None
    if size is None:
        raise RefusedError(f"is no {mime.removeprefix('image/').upper()} file")
    width, height = size
    if width < 1 or height < 1:
        raise RefusedError("has no pixels")
    if width * height > MAX_PIXELS:
        raise RefusedError(f"{width} by {height} pixels are too many")
    return base64.b64encode(raw).decode("ascii"), width * height


def check_data_url(url: str) -> tuple[str, int]:
    """Check a ``data:`` URL of an image; return it written anew, and its number of pixels.

    Raises:
        RefusedError: it is another URL, or not such an image.
    """
    prefix = _DATA_URL.match(url)
    if prefix is None:
        raise RefusedError("is not an image inside the output")
    mime = prefix.group(1).lower()
    encoded, pixels = check_image(mime, url[prefix.end() :])
    return f"data:{mime};base64,{encoded}", pixels


def _decoded(value: object) -> bytes:
    """Return the file's bytes from bytes or strict base64."""
    if isinstance(value, bytes):
        raw = value
    elif isinstance(value, str):
        if len(value) > MAX_BYTES * 3 // 2:  # 4/3 for base64, the rest for line ends
            raise RefusedError("too large")
        encoded = value.replace("\n", "").replace("\r", "").strip(" ")
        if len(encoded) % 4 or not _BASE64.fullmatch(encoded):
            raise RefusedError("is not base64")
        # Length and alphabet are checked, so this cannot fail; binascii's strict mode needs Python 3.11.
        raw = base64.b64decode(encoded)
    else:
        raise RefusedError("is not base64")
    if len(raw) > MAX_BYTES:
        raise RefusedError("too large")
    return raw


def _png(raw: bytes) -> tuple[int, int] | None:
    if not raw.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"):
        return None
    width, height = struct.unpack_from(">II", raw, 16)
    return width, height


def _gif(raw: bytes) -> tuple[int, int] | None:
    """Return the larger of the logical screen and the first frame, side by side."""
    if not raw.startswith((b"GIF87a", b"GIF89a")):
        return None
    width, height = struct.unpack_from("<HH", raw, 6)
    flags = raw[10]
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    blocks = 0
    while blocks < _MAX_BLOCKS:
        if raw[at] == _GIF_IMAGE:
            frame_width, frame_height = struct.unpack_from("<HH", raw, at + 5)
            return max(width, frame_width), max(height, frame_height)
        if raw[at] != _GIF_EXTENSION:
            return None
        at += 2
        while raw[at] and blocks < _MAX_BLOCKS:
            at += 1 + raw[at]
            blocks += 1
        at += 1
        blocks += 1
    return None


def _jpeg(raw: bytes) -> tuple[int, int] | None:
    if not raw.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    for _ in range(_MAX_BLOCKS):
        if raw[at] != 0xFF:  # noqa: PLR2004 - every marker starts with it
            return None
        marker = raw[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in _JPEG_END:
            return None
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", raw, at + 5)
            return width, height
        else:
            at += 2 + max(2, int.from_bytes(raw[at + 2 : at + 4], "big"))
    return None


def _webp(raw: bytes) -> tuple[int, int] | None:
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP":
        return None
    kind = raw[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    if kind == b"VP8L" and raw[20] == 0x2F:  # noqa: PLR2004 - the lossless signature
        (bits,) = struct.unpack_from("<I", raw, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and raw[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", raw, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


_READERS = {"image/png": _png, "image/jpeg": _jpeg, "image/gif": _gif, "image/webp": _webp}

IMAGE_TYPES = frozenset(_READERS)
"""The types that may pass."""
