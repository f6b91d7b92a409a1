"""HTML from a container: rewritten from a short list of tags, attributes and style properties.

Two filters in a row, each deny by default. The first is ours: it reads the tags, keeps those on the list and
writes balanced, shallow, fully quoted HTML. The second is nh3 (the ammonia library), which parses that as a
browser does and has the last word. The first is there for what nh3 does not do: check values (images, links,
styles), say what was removed, and bound the work, for the HTML standard's tree building takes quadratic time
on deep or crossed tags (20,000 open and 20,000 stray closing tags: seconds), and cannot be interrupted. Where
the first reads a document differently from a browser, content may be lost, but what comes out is always tags
of ours around escaped text.

Not allowed at all: scripts, style sheets, SVG, MathML, forms, frames, ids, names, classes, data attributes,
remote images, and links that are relative (inside JupyterLab they lead into the server's own pages).

Pure functions; this module knows nothing of MIME bundles. See the HTML standard, section 13.2 (parsing).
"""

from __future__ import annotations

import html
import re
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nh3

from nsmagic.firewall.images import MAX_PIXELS, check_data_url
from nsmagic.firewall.text import RefusedError, clean_markup, defuse_tex

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

MAX_HTML = 4 << 20
"""Longest text/html that is looked at, in characters."""

_MAX_TAGS = 100_000
_MAX_DEPTH = 64
_MAX_ESCAPES = 100_000
_MAX_FORMATTING = 8
_MAX_NUMBER = 10_000
_MAX_SPAN = 1_000
_MAX_LINK = 2_048

_VOID = frozenset({"br", "hr", "img"})
# The elements that a parser opens again inside the next block: few may be open at once.
_FORMATTING = frozenset({"a", "b", "code", "em", "i", "s", "small", "strong", "u"})
_TABLE_PARTS = frozenset({"caption", "tbody", "td", "tfoot", "th", "thead", "tr"})
_TABLE_FRAMES = frozenset({"table", "tbody", "tfoot", "thead", "tr"})
_BLOCKS = {"blockquote", "details", "div", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "pre",
           "summary", "table", "ul"}  # fmt: skip
_BODIES = {"tbody", "tfoot", "thead", "tr", "caption"}
# What an opening tag closes when its author left the closing tag out; the search ends at the barrier.
_IMPLIED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    tag: (frozenset(closes), frozenset(barrier))
    for tags, closes, barrier in (
        (_BLOCKS, {"p"}, {"table", "caption", "td", "th"}),
        ({"li"}, {"li"}, {"ol", "ul", "table"}),
        ({"dd", "dt"}, {"dd", "dt"}, {"dl", "table"}),
        ({"td", "th"}, {"td", "th", "caption"}, {"table"}),
        ({"tr"}, {"tr", "caption"}, {"table"}),
        ({"caption", "tbody", "tfoot", "thead"}, _BODIES, {"table"}),
    )
    for tag in tags
}
_TAGS = _BLOCKS | _TABLE_PARTS | _FORMATTING | _VOID | {
    "abbr", "dd", "dt", "kbd", "li", "samp", "span", "sub", "sup", "var",
}  # fmt: skip

# Elements that are removed with all they hold, and the word for it in the list of what was removed.
_ACTIVE = {
    "script": "scripts", "style": "style sheets", "svg": "SVG", "math": "MathML", "iframe": "frames",
    "frameset": "frames", "object": "embedded objects", "applet": "embedded objects", "audio": "media",
    "video": "media", "canvas": "canvases", "template": "templates", "select": "forms", "textarea": "forms",
    "noscript": "", "noembed": "", "noframes": "", "title": "", "xmp": "", "plaintext": "",
}  # fmt: skip
# Elements whose content is text up to their own closing tag, whatever stands in it.
_RAW = frozenset({"iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea",
                  "title", "xmp"})  # fmt: skip
# Elements that are removed alone: what they hold stays.
_NAMED = {
    "form": "forms", "input": "forms", "button": "forms", "meta": "page settings", "base": "page settings",
    "link": "page settings", "embed": "embedded objects", "frame": "frames",
    "image": "remote or unreadable images",
}  # fmt: skip

