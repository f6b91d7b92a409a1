"""Text on its way out of a container: streams, tracebacks, plain text and LaTeX.

A terminal, and a front end that imitates one, obeys what is inside the text: escape sequences set the
window title, write to the clipboard, hide a link behind other words (OSC 8) and move over what was printed
before. Unicode's bidirectional overrides show text in another order than it has. What is kept here is what
programs need for ordinary output: line ends, tabs, backspace, colours, erase-line and cursor-up (progress
bars).

Everything is linear in the length of its input. Pure functions; this module knows nothing of notebooks,
containers or messages.

See ECMA-48 (control sequences), console_codes(4), Unicode Standard Annex #9 (bidirectional controls).
"""

from __future__ import annotations

import codecs
import re

MAX_PLAIN = 4 << 20
"""Longest text/plain that is passed on, in characters."""

MAX_LATEX = 64 << 10
"""Longest text/latex that is passed on, in characters."""

_MAX_SEQUENCE = 256
_MAX_ENAME = 200
_MAX_EVALUE = 10_000
_MAX_TRACEBACK_LINES = 200
_MAX_TRACEBACK_CHARS = 200_000
_MAX_BRACES = 100
_PIECE = 1 << 16

_KEPT_CONTROLS = b"\b\t\n\r"
_CONTROL_BYTES = bytes(c for c in (*range(0x20), 0x7F) if c not in _KEPT_CONTROLS)
_C1_CONTROLS = [chr(c).encode() for c in range(0x80, 0xA0)]
_C1_LEAD = b"\xc2"
_MAX_CONTROLS = 200_000

