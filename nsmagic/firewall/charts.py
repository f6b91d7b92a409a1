r"""JSON from a container: application/json, and the charts that JSON describes (Vega-Lite, Vega, Plotly).

``copy_json`` makes a plain, bounded copy of anything; every later look is at that copy. Charts then pass only
if their data makes the renderer run nothing and load nothing:

* Vega has an expression language (``expr``, ``signal``, ``calculate``, ``test``, …) in a sandbox that was
  broken again and again (CVE-2020-26296, CVE-2023-26486, CVE-2023-26487, CVE-2025-59840; vega#3027 and
  vega#3984 by ``event.view``). So no expressions at all: a chart that needs one is refused. It may also build
  form inputs from ``bind`` with any attribute, take ``usermeta.embedOptions``, paste ``formatType`` and
  ``impute`` into expressions, fetch ``url``, and show a tooltip field called "image" as an image from
  anywhere. Charts that encode data that they carry, with selections and sliders, pass. The schema in the
  spec, not the MIME type, says whether it is Vega or Vega-Lite, so both get the same rules; few full Vega
  charts do without signals.
* Plotly shows a small HTML in its labels: no links and no styles there. Maps fetch tiles or outlines, so no
  maps. ``config`` is cut to switches that load nothing. Images are data URLs that pass
  ``images.check_data_url``.

A refused chart falls back to the other forms that its author sent (text, PNG), and says so. Pure functions.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from nsmagic.firewall.images import check_data_url
from nsmagic.firewall.text import RefusedError, active_tex, replace_unsendable

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 64
MAX_NODES = 1_000_000
MAX_CHARS = 16 << 20
_MAX_INTEGER_BITS = 1024
_MAX_WORK = 100_000

VEGA_TYPES = frozenset(
    {f"application/vnd.vegalite.v{n}+json" for n in (4, 5, 6)}
    | {f"application/vnd.vega.v{n}+json" for n in (5, 6)}
)
PLOTLY_TYPE = "application/vnd.plotly.v1+json"

_POLLUTION = frozenset({"__proto__", "constructor", "prototype"})


def copy_json(value: object) -> object:
    """Return a copy made of dict, list, str, int, float, bool and None only.

    Lone surrogates and bidirectional overrides in text become U+FFFD; NaN and infinities, which JSON does not
    have, become None.

    Raises:
        RefusedError: another type, a key that is not text, or more than 64 levels, a million values or 16 Mi
            characters.
    """
    return _Copier().copy(value, MAX_DEPTH)


class _Copier:
    def __init__(self) -> None:
        self._nodes = MAX_NODES
        self._chars = MAX_CHARS

    def copy(self, value: object, depth: int) -> object:
        # Exact types: a subclass could bring its own methods. The count also ends what shares its parts.
        self._nodes -= 1
        if self._nodes < 0:
            raise RefusedError("too large")
        kind = type(value)
        if isinstance(value, str) and kind is str:
            return self._text(value)
        if value is None or kind is bool:
            return value
        if isinstance(value, int) and kind is int:
            if value.bit_length() > _MAX_INTEGER_BITS:
                raise RefusedError("a number is too long")
            return value
        if isinstance(value, float) and kind is float:
            return value if math.isfinite(value) else None
        if depth <= 0:
            raise RefusedError("nested too deep")
        if isinstance(value, (list, tuple)) and kind in {list, tuple}:
            return [self.copy(item, depth - 1) for item in value]
        if isinstance(value, dict) and kind is dict:
            return {self._key(key): self.copy(item, depth - 1) for key, item in value.items()}
        raise RefusedError("is not JSON")

    def _key(self, key: object) -> str:
        if not isinstance(key, str) or type(key) is not str:
            raise RefusedError("is not JSON")
        return self._text(key)

    def _text(self, text: str) -> str:
        self._chars -= len(text)
        if self._chars < 0:
            raise RefusedError("too large")
        return replace_unsendable(text)


def check_chart(mime: str, value: object) -> object:
    """Return a copy of a Vega, Vega-Lite or Plotly chart that runs nothing and loads nothing.

    Raises:
        RefusedError: it could do either, or is no such chart.
    """
    chart = copy_json(value)
    if not isinstance(chart, dict):
        raise RefusedError("is not a chart")
    if mime == PLOTLY_TYPE:
        return _check_plotly(chart)
    # The embedder reads options from here, such as a loader and patches to the spec.
    chart.pop("usermeta", None)
    _walk_vega(chart, "")
    return chart


# Vega and Vega-Lite

_VEGA_SCHEMA = re.compile(r"https?://vega\.github\.io/schema/vega(?:-lite)?/v\d{1,2}(?:\.\d{1,3}){0,2}\.json")
_VEGA_LOADS = frozenset({"url", "href", "loader", "image"})
_VEGA_RUNS = frozenset({"calculate", "customFormatTypes", "element", "events", "expr", "insert", "labelExpr",
                        "modify", "remove", "signal", "trigger"})  # fmt: skip
# An expression if it is text, something harmless otherwise.
_VEGA_RUNS_AS_TEXT = frozenset({"filter", "test", "update", "init", "toggle", "react"})
_VEGA_LOGIC = frozenset({"and", "or", "not"})
# Event selectors, whose brackets hold expressions.
_VEGA_EVENTS = frozenset({"on", "clear", "translate", "zoom", "between"})
_VEGA_WORK = frozenset(
    ["stop", "steps", "maxbins", "tickCount", "width", "height", "iterations", "counts", "limit"]
)
# Text that is shown or compared, and quoted by the compiler; elsewhere nothing that looks like code.
_VEGA_SHOWN = frozenset({"datum", "description", "domain", "equal", "field", "format", "labels", "oneOf",
                         "options", "sort", "subtitle", "text", "title", "value", "values"})  # fmt: skip
_VEGA_CODE = re.compile(r"[({`]")
_VEGA_COLOUR = re.compile(r"(?:rgb|hsl)a?\([0-9., %/]{1,50}\)")
_VEGA_INPUTS = frozenset({"checkbox", "radio", "range", "select", "number"})
_VEGA_INPUT_KEYS = frozenset({"input", "min", "max", "step", "name", "options", "labels", "debounce"})


def _walk_vega(node: object, key: str) -> None:
    """Check one node of a spec; ``key`` is the name it has, that of the list around it in a list."""
    if isinstance(node, dict):
        for name, item in node.items():
            if name == "data" or (name == "datasets" and not key):
                _check_vega_data(item, name)
            else:
                _check_vega_key(name, item)
                _walk_vega(item, name)
    elif isinstance(node, list):
        for item in node:
            _walk_vega(item, key)
    elif isinstance(node, str):
        _check_vega_text(node, key)
    elif isinstance(node, (int, float)) and key in _VEGA_WORK and abs(node) > _MAX_WORK:
        raise RefusedError(f"asks for too much work ({key})")


def _check_vega_data(node: object, name: str) -> None:
    """Check a data property. The rows in it are data, whatever they are called; what is around is not."""
    for source in node if isinstance(node, list) else [node]:
        if not isinstance(source, dict):
            _walk_vega(source, name)
            continue
        for key, item in source.items():
            if key in _POLLUTION:
                raise RefusedError(f"has a key {key}")
            if isinstance(item, list) and (key == "values" or name == "datasets"):
                _check_rows(item)
            elif isinstance(item, str) and (key == "values" or name == "datasets"):
                raise RefusedError("has its data as text")  # its column names cannot be seen here
            else:
                _check_vega_key(key, item)
                _walk_vega(item, key)


def _check_rows(rows: list[object]) -> None:
    for key, _ in _items(rows):
        if key in _POLLUTION:
            raise RefusedError(f"has a key {key}")
        if _letters(key) == "image":
            raise RefusedError("has a column called image, which tooltips load")


def _check_vega_key(key: str, item: object) -> None:
    if key in _POLLUTION:
        raise RefusedError(f"has a key {key}")
    if key in _VEGA_LOADS:
        raise RefusedError(f"can load or link ({key})")
    runs = (
        key in _VEGA_RUNS
        or (key in _VEGA_RUNS_AS_TEXT and isinstance(item, str))
        or (
            key in _VEGA_LOGIC
            and any(isinstance(part, str) for part in (item if isinstance(item, list) else [item]))
        )
        or (key in _VEGA_EVENTS and not _plain_event(item))
        or (key == "formatType" and item not in ("number", "time", "utc"))
    )
    if runs:
        raise RefusedError(f"has an expression ({key})")
    if key == "bind" and not _plain_binding(item):
        raise RefusedError("has a binding to the page")
    if key == "sequence" or (key == "type" and item == "sequence"):
        raise RefusedError("generates data")
    if key == "pivot" or (key == "type" and item == "pivot"):
        raise RefusedError("makes columns from values")  # one of them could be called image


def _plain_event(item: object) -> bool:
    if isinstance(item, str):
        return re.fullmatch("[a-z]{1,20}", item) is not None
    return isinstance(item, bool) or (
        isinstance(item, list) and all(isinstance(part, (int, float)) for part in item)
    )


def _plain_binding(item: object) -> bool:
    """Say whether a binding is to scales, to the legend, or to inputs with no attribute but the usual."""
    if not isinstance(item, dict):
        return item in ("scales", "legend")
    if "input" not in item:  # one binding for each field of a selection
        return all(
            isinstance(part, dict) and "input" in part and _plain_binding(part) for part in item.values()
        )
    kind = item["input"]
    return isinstance(kind, str) and kind in _VEGA_INPUTS and item.keys() <= _VEGA_INPUT_KEYS


def _check_vega_text(text: str, key: str) -> None:
    if key == "$schema":
        if not _VEGA_SCHEMA.fullmatch(text):
            raise RefusedError("has an unknown schema")
    elif _letters(text) == "image":
        raise RefusedError("can load an image")
    elif key == "field" and _VEGA_CODE.search(text) and re.search(r"[\\\"']", text):
        raise RefusedError("has something like code (field)")
    elif key not in _VEGA_SHOWN and _VEGA_CODE.search(text) and not _VEGA_COLOUR.fullmatch(text):
        raise RefusedError(f"has something like code ({key[:40]})")


def _letters(text: str) -> str:
    """Return the letters of a text, so that quotes and brackets of a field path do not hide its name."""
    return re.sub("[^a-z]", "", text.lower())


# Plotly

_PLOTLY_PARTS = {"data": list, "layout": dict, "frames": list}
_PLOTLY_SWITCHES = frozenset({"displayModeBar", "displaylogo", "responsive", "scrollZoom", "staticPlot"})
_PLOTLY_MAP_KEY = re.compile(r"(?:geo|map|mapbox)\d*")
_PLOTLY_MAP_TRACE = re.compile(r"(?:scatter|choropleth|density)(?:geo|map|mapbox)?")
_PLOTLY_LOADS = frozenset(
    {"geojson", "accesstoken", "topojsonURL", "plotlyServerURL", "mapboxAccessToken", "href", "url"}
)
_PLOTLY_MARKUP = re.compile(
    r"<\s*/?\s*a(?![a-z])|(?:^|[\s\"'])(?:href|style|src|class|target|popup)\s*=\s*[\"']"
)
# What buttons and sliders may not set, as part of a path; and what they may not turn a trace into.
_PLOTLY_TARGET = re.compile(
    r"(?:^|[.\]])(?:source|images?|geo\d*|geojson|map\d*|mapbox\d*|href|url|accesstoken|template)(?=$|[.\[])"
    r"|choropleth|scatter(?:geo|map)|densitymap",
    re.IGNORECASE,
)
_PLOTLY_ARGUMENTS = frozenset({"args", "args2"})


def _check_plotly(chart: dict[str, object]) -> dict[str, object]:
    kept: dict[str, object] = {
        key: chart[key] for key, kind in _PLOTLY_PARTS.items() if isinstance(chart.get(key), kind)
    }
    if "data" not in kept:
        raise RefusedError("is not a chart")
    _walk_plotly(kept, "", in_template=False)
    config = chart.get("config")
    if isinstance(config, dict):
        kept["config"] = {key: config[key] for key in _PLOTLY_SWITCHES if isinstance(config.get(key), bool)}
    return kept


def _walk_plotly(node: object, key: str, *, in_template: bool) -> None:
    if isinstance(node, dict):
        for name, item in node.items():
            # restyle and relayout take paths such as "images[0].source" for keys.
            for part in re.split(r"[.\[\]]+", name):
                _check_plotly_key(part, item, in_template=in_template)
            if key in _PLOTLY_ARGUMENTS:
                _check_plotly_text(name, key)
            inner = key if key in _PLOTLY_ARGUMENTS else name
            _walk_plotly(item, inner, in_template=in_template or name == "template")
    elif isinstance(node, list):
        for item in node:
            _walk_plotly(item, key, in_template=in_template)
    elif isinstance(node, str):
        _check_plotly_text(node, key)


def _check_plotly_key(part: str, item: object, *, in_template: bool) -> None:
    if part in _POLLUTION:
        raise RefusedError(f"has a key {part}")
    if part in _PLOTLY_LOADS:
        raise RefusedError(f"can load or link ({part})")
    # Every stock template has defaults for maps; without a map on the page they do nothing.
    if not in_template:
        # A choropleth without a suffix is a map too, a scatter is not.
        trace = (
            isinstance(item, str)
            and part == "type"
            and item != "scatter"
            and _PLOTLY_MAP_TRACE.fullmatch(item)
        )
        if trace or _PLOTLY_MAP_KEY.fullmatch(part):
            raise RefusedError("loads a map")
    if part == "source":
        for source in item if isinstance(item, list) else [item]:
            if isinstance(source, str):
                _check_plotly_image(source)


def _check_plotly_image(source: str) -> None:
    try:
        check_data_url(source)
    except RefusedError as problem:
        raise RefusedError(f"has an image that {problem}") from problem


def _check_plotly_text(text: str, key: str) -> None:
    if key in _PLOTLY_ARGUMENTS and _PLOTLY_TARGET.search(text):
        raise RefusedError("has a button that can load")
    lowered = text.lower()
    if ("<" in text or "=" in text) and _PLOTLY_MARKUP.search(lowered):
        raise RefusedError("has a link or a style in a label")
    if "javascript:" in lowered:
        raise RefusedError("has a link that runs a script")
    if "$" in text and active_tex(text):
        raise RefusedError("has a label with active LaTeX")


def _items(root: object) -> Iterator[tuple[str, object]]:
    """Give every key and value at any depth."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
