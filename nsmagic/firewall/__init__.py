"""The firewall: what a container may show in a front end.

JupyterLab trusts the output of a cell that was just run: script in its HTML, SVG or Markdown runs with the
user's rights and can drive the Jupyter server, and so leave the container. Everything that is shown therefore
passes here, and only what is known to be inert goes on: text, checked raster images, JSON, LaTeX without
active commands, charts that run and load nothing, and HTML rewritten from a short list. The rest is left out,
and the reader is told.

Pure functions over plain data, no I/O: magics and the kernel's supervisor use the same ones. This package
knows nothing of containers, sockets or IPython. No input makes these functions raise.

``text`` streams, tracebacks, LaTeX · ``images`` · ``html`` · ``charts`` JSON, Vega, Plotly.
``messages`` all that a Jupyter kernel in a container sends; it names the modules that it is made of.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nsmagic.firewall.charts import PLOTLY_TYPE, VEGA_TYPES, check_chart, copy_json
from nsmagic.firewall.html import clean_html
from nsmagic.firewall.images import IMAGE_TYPES, MAX_BYTES, check_image
from nsmagic.firewall.text import (
    MAX_PLAIN,
    RefusedError,
    StreamCleaner,
    bounded,
    clean_latex,
    clean_stream,
    clean_traceback,
)

__all__ = ["Filtered", "StreamCleaner", "clean_stream", "clean_traceback", "filter_bundle"]

MAX_TYPES = 32
"""Most MIME types that are looked at in one output."""

_MAX_SIDE = 10_000
_MIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}/[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}")
_REASONS = {
    "image/svg+xml": "can run scripts",
    "text/markdown": "can hold HTML; at most its source is shown",
    "application/javascript": "runs in the notebook",
    "text/javascript": "runs in the notebook",
    "application/pdf": "can run scripts",
    "application/vnd.jupyter.widget-view+json": "widgets run in the notebook",
    "application/vnd.jupyter.widget-state+json": "widgets run in the notebook",
}
_UNKNOWN = "not a type that is known to be harmless"
_REMEDY = "--rich trusted would show it: only for code that you trust."
_MARKDOWN = "<IPython.core.display.Markdown object>"  # all that its own text/plain says


@dataclass(frozen=True)
class Filtered:
    """What is left of a display.

    Attributes:
        data: MIME type → value, ready for a message.
        metadata: what is left of its metadata.
        withheld: one short sentence for each part that was left out or cut, fit to be shown.
    """

    data: dict[str, object]
    metadata: dict[str, object]
    withheld: tuple[str, ...]


def filter_bundle(
    data: Mapping[str, object],
    metadata: Mapping[str, object] | None = None,
    *,
    trusted: bool = False,
    remedy: str = _REMEDY,
) -> Filtered:
    """Filter one display (a MIME bundle) that came out of a container.

    Args:
        data: MIME type → value, as a message has it: text, base64 text or bytes for images, JSON values.
        metadata: the display's metadata; all but the size and background of images is dropped.
        trusted: pass every type as it is (``--rich trusted``); only kinds and sizes of values are checked.
        remedy: a sentence on how to allow what is withheld, for where there is nothing else to show.

    Returns:
        A new bundle. If nothing of the data is left, it has a text/plain that says what was withheld.
        Whatever the input is, nothing is raised.
    """
    kept: dict[str, object] = {}
    withheld: list[str] = []
    if not isinstance(data, Mapping):
        withheld.append("an output that is no bundle of types")
        data = {}
    markdown = data.get("text/markdown")
    if not trusted and isinstance(markdown, str) and data.get("text/plain", _MARKDOWN) == _MARKDOWN:
        # Its source, marked as nothing but text, is still worth reading.
        data = {"text/plain": None, **data} | {"text/plain": markdown}
    for mime, value in itertools.islice(data.items(), MAX_TYPES):
        if not isinstance(mime, str) or not _MIME.fullmatch(mime):
            withheld.append("a part whose type has no proper name")
            continue
        try:
            passed, removed = (_trusted(value), ()) if trusted else _checked(mime, value)
        except RefusedError as reason:
            withheld.append(f"{mime} ({reason})")
            continue
        if passed is not None:
            kept[mime] = passed
        if removed:
            withheld.append(f"{mime}: {', '.join(removed)} removed")
    if len(data) > MAX_TYPES:
        withheld.append(f"{len(data) - MAX_TYPES} more types (too many)")
    if withheld and not kept:
        kept["text/plain"] = f"Withheld: {'; '.join(withheld)}." + ("" if trusted else f"\n{remedy}")
    return Filtered(kept, _metadata(metadata, kept, trusted=trusted), tuple(withheld))


def _checked(mime: str, value: object) -> tuple[object, tuple[str, ...]]:
    """Return what may be shown of one part, None for nothing, and what was removed from it.

    Raises:
        RefusedError: it may not be shown; the text says why.
    """
    if mime in IMAGE_TYPES:
        return check_image(mime, value)[0], ()
    if mime == "application/json":
        return copy_json(value), ()
    if mime in VEGA_TYPES or mime == PLOTLY_TYPE:
        return check_chart(mime, value), ()
    if mime in {"text/plain", "text/html", "text/latex"}:
        if not isinstance(value, str):
            raise RefusedError("is not text")
        if mime == "text/plain":
            return bounded(value, MAX_PLAIN), ()
        if mime == "text/latex":
            return clean_latex(value), ()
        clean, removed = clean_html(value)
        return clean or None, removed
    raise RefusedError(_REASONS.get(mime, _UNKNOWN))


def _trusted(value: object) -> object:
    """Return a value as a message can carry it."""
    if isinstance(value, bytes):
        if len(value) > MAX_BYTES:
            raise RefusedError("too large")
        return base64.b64encode(value).decode("ascii")
    return copy_json(value)


def _metadata(metadata: object, kept: dict[str, object], *, trusted: bool) -> dict[str, object]:
    """Return the metadata that may go on: how large an image is shown, and on what background."""
    if not isinstance(metadata, Mapping):
        return {}
    if trusted:
        try:
            copied = copy_json(dict(metadata))
        except RefusedError:
            return {}
        return copied if isinstance(copied, dict) else {}
    images = IMAGE_TYPES & kept.keys()
    found: dict[str, object] = {mime: _image_metadata(metadata.get(mime)) for mime in sorted(images)}
    found = {mime: entries for mime, entries in found.items() if entries}
    if images:
        found |= _image_metadata({"needs_background": metadata.get("needs_background")})
    return found


def _image_metadata(entries: object) -> dict[str, object]:
    if not isinstance(entries, dict):
        return {}
    found: dict[str, object] = {}
    for side in ("width", "height"):
        value = entries.get(side)
        if type(value) is int and 0 < value <= _MAX_SIDE:
            found[side] = value
    background = entries.get("needs_background")
    if type(background) is str and background in {"light", "dark"}:
        found["needs_background"] = background
    return found