# Surrogates are here because json.loads makes lone ones from "\ud800", and they cannot be sent on as UTF-8.
_REPLACED = re.compile("[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SUSPECT = re.compile("[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_MARKUP_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# No body below may hold an introducer, so that every sequence starts where the last one ended, and a stream
# cut at any place is read as the uncut one. Finals are optional: of an unfinished sequence all is dropped.
_BODY = f"[^\x00-\x1f\x7f-\x9f]{{0,{_MAX_SEQUENCE}}}"
_CSI = f"(?:\x1b\\[|\x9b)[0-?]{{0,{_MAX_SEQUENCE}}}[ -/]{{0,16}}"
_STRING = f"(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f]){_BODY}"
_DROPPED = (
    f"{_CSI}[@-~]?"
    f"|{_STRING}(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]{1,16}[0-~]?"
    "|\x1b[0-~]?"
    "|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
_COLOURS = "\x1b\\[[0-9;:]{0,64}m"
_ERASE_LINE = "\x1b\\[[0-2]?K"
_CURSOR_UP = "\x1b\\[(?:[1-9][0-9]?|100)?A"
_SEQUENCE = re.compile(f"({_COLOURS}|{_ERASE_LINE}|{_CURSOR_UP})|{_DROPPED}")
_SEQUENCE_STILL = re.compile(f"({_COLOURS}|{_ERASE_LINE})|{_DROPPED}")
_UNFINISHED = re.compile(f"(?:{_CSI}|{_STRING}\x1b?|\x1b[ -/]{{1,16}}|\x1b)\\Z")
_LONGEST_UNFINISHED = _MAX_SEQUENCE + 32

# TeX that links, loads, styles, names elements, or defines macros (a few of which make a bomb). \data and
# \class would carry JupyterLab's command links; \mmlToken, \bbox and \enclose take attributes.
_TEX_ACTIVE = re.compile(
    r"\\(?=(?:href|url|unicode|require|html[A-Za-z]*|class|cssId|style|data|includegraphics|input|include"
    r"|[egx]?def|let|futurelet|global|long|(?:re)?new(?:command|environment|tagform)|providecommand"
    r"|Declare[A-Za-z]*|Newextarrow|usepackage|special|write|openout|read|csname|catcode|expandafter"
    r"|mmlToken|bbox|enclose|tooltip|texttip|mathtip|toggle|label|(?:eq)?ref|def[A-Za-z]*)(?![A-Za-z]))|\^\^"
)
_TEX_DELIMITER = re.compile(r"\$|\\(?:[(\[]|begin|ref|eqref)")
# Some front ends read text/latex as Markdown with HTML in it; a space ends both, and TeX ignores it.
_TEX_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|\](?=[(:\[])")


class RefusedError(Exception):
    """A part of an output may not be shown; the text is the reason, a few words for a reader."""


def clean_stream(text: str, *, cursor_up: bool = True) -> str:
    r"""Take from stdout or stderr text what a front end would obey rather than show.

    Kept: ``\n \t \r \b``, colours (SGR), erase-line (``CSI K``) and cursor-up (``CSI A``, progress bars).
    Dropped: every other C0 and C1 control and escape sequence. Bidirectional overrides and lone surrogates
    become U+FFFD.

    Args:
        text: any text; a sequence cut off at its end is dropped (see ``StreamCleaner`` for chunks).
        cursor_up: False where the text goes to a real terminal, whose earlier lines it could overwrite.

    Returns:
        The cleaned text; the same object if there was nothing to do.
    """
    if _is_clean(text):
        return text
    text = (_SEQUENCE if cursor_up else _SEQUENCE_STILL).sub(r"\1", text)
    return _REPLACED.sub("\ufffd", text)


def _is_clean(text: str) -> bool:
    """Say at about the speed of memory whether there is nothing to clean."""
    if text.isascii():
        # In pieces that stay in the processor's cache: eight times as fast as the whole at once.
        pieces = (text[at : at + _PIECE].encode("ascii") for at in range(0, len(text), _PIECE))
        return all(len(piece.translate(None, _CONTROL_BYTES)) == len(piece) for piece in pieces)
    return _SUSPECT.search(text) is None


def without_crowds(text: str) -> str:
    """Take all control characters out of a text that has more of them than output ever has.

    To look at each one by one would take seconds, while others wait for their messages.
    """
    # As bytes, since only those are searched at about the speed of memory; in UTF-8 no byte of a control
    # character is ever a part of another one.
    data = text.encode("utf-8", "surrogatepass")
    plain = data.translate(None, _CONTROL_BYTES)
    if data.count(_C1_LEAD) > _MAX_CONTROLS:
        for control in _C1_CONTROLS:
            plain = plain.replace(control, b"")
    return plain.decode("utf-8", "surrogatepass") if len(data) - len(plain) > _MAX_CONTROLS else text


def clean_markup(text: str) -> str:
    r"""Take every control but ``\n \t \r`` out of text that is markup or a value in it, colours too.

    Bidirectional overrides and lone surrogates become U+FFFD.
    """
    return _REPLACED.sub("\ufffd", _MARKUP_CONTROLS.sub("", text))


def replace_unsendable(text: str) -> str:
    """Put U+FFFD for bidirectional overrides and for lone surrogates, which have no UTF-8."""
    return text if text.isascii() else _REPLACED.sub("\ufffd", text)


class StreamCleaner:
    """``clean_stream`` for bytes that come in chunks cut at any place.

    Only an unfinished UTF-8 character or escape sequence at the end of a chunk is held back, and never more
    than about 300 characters: what ``feed`` returned plus ``finish`` equals ``clean_stream`` of the whole.
    """

    def __init__(self, *, cursor_up: bool = True) -> None:
        self._cursor_up = cursor_up
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._mid_character = False

    def feed(self, chunk: bytes) -> str:
        """Take the next bytes; return the cleaned text that is certain by now."""
        if not self._held and not self._mid_character and chunk.isascii():
            # The common case: nothing to decode, nothing to drop.
            if len(chunk.translate(None, _CONTROL_BYTES)) == len(chunk):
                return chunk.decode("ascii")
            text = chunk.decode("ascii")
        else:
            text = self._decoder.decode(chunk)
            self._mid_character = bool(self._decoder.getstate()[0])
        return self._certain(text)

    def feed_text(self, text: str) -> str:
        """Do as ``feed`` for a stream that comes as text; one stream is fed with either, not with both."""
        if not self._held and _is_clean(text):
            return text
        return self._certain(without_crowds(text))

    def _certain(self, text: str) -> str:
        """Return what is certain by now, cleaned; hold back an unfinished sequence at the end."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text, max(0, len(text) - _LONGEST_UNFINISHED))
        cut = unfinished.start() if unfinished else len(text)
        self._held = text[cut:]
        return clean_stream(text[:cut], cursor_up=self._cursor_up)

    def finish(self) -> str:
        """End the stream; return what was held back, cleaned. The object can then be used anew."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._held = ""
        self._mid_character = False
        return clean_stream(text, cursor_up=self._cursor_up)


def bounded(text: str, limit: int) -> str:
    """Clean text and cut it to ``limit`` characters, saying how much was cut."""
    cleaned = clean_stream(text[: 2 * limit])
    if len(text) <= limit or (len(text) <= 2 * limit and len(cleaned) <= limit):
        return cleaned
    # Cleaned again, for the cut may have gone through a colour.
    return clean_stream(cleaned[:limit]) + f"\n… ({len(text) - limit} more characters)"


def clean_traceback(ename: object, evalue: object, traceback: object) -> tuple[str, str, list[str]]:
    """Clean and bound the three parts of an error message.

    Args:
        ename: the exception's name, cut to 200 characters; "Error" if it is no text.
        evalue: its message, cut to 10,000 characters; "" if it is no text.
        traceback: a list of lines; of more than 200 the first and the last are kept, and 200,000 characters
            in all. Anything but a list is no lines, anything but text in it is left out.
    """
    name = _line(ename if isinstance(ename, str) else "Error", _MAX_ENAME).replace("\n", " ")
    value = _line(evalue if isinstance(evalue, str) else "", _MAX_EVALUE)
    if not isinstance(traceback, (list, tuple)):
        return name, value, []
    half = _MAX_TRACEBACK_LINES // 2
    if len(traceback) > _MAX_TRACEBACK_LINES:
        left_out = f"… ({len(traceback) - 2 * half + 1} more lines)"
        entries: list[object] = [*traceback[: half - 1], left_out, *traceback[-half:]]
    else:
        entries = list(traceback)
    # An entry may itself hold many lines (IPython's do), and the last ones say most: they are served first.
    lines: list[str] = []
    room_lines, room_chars = _MAX_TRACEBACK_LINES, _MAX_TRACEBACK_CHARS
    for entry in reversed(entries):
        if not isinstance(entry, str):
            continue
        if room_lines <= 0 or room_chars <= 0:
            break
        kept = "\n".join(_line(entry, room_chars).split("\n")[-room_lines:])[-room_chars:]
        lines.append(clean_stream(kept))
        room_lines -= kept.count("\n") + 1
        room_chars -= len(kept)
    return name, value, lines[::-1]


def _line(text: str, limit: int) -> str:
    r"""Clean text in which ``\r`` and ``\b`` have no business, and cut it to ``limit`` characters."""
    cleaned = clean_stream(text[: 2 * limit]).replace("\r", "").replace("\b", "")
    return clean_stream(cleaned[:limit])


def clean_latex(text: str) -> str:
    """Check text/latex before MathJax or KaTeX gets it.

    Raises:
        RefusedError: it is too long or too deep, or uses a command that links, loads, styles or defines.
    """
    if len(text) > MAX_LATEX:
        raise RefusedError("too long")
    text = clean_stream(text)
    if active_tex(text):
        raise RefusedError("has a command that can link, load, style or define")
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += (brace == "{") - (brace == "}")
        if depth > _MAX_BRACES:
            raise RefusedError("nested too deep")
    return _TEX_MARKUP.sub(r"\g<0> ", text)


def active_tex(text: str) -> bool:
    """Say whether the text holds a TeX command that does more than typeset."""
    return _TEX_ACTIVE.search(text) is not None


def defuse_tex(text: str) -> str:
    """Make active TeX commands inert in text that a front end may typeset, such as HTML.

    JupyterLab typesets what stands between dollar signs in HTML output too. A word joiner (U+2060, invisible)
    after the backslash makes another, unknown command of it. Text with no math delimiter is left alone.
    """
    if "\\" not in text or not _TEX_DELIMITER.search(text):
        return text
    return _TEX_ACTIVE.sub("\\g<0>\u2060", text)