_MARK = re.compile(r"<(/?)([a-zA-Z][^\s/>\x00]*)|<([!?/])")
# Each alternative starts with another character, so that nothing is tried twice.
_ATTRIBUTE = re.compile(r"[\s/]*([^\s/>=]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"'][^\s>]*)))?")

_COLOUR = r"#[0-9a-f]{3,8}|[a-z]{3,30}|(?:rgb|hsl)a?\([0-9., %/]{1,50}\)"
_LENGTH = r"(?:0|\d{1,4}(?:\.\d{1,4})?(?:px|%|em|ex|pt))"
_LENGTHS = rf"(?:{_LENGTH}|auto)(?: +(?:{_LENGTH}|auto)){{0,3}}"
# The words for widths and line styles look like names of colours.
_LINE = rf"(?:(?:{_LENGTH}|{_COLOUR})(?: +|$)){{1,3}}"
_STYLES = {
    name: re.compile(pattern)
    for names, pattern in (
        ("color background-color", _COLOUR),
        ("font-weight", r"normal|bold|bolder|lighter|[1-9]00"),
        ("font-style", r"normal|italic|oblique"),
        ("text-align", r"left|right|center|justify|start|end"),
        ("vertical-align", r"top|middle|bottom|baseline|sub|super"),
        ("white-space", r"normal|nowrap|pre|pre-wrap|pre-line"),
        ("width height max-width max-height min-width min-height", rf"{_LENGTH}|auto"),
        ("padding padding-left padding-right padding-top padding-bottom", _LENGTHS),
        ("margin margin-left margin-right margin-top margin-bottom", _LENGTHS),
        ("border border-left border-right border-top border-bottom", _LINE),
        ("border-collapse", r"collapse|separate"),
    )
    for name in names.split()
}
_DANGEROUS_STYLE = re.compile(
    r"[\\@]|url|expression|import|var\s*\(|position|behaviou?r|binding", re.IGNORECASE
)
# The sheet that pandas puts before every table: losing it is not worth a word.
_PANDAS_SHEET = re.compile(r"(?:\s*\.dataframe[\w\s:.-]*\{[\w\s:;-]*\})*\s*")

_ATTRIBUTES: dict[str, frozenset[str]] = {
    "a": frozenset({"href"}),
    "abbr": frozenset({"title"}),
    "details": frozenset({"open"}),
    "img": frozenset({"src", "alt", "width", "height"}),
    "ol": frozenset({"start"}),
    "table": frozenset({"border"}),
    "td": frozenset({"colspan", "rowspan", "align", "valign"}),
    "th": frozenset({"colspan", "rowspan", "scope", "align", "valign"}),
    "tr": frozenset({"align", "valign"}),
}
_LINK = re.compile(r"(?:https?|mailto):", re.IGNORECASE)
_NUMBERS = {
    "width": _MAX_NUMBER, "height": _MAX_NUMBER, "start": _MAX_NUMBER, "colspan": _MAX_SPAN,
    "rowspan": _MAX_SPAN, "border": 1,
}  # fmt: skip
_WORDS = {
    "scope": frozenset({"row", "col", "rowgroup", "colgroup"}),
    "align": frozenset({"left", "right", "center"}),
    "valign": frozenset({"top", "middle", "bottom"}),
    "open": frozenset({"", "open"}),
}

_NH3 = nh3.Cleaner(
    tags=set(_TAGS),
    clean_content_tags={name for name, word in _ACTIVE.items() if word},
    attributes={"*": {"style"}, **{tag: set(names) for tag, names in _ATTRIBUTES.items()}},
    filter_style_properties=set(_STYLES),
    # "data" is let through for images only: the first filter has written every one of them.
    url_schemes={"http", "https", "mailto", "data"},
    attribute_filter=lambda _, name, value: value if name != "href" or _LINK.match(value) else None,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


def clean_html(source: str) -> tuple[str, tuple[str, ...]]:
    """Rewrite HTML so that it can neither run, load nor cover anything.

    Returns:
        The clean HTML ("" if nothing that can be seen is left), and what was removed: "scripts", "forms", …

    Raises:
        RefusedError: it is too long, or has too many tags or special characters.
    """
    if len(source) > MAX_HTML:
        raise RefusedError("too long")
    writer = _Writer()
    writer.read(clean_markup(source))
    removed = tuple(sorted(writer.removed - {""}))
    if not writer.visible:
        return "", removed
    written = writer.text()
    # nh3 takes quadratic time on long runs of characters that have to be escaped.
    if written.count("&") + written.count("\xa0") > _MAX_ESCAPES:
        raise RefusedError("too many special characters")
    return defuse_tex(_NH3.clean(written)), removed


class _Writer:
    """Reads HTML once, from left to right, and writes what is allowed of it."""

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.visible = False
        self._out: list[str] = []
        self._open: list[str] = []
        self._count: Counter[str] = Counter()
        self._formatting = 0
        self._pixels = 0

    def text(self) -> str:
        """Close what is open and return what was written."""
        return "".join(self._out) + "".join(f"</{name}>" for name in reversed(self._open))

    def read(self, source: str) -> None:
        """Read the whole document; linear, for ``at`` only grows and every search starts there."""
        at = 0
        tags = 0
        while mark := _MARK.search(source, at):
            self._text(source[at : mark.start()])
            tags += 1
            if tags > _MAX_TAGS * 2:
                raise RefusedError("too many tags")
            closing, name, other = mark.groups()
            if other:
                at = _after_declaration(source, mark.start())
                continue
            name = name.lower()
            attributes, at = _attributes(source, mark.end())
            if at < 0:  # the document ends inside the tag: a browser drops it too
                return
            if closing:
                self._close(name)
            elif name in _ACTIVE:
                at = self._skip(name, attributes, source, at)
            else:
                self._start(name, attributes)
        self._text(source[at:])

    def _text(self, raw: str) -> None:
        if not raw:
            return
        blank = not raw.strip()
        if not blank and self._open and self._open[-1] in _TABLE_FRAMES:
            return  # text between cells: a browser would move it in front of the table
        self.visible |= not blank
        # Character references are resolved, cleaned and written anew, so that none smuggles in a control.
        self._out.append(html.escape(clean_markup(html.unescape(raw)), quote=False))

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        for attribute in attributes:
            if attribute.startswith("on"):
                self.removed.add("event handlers")
        if name not in _TAGS:
            self.removed.add(_NAMED.get(name, ""))
            return
        self._close_implied(name)
        parent = self._open[-1] if self._open else ""
        if (name in _TABLE_PARTS) != (parent in _TABLE_FRAMES):
            return  # out of place: a browser would ignore it or move it
        formatting = name in _FORMATTING
        if len(self._open) >= _MAX_DEPTH or (formatting and self._formatting >= _MAX_FORMATTING):
            self.removed.add("very deep nesting")
            return
        kept = self._kept(name, attributes)
        if name == "img" and "src" not in kept:
            return
        self.visible |= name in {"img", "hr"}
        written = "".join(f' {key}="{html.escape(value)}"' for key, value in kept.items())
        self._out.append(f"<{name}{written}>")
        if name not in _VOID:
            self._open.append(name)
            self._count[name] += 1
            self._formatting += formatting

    def _close_implied(self, name: str) -> None:
        if name not in _IMPLIED:
            return
        closes, barrier = _IMPLIED[name]
        while (at := self._innermost(closes | barrier)) >= 0 and self._open[at] in closes:
            self._close_from(at)

    def _close(self, name: str) -> None:
        # A cell's content must not close what is around the cell's table: look no further than that table.
        at = self._innermost({name, "table"}) if self._count[name] else -1
        if at >= 0 and self._open[at] == name:
            self._close_from(at)

    def _innermost(self, names: AbstractSet[str]) -> int:
        """Return where the innermost open one of these is, or -1."""
        return next((at for at in reversed(range(len(self._open))) if self._open[at] in names), -1)

    def _close_from(self, at: int) -> None:
        while len(self._open) > at:
            name = self._open.pop()
            self._count[name] -= 1
            self._formatting -= name in _FORMATTING
            self._out.append(f"</{name}>")

    def _skip(self, name: str, attributes: dict[str, str], source: str, at: int) -> int:
        """Leave an active element out, with all it holds; return where to go on."""
        if name in {"math", "svg"} and source[at - 2] == "/":
            self.removed.add(_ACTIVE[name])
            return at
        self.removed.update("event handlers" for attribute in attributes if attribute.startswith("on"))
        end = re.compile(rf"<(/?){name}(?![^\s/>])", re.IGNORECASE)
        depth, start, stop = 1, at, at
        while depth:
            found = end.search(source, at)
            if found is None:  # never closed: the rest of the document is in it
                self.removed.add(_ACTIVE[name])
                return len(source)
            stop, at = found.span()
            if found.group(1):
                depth -= 1
            elif name not in _RAW:
                depth += 1
        if name != "style" or not _PANDAS_SHEET.fullmatch(source[start:stop]):
            self.removed.add(_ACTIVE[name])
        _, after = _attributes(source, at)
        return after if after >= 0 else len(source)

    def _kept(self, tag: str, attributes: dict[str, str]) -> dict[str, str]:
        """Return the attributes of an allowed tag that may stay, their values checked."""
        kept: dict[str, str] = {}
        for name, raw in attributes.items():
            value = clean_markup(html.unescape(raw)).strip()
            if name == "style":
                value = self._style(value)
            elif name not in _ATTRIBUTES.get(tag, ()):
                continue
            elif name == "src":
                value = self._image(value)
            elif name == "href":
                value = self._link(value)
            elif name in _NUMBERS:
                value = value if re.fullmatch("[0-9]{1,5}", value) and int(value) <= _NUMBERS[name] else ""
            elif name in _WORDS:
                kept |= {name: value.lower()} if value.lower() in _WORDS[name] else {}
                continue
            if value:
                kept[name] = value
        return kept

    def _style(self, value: str) -> str:
        if _DANGEROUS_STYLE.search(value):
            self.removed.add("active styles")
            return ""
        kept = []
        for declaration in value[:_MAX_LINK].lower().split(";"):
            name, _, wanted = declaration.partition(":")
            wanted = " ".join(wanted.split())
            pattern = _STYLES.get(name.strip())
            if pattern is not None and pattern.fullmatch(wanted):
                kept.append(f"{name.strip()}: {wanted}")
        return "; ".join(kept)

    def _image(self, value: str) -> str:
        try:
            url, pixels = check_data_url(value)
        except RefusedError:
            self.removed.add("remote or unreadable images")
            return ""
        self._pixels += pixels
        if self._pixels > MAX_PIXELS:
            self.removed.add("images that are too large")
            return ""
        return url

    def _link(self, value: str) -> str:
        # A page's own anchors (#…) go too: they could point at the front end's elements.
        try:
            parts = urlsplit(value)
            good = parts.scheme == "mailto" or (parts.scheme in {"http", "https"} and bool(parts.hostname))
        except ValueError:
            good = False
        if good and len(value) <= _MAX_LINK and not re.search(r"[\s\\\x00-\x20]", value):
            return value
        self.removed.add("links")
        return ""


def _attributes(source: str, at: int) -> tuple[dict[str, str], int]:
    """Read attributes from ``at``; return them (the first of each name) and the place after ``>``, or -1."""
    attributes: dict[str, str] = {}
    while True:
        found = _ATTRIBUTE.match(source, at)
        if found is None:
            break
        name, double, single, bare = found.groups()
        value = next((part for part in (double, single, bare) if part is not None), "")
        attributes.setdefault(name.lower(), value)
        at = found.end()
    end = source.find(">", at)
    return attributes, end + 1 if end >= 0 else -1


def _after_declaration(source: str, at: int) -> int:
    """Return the place after a comment, a declaration or a bogus closing tag that starts at ``at``."""
    if source.startswith("<!--", at):
        if source.startswith(("<!-->", "<!--->"), at):  # an empty comment, by the standard
            return source.index(">", at) + 1
        end = source.find("-->", at + 4)
        return end + 3 if end >= 0 else len(source)
    end = source.find(">", at)
    return end + 1 if end >= 0 else len(source)
