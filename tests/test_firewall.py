"""The firewall against a corpus of hostile output, judged by the structure of what comes out of it.

The lists of what may come out are written down here anew, not taken from the code under test.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import time
import zlib
from html.parser import HTMLParser
from typing import Any

import pytest

from nsmagic.firewall import StreamCleaner, clean_stream, clean_traceback, filter_bundle

TAGS = {
    *(
        "a",
        "abbr",
        "b",
        "blockquote",
        "br",
        "caption",
        "code",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "em",
        "h1",
        "h2",
    ),
    *("h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "s", "samp", "small", "span"),
    *(
        "strong",
        "sub",
        "summary",
        "sup",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "u",
        "ul",
        "var",
    ),
}
ATTRIBUTES = {
    *(
        "abbr.title",
        "a.href",
        "a.rel",
        "a.target",
        "details.open",
        "img.src",
        "img.alt",
        "img.width",
        "img.height",
    ),
    *(
        "ol.start",
        "table.border",
        "td.colspan",
        "td.rowspan",
        "td.align",
        "td.valign",
        "th.colspan",
        "th.rowspan",
    ),
    *("th.scope", "th.align", "th.valign", "tr.align", "tr.valign"),
}
STYLE = re.compile(
    r"(?:(?:color|background-color|font-weight|font-style|text-align|vertical-align|white-space|width|height"
    r"|max-width|min-width|padding|margin|border|border-left|border-collapse)"
    r":(?:[a-z0-9#%. -]|rgba?\([0-9, .%]+\))+;?)*"
)


def png(width: int = 1, height: int = 1) -> bytes:
    """Make a small true PNG; with a false size, only its header lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0\0\0")) + chunk(b"IEND", b"")


def jpeg(width: int = 1, height: int = 1) -> bytes:
    """Make the beginning of a JPEG file: an APP0 segment, then a progressive frame."""
    return (
        b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc2\0\x0b\x08"
        + struct.pack(">HH", height, width)
        + b"\x01\x01\x11\0"
    )


def gif(width: int = 1, height: int = 1, frame: tuple[int, int] = (1, 1)) -> bytes:
    """Make the beginning of a GIF file: a colour table, a comment, one frame."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + screen + b"!\xfe\x02hi\0," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b";"


def webp(kind: bytes, body: bytes) -> bytes:
    """Make the beginning of a WebP file."""
    return (
        b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body
    )


PNG = base64.b64encode(png()).decode()
IMAGE = f"data:image/png;base64,{PNG}"


class Inspector(HTMLParser):
    """Reads what came out as a browser would, and notes everything that is not on the lists."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in TAGS:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            self.attribute(tag, name, value or "")

    def attribute(self, tag: str, name: str, value: str) -> None:
        if name == "style":
            good = STYLE.fullmatch(value) is not None
        elif f"{tag}.{name}" not in ATTRIBUTES:
            good = False
        elif name == "href":
            good = re.match("(?:https?://[a-z0-9]|mailto:)", value) is not None
        elif name == "src":
            good = (
                re.fullmatch(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*", value) is not None
            )
        else:
            good = True
        if not good:
            self.faults.append(f"{tag} {name}={value[:80]}")

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"comment {data}")

    def handle_decl(self, decl: str) -> None:
        self.faults.append(f"declaration {decl}")

    def handle_pi(self, data: str) -> None:
        self.faults.append(f"instruction {data}")

    def unknown_decl(self, data: str) -> None:
        self.faults.append(f"declaration {data}")


def inspect(html: str) -> Inspector:
    """Check HTML that came out; return what was seen in it."""
    inspector = Inspector()
    inspector.feed(html)
    inspector.close()
    assert inspector.faults == []
    return inspector


def shown_html(source: str) -> str:
    """Filter HTML, check what comes out, and that filtering it again changes nothing."""
    result = filter_bundle({"text/html": source})
    clean = str(result.data.get("text/html", ""))
    inspect(clean)
    assert str(filter_bundle({"text/html": clean}).data.get("text/html", "")) == clean
    return clean


HOSTILE_HTML = [
    # scripts and handlers
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script>alert(1)",
    "<script><!--<script></script>--></script><img src=x onerror=alert(1)>",
    "<script/xss src=data:,alert(1)></script/xss>",
    "x<script\n>alert(1)</script\n>y",
    "<img src=x onerror=alert(1)>",
    "<img/src=x/onerror=alert(1)//",
    '<img src="x` `<script>alert(1)</script>"` `>',
    "<b onmouseover=alert(1)>x",
    "<b/onclick=alert(1)>x</b>",
    "<b\x00onclick=alert(1)>x</b>",
    "<div OnPointerRawUpdate='alert(1)'>x",
    "<details open ontoggle=alert(1)>x</details>",
    "<p title='\"><script>alert(1)</script>'>x</p>",
    "<abbr title='\"><img src=x onerror=alert(1)>'>x</abbr>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<<script>alert(1)//<</script>",
    "<b <script>alert(1)</script>x",
    "</p/onclick=alert(1)><p>x",
    # other documents and namespaces
    "<svg onload=alert(1)>x</svg>",
    "<svg><script>alert(1)</script></svg>",
    "<svg/><img src=x onerror=alert(1)>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<svg></p><style><a id='</style><img src=1 onerror=alert(1)>'>",
    "<svg><use xlink:href='data:image/svg+xml,<svg/>#x'/></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<svg><foreignObject><p>x<script>alert(1)</script></p></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<math><annotation-xml encoding='text/html'><style><img src=x onerror=alert(1)></style></math>",
    "<math href='javascript:alert(1)'>x</math>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<noembed><img title='</noembed><img src=x onerror=alert(1)>'>",
    "<xmp><p title='</xmp><img src=x onerror=alert(1)>'>",
    "<textarea></textarea><img src=x onerror=alert(1)>",
    "<title><p title='</title><script>alert(1)</script>'>",
    "<select><style></select><img src=x onerror=alert(1)></style>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)>",
    "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "<embed src='data:text/html,x'>",
    "<frameset onload=alert(1)><frame src=javascript:alert(1)></frameset>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>x",
    "<base href='https://evil.example/'>x",
    "<link rel=stylesheet href='https://evil.example/x.css'>x",
    "<plaintext><script>alert(1)",
    "<!--><img src=x onerror=alert(1)>-->",
    "<!-- --!><img src=x onerror=alert(1)> -->",
    "<![CDATA[><img src=x onerror=alert(1)>]]>",
    "<?xml ><script>alert(1)</script>?>",
    "</ ><script>alert(1)</script>",
    "<!DOCTYPE html [<!ENTITY x '<script>'>]>&x;",
    # forms, names, front-end hooks
    "<form action='/api/shutdown' method=post><input type=submit><button formaction=javascript:1>x</form>",
    "<p id=body name=cookie class='jp-mod-active tex2jax_process'>x</p>",
    "<a data-commandlinker-command='terminal:create-new' data-commandlinker-args='{}' href='#'>x</a>",
    "<div data-mime-type='text/html' contenteditable tabindex=1 accesskey=x draggable=true is=x>x</div>",
    "<x-widget>x</x-widget><marquee onstart=alert(1)>x</marquee><isindex><keygen autofocus onfocus=1>",
    # URLs
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='  JaVaScRiPt:alert(1)'>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<a href='java&#10;script:alert(1)'>x</a>",
    "<a href='&#x6A;avascript&colon;alert(1)'>x</a>",
    "<a href='\x01javascript:alert(1)'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    f"<a href='{IMAGE}'>x</a>",
    "<a href='vbscript:x'>x</a><a href='file:///etc/passwd'>y</a><a href='blob:x'>z</a>",
    "<a href='command:workbench.action.terminal.new'>x</a><a href='vscode://x'>y</a>",
    "<a href='/lab?reset'>x</a><a href='../tree'>y</a><a href='//evil.example'>z</a><a href='?x'>w</a>",
    "<a href='https:evil'>x</a><a href='http:\\\\evil.example'>y</a><a href='https://[evil'>z</a>",
    "<a href='https://ok.example/' target=_top ping='https://evil.example' download>x</a>",
    "<a href='https://ok.example/' rel=opener>x</a>",
    "<img src='https://evil.example/leak?x'>",
    f"<img srcset='https://evil.example/x 1x' src='{IMAGE}' loading=eager lowsrc=x>",
    "<img src='data:image/svg+xml;base64,PHN2Zz48L3N2Zz4='>",
    "<img src='data:text/html;base64,PHNjcmlwdD4='>",
    "<img src='data:image/png;base64,PHNjcmlwdD4='>",
    f"<img src='data:image/png;base64,{PNG}\" onerror=alert(1)'>",
    "<table background='https://evil.example/x'><tr><td background=x>x</td></tr></table>",
    "<video poster=https://evil.example/x><source src=x></video><audio src=x>",
    "<image src=x onerror=alert(1)>",
    # styles
    "<style>@import 'https://evil.example/x.css';</style>x",
    "<style>body{position:fixed}</style>x",
    "<p style='background:url(https://evil.example/x)'>x</p>",
    "<p style='background-color:u\\72l(https://evil.example/x)'>x</p>",
    "<p style='position:fixed;top:0;left:0;width:100%;height:100%;z-index:9999'>x</p>",
    "<p style='width:expression(alert(1))'>x</p>",
    "<p style='color:red;margin:-1000px'>x</p>",
    "<p style='color:var(--x);padding:calc(1px*999999)'>x</p>",
    "<p style='color:red}body{position:fixed'>x</p>",
    "<p style='color:/**/red;-moz-binding:url(x)'>x</p>",
    "<p style='background-color:image-set(\"https://evil.example/x\" 1x)'>x</p>",
    "<p style='color:red;\ncolor:\"><script>alert(1)</script>'>x</p>",
    "<p style='float:left;opacity:0;transform:scale(99);pointer-events:none;content:x;cursor:url(x)'>x</p>",
    # crossed, cut off, repeated
    "<table><b><script>alert(1)</script></b><tr><td>x",
    "<table><td><table><td></table></td></table></td><img src=x onerror=alert(1)>",
    "<b><p></b><i></p><table><a href=javascript:1><tr></a><td></b>x",
    "<a href='https://ok.example' href='javascript:alert(1)'>x</a>",
    "<p style=color:red style=position:fixed>x",
    "<p title=x",
    "<p title='x",
    "<",
    "</",
    "<!",
    "<!--",
    "<a href=https://ok.example/><a href=javascript:1><b><a>x",
    "\x00<\x00script>alert(1)</script>",
    "\u202e<script>alert(1)</script>\ud800",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
]


@pytest.mark.parametrize("source", HOSTILE_HTML)
def test_hostile_html_comes_out_inert(source: str) -> None:
    shown_html(source)
    shown_html(f"<div><p>before</p>{source}<p>after</p></div>")
    shown_html(f"<table><tr><td>{source}</td></tr></table>")
    shown_html(f"<pre>{source * 3}")


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("x<script>1</script>", "scripts"),
        ("<b onclick=x>x</b>", "event handlers"),
        ("<u><script onload=1></script>x", "event handlers"),
        ("x<style>p{position:fixed}</style>", "style sheets"),
        ("x<svg></svg>", "SVG"),
        ("x<math></math>", "MathML"),
        ("x<iframe>", "frames"),
        ("x<form><input>", "forms"),
        ("x<meta>", "page settings"),
        ("x<object></object>", "embedded objects"),
        ("<a href='javascript:1'>x</a>", "links"),
        ("x<img src='https://evil.example'>", "images"),
        ("<p style='position:fixed'>x", "active styles"),
    ],
)
def test_says_what_was_removed(source: str, word: str) -> None:
    result = filter_bundle({"text/html": source})
    assert "text/html" in result.data
    assert len(result.withheld) == 1
    assert word in result.withheld[0]


def test_only_a_script_is_withheld_and_says_so() -> None:
    result = filter_bundle({"text/html": "<script>alert(1)</script>"})
    assert list(result.data) == ["text/plain"]
    assert "scripts" in str(result.data["text/plain"])
    assert "--rich trusted" in str(result.data["text/plain"])


PANDAS = """<div>
<style scoped>
    .dataframe tbody tr th:only-of-type {
        vertical-align: middle;
    }

    .dataframe tbody tr th {
        vertical-align: top;
    }
</style>
<table border="1" class="dataframe">
  <thead>
    <tr style="text-align: right;">
      <th></th>
      <th>price</th>
    </tr>
  </thead>
  <tbody>
    <tr>
      <th>0</th>
      <td>1 &amp; 2 &lt; 3</td>
    </tr>
  </tbody>
</table>
<p>1 rows × 1 columns</p>
</div>"""


def test_a_data_frame_survives_whole_and_without_a_word() -> None:
    result = filter_bundle({"text/html": PANDAS, "text/plain": "   price\n0  1 & 2 < 3"})
    assert result.withheld == ()
    html = str(result.data["text/html"])
    seen = inspect(html).seen
    assert seen == ["div", "table", "thead", "tr", "th", "th", "tbody", "tr", "th", "td", "p"]
    assert "<td>1 &amp; 2 &lt; 3</td>" in html
    assert 'style="text-align:right"' in html
    assert "only-of-type" not in html


@pytest.mark.parametrize(
    "source",
    [
        "<p>a <b>b</b> <code>c</code><br>d</p>",
        "<ul><li>a</li><li>b</li></ul>",
        '<details open="open"><summary>s</summary>t</details>',
        '<table><tbody><tr><td colspan="2">x</td></tr></tbody></table>',
        '<p style="color:#ff0000;font-weight:bold;border:1px solid #ccc;padding:3px 4%">x</p>',
        f'<img src="{IMAGE}" alt="x" width="10" height="20">',
        "<pre>\n  a &lt;b&gt; C:\\data</pre>",
        "<p>$x_1 \\alpha$</p>",
    ],
)
def test_harmless_html_survives(source: str) -> None:
    assert sorted(re.split(r"[\s<>]+", shown_html(source))) == sorted(re.split(r"[\s<>]+", source))
    assert filter_bundle({"text/html": source}).withheld == ()


def test_left_out_closing_tags_are_put_in() -> None:
    html = shown_html("<table><tr><td>1<td>2<tr><td>3</table><p>a<p>b<ul><li>c<li>d</ul>")
    assert html == (
        "<table><tbody><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></tbody></table>"
        "<p>a</p><p>b</p><ul><li>c</li><li>d</li></ul>"
    )
    assert shown_html("<p>x" * 1000).count("x") == 1000


def test_links_leave_without_referrer_or_opener() -> None:
    html = shown_html('<a href="https://x.example/?a=1&b=2">x</a>')
    assert html.startswith('<a href="https://x.example/?a=1&amp;b=2"')
    assert 'rel="noopener noreferrer nofollow"' in html
    assert 'target="_blank"' in html


def test_latex_inside_html_is_defused() -> None:
    html = shown_html("<p>$\\href{javascript:1}{x} \\hr<x>ef{javascript:1}{x}$ and \\alpha</p>")
    assert not re.search(r"\\href", html)
    assert "\\alpha" in html


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 90_000,
        "<q>" * 20_000 + "</z>" * 20_000,
        ("<b>" * 40 + "<p>") * 2_000,
        "<table><tr><td>" * 20_000,
        "<li>" * 50_000,
        "&" * (4 << 20),
        "\xa0" * (4 << 20),
        "<" * (4 << 20),
        "<a " + "x=" * (2 << 20),
        "<a " + " " * (4 << 20),
        '<a x="' * 500_000,
        "<!--" * 1_000_000,
        "<svg>" * 500_000,
        "<style>" + ".dataframe " * 300_000,
        "<p style='" + "a:;" * 1_000_000 + "'>",
    ],
    ids=lambda source: source[:8],
)
def test_html_bombs_end_soon(source: str) -> None:
    # Quadratic work on any of these takes minutes; the bound leaves room for a slow and busy machine.
    start = time.process_time()
    filter_bundle({"text/html": source[: 4 << 20]})
    assert time.process_time() - start < 20


def test_html_past_the_bound_is_withheld() -> None:
    result = filter_bundle({"text/html": "x" * ((4 << 20) + 1), "text/plain": "x"})
    assert list(result.data) == ["text/plain"]
    assert result.withheld == ("text/html (too long)",)


# Images

GOOD_IMAGES = [
    ("image/png", png()),
    ("image/jpeg", jpeg()),
    ("image/gif", gif()),
    ("image/webp", webp(b"VP8X", bytes(10))),
    ("image/webp", webp(b"VP8L", b"\x2f" + bytes(8))),
    ("image/webp", webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a\x01\0\x01\0" + bytes(4))),
]
BAD_IMAGES = [
    ("image/png", b"<script>alert(1)</script>"),
    ("image/png", jpeg()),
    ("image/jpeg", png()),
    ("image/gif", b"GIF89a/*" + bytes(100) + b"*/=alert(1)"),
    ("image/gif", b"GIF89a"),
    ("image/gif", gif()[:-10]),
    ("image/gif", gif(frame=(60_000, 60_000))),
    ("image/webp", webp(b"EXIF", bytes(20))),
    ("image/webp", webp(b"VP8X", bytes(4) + b"\xff" * 6)),
    ("image/webp", b"RIFF\0\0\0\0WEBP"),
    ("image/png", png(0, 5)),
    ("image/png", png(100_000, 100_000)),
    ("image/jpeg", jpeg(65_535, 65_535)),
    ("image/jpeg", b"\xff\xd8\xff\xd9"),
    ("image/jpeg", b"\xff\xd8" + b"\xff\xe0\0\0" * 200_000),
    ("image/png", b""),
    ("image/png", png() + bytes(16 << 20)),
    ("image/png", base64.b64encode(png()).decode() + "!"),
    ("image/png", base64.b64encode(png()).decode()[:-1]),
    ("image/png", PNG + "\n<script>"),
    ("image/png", "A" * (40 << 20)),
    ("image/png", f"data:image/png;base64,{PNG}"),
    ("image/png", 1),
    ("image/png", [PNG]),
    ("image/png", {"src": PNG}),
]


@pytest.mark.parametrize(("mime", "raw"), GOOD_IMAGES)
def test_true_images_pass(mime: str, raw: bytes) -> None:
    encoded = base64.b64encode(raw).decode()
    for value in (raw, encoded, base64.encodebytes(raw).decode(), encoded + "\n"):
        result = filter_bundle({mime: value})
        assert result.data == {mime: encoded}
        assert result.withheld == ()


@pytest.mark.parametrize(("mime", "value"), BAD_IMAGES, ids=range(len(BAD_IMAGES)))
def test_false_images_do_not(mime: str, value: object) -> None:
    result = filter_bundle({mime: value, "text/plain": "a figure"})
    assert result.data == {"text/plain": "a figure"}
    assert result.withheld[0].startswith(mime)


def test_image_metadata_is_cut_to_size_and_background() -> None:
    metadata: dict[str, object] = {
        "image/png": {"width": 10, "height": True, "onload": "alert(1)", "needs_background": "light"},
        "image/gif": {"width": 10},
        "text/html": {"isolated": True},
        "isolated": True,
        "needs_background": "dark",
        "tags": ["x"],
    }
    result = filter_bundle({"image/png": PNG, "text/html": "<p>x"}, metadata)
    assert result.metadata == {
        "image/png": {"width": 10, "needs_background": "light"},
        "needs_background": "dark",
    }
    hostile: object
    for hostile in (
        {"width": 10**9},
        {"width": "10"},
        {"width": -1},
        {"needs_background": "url(x)"},
        [],
        "x",
        None,
    ):
        assert filter_bundle({"image/png": PNG}, {"image/png": hostile}).metadata == {}
    assert filter_bundle({"text/plain": "x"}, metadata).metadata == {}


# LaTeX

HOSTILE_LATEX = [
    r"$\href{javascript:alert(1)}{x}$",
    r"$\url{javascript:alert(1)}$",
    r"$\unicode[a;background:url(x)]{65}$",
    r"$\require{html}$",
    r"$\htmlData{commandlinker-command=x}{x}$",
    r"$\data{commandlinker-command=x}{x}$",
    r"$\class{jp-x}{x}$",
    r"$\cssId{x}{x}$",
    r"$\style{position:fixed}{x}$",
    r"$\includegraphics{https://evil.example/x}$",
    r"\def\a{\a\a}\a",
    r"\gdef\a{x}",
    r"\newcommand{\a}{\a\a}\a",
    r"\let\x=\frac",
    r"$\mmlToken{mi}[href='javascript:1']{x}$",
    r"$\bbox[background:url(x)]{x}$",
    r"$\csname hre" + r"f\endcsname$",
    "$\\hr\x00ef{javascript:1}{x}$",
    "$\\\x1b[31mhref{javascript:1}{x}$"[:2] + "href{x}{y}$",
    r"$^^5chref{x}{y}$",
    "{" * 1000,
    "x" * (65 << 10),
]


@pytest.mark.parametrize("source", HOSTILE_LATEX)
def test_active_latex_is_withheld(source: str) -> None:
    result = filter_bundle({"text/latex": source, "text/plain": "x"})
    assert result.data == {"text/plain": "x"}
    assert result.withheld[0].startswith("text/latex")


def test_latex_survives_and_is_no_markup() -> None:
    source = (
        r"$\displaystyle \frac{\sqrt{\alpha}}{2} \left[ x \right] \begin{matrix}a & b\\c & d\end{matrix}$"
    )
    assert filter_bundle({"text/latex": source}).data == {"text/latex": source}
    html = str(
        filter_bundle({"text/latex": "$a<b<img src=x onerror=1>$ [x](command:y) ![z][w]"}).data["text/latex"]
    )
    assert not re.search(r"<[A-Za-z/!?]|\]\(|\]\[", html)


# JSON and charts


def nested(levels: int) -> object:
    """Make a list in a list in a list …"""
    value: object = []
    for _ in range(levels):
        value = [value]
    return value


def shared(levels: int) -> object:
    """Make a small structure that is 2**levels large when it is written out."""
    value: object = "x"
    for _ in range(levels):
        value = [value, value]
    return value


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
BAD_JSON = [
    nested(10_000),
    shared(50),
    CIRCLE,
    {1: 2},
    {"x": {1, 2}},
    object(),
    {"x": b"y"},
    1 << 5000,
    1j,
]


@pytest.mark.parametrize("value", BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize("mime", ["application/json", "application/vnd.plotly.v1+json"])
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_not_json_or_too_much_is_withheld(mime: str, value: object, *, trusted: bool) -> None:
    result = filter_bundle({mime: value, "text/plain": "x"}, trusted=trusted)
    assert result.data == {"text/plain": "x"}
    assert result.withheld[0].startswith(mime)


def test_json_is_copied_and_can_be_sent() -> None:
    value = {"a": [1, 2.5, None, True, "x\ud800\u202e"], "b": {"c": float("nan")}}
    result = filter_bundle({"application/json": value})
    assert result.data["application/json"] == {"a": [1, 2.5, None, True, "x\ufffd\ufffd"], "b": {"c": None}}
    assert result.data["application/json"] is not value
    json.dumps(result.data, ensure_ascii=False, allow_nan=False).encode()


VEGA_LITE = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.20.1.json",
    "config": {"view": {"continuousWidth": 300}},
    "data": {"name": "data-1"},
    "datasets": {"data-1": [{"url": "a", "filter": "x > 1", "v": 1}]},
    "mark": {"type": "bar", "color": "rgb(1, 2, 3)"},
    "encoding": {
        "x": {"field": "url", "type": "nominal", "title": "Power (hp)"},
        "y": {"field": "v", "type": "quantitative", "aggregate": "mean", "axis": {"format": ".2f"}},
        "color": {"condition": {"param": "p", "field": "url"}, "value": "grey"},
    },
    "transform": [{"filter": {"field": "v", "gt": 0}}],
    "params": [
        {"name": "p", "select": {"type": "interval", "on": "click"}, "bind": "scales"},
        {"name": "s", "value": 1, "bind": {"input": "range", "min": 0, "max": 10}},
    ],
}
HOSTILE_VEGA: list[dict[str, object]] = [
    {"data": {"url": "https://evil.example/x.csv"}},
    {"data": [{"name": "x", "url": "/api/contents"}]},
    {"data": {"values": "image,x\nhttps://evil.example,1"}},
    {"data": {"sequence": {"start": 0, "stop": 10**9}}},
    {"data": {"values": [{"image": "https://evil.example/x"}]}},
    {"data": {"values": [{"__proto__": {"x": 1}}]}},
    {"datasets": {"__proto__": [{"x": 1}]}},
    {"encoding": {"href": {"value": "javascript:alert(1)"}}},
    {"encoding": {"url": {"value": "https://evil.example"}}},
    {"mark": {"type": "image"}},
    {"mark": {"type": "bar", "href": "https://evil.example"}},
    {"encoding": {"tooltip": [{"field": "a", "title": "image"}]}},
    {"encoding": {"tooltip": [{"field": "['image']"}]}},
    {"encoding": {"x": {"field": "a']||alert(1)"}}},
    {"params": [{"name": "x", "expr": "alert(1)"}]},
    {"mark": {"type": "bar", "width": {"expr": "alert(1)"}}},
    {"width": {"signal": "alert(1)"}},
    {"transform": [{"calculate": "alert(1)", "as": "x"}]},
    {"transform": [{"filter": "(0//1/)-'\\\\\\n,alert(1))))//'"}]},
    {"transform": [{"filter": {"and": ["alert(1)"]}}]},
    {"transform": [{"filter": {"not": "alert(1)"}}]},
    {"transform": [{"impute": "a + alert(1)", "key": "x"}]},
    {"transform": [{"pivot": "x", "value": "y"}]},
    {"transform": [{"type": "formula", "expr": "alert(1)", "as": "x"}]},
    {"signals": [{"name": "x", "on": [{"events": "mousemove", "update": "event.view"}]}]},
    {"signals": [{"name": "x", "init": "alert(1)"}]},
    {"params": [{"name": "x", "select": {"type": "point", "on": "click[event.view.setTimeout('x')]"}}]},
    {"params": [{"name": "x", "select": {"type": "point", "toggle": "event.view"}}]},
    {"params": [{"name": "x", "bind": {"input": "image", "src": "x", "onerror": "alert(1)"}}]},
    {"params": [{"name": "x", "bind": {"input": "range", "onfocus": "alert(1)"}}]},
    {"params": [{"name": "x", "bind": {"input": ["range"]}}]},
    {"params": [{"name": "x", "bind": {"element": "#password"}}]},
    {"config": {"customFormatTypes": True}},
    {"encoding": {"x": {"field": "a", "format": "x", "formatType": "alert"}}},
    {"encoding": {"x": {"axis": {"labelExpr": "alert(1)"}}}},
    {"encoding": {"color": {"condition": {"test": "alert(1)", "value": "red"}}}},
    {"$schema": "https://evil.example/schema.json"},
    {"constructor": {"prototype": {}}},
    {"mark": {"type": "bar", "fill": "url(https://evil.example)"}},
    {"width": 10**9},
]


@pytest.mark.parametrize("mime", ["application/vnd.vegalite.v5+json", "application/vnd.vega.v5+json"])
@pytest.mark.parametrize("change", HOSTILE_VEGA, ids=range(len(HOSTILE_VEGA)))
def test_vega_that_runs_or_loads_is_withheld(mime: str, change: dict[str, object]) -> None:
    for spec in (VEGA_LITE | change, {"layer": [{"vconcat": [change]}]}):
        if change.keys() & {"$schema", "datasets"} and "layer" in spec:
            continue  # these mean something at the top only
        result = filter_bundle({mime: spec, "text/plain": "x"})
        assert result.data == {"text/plain": "x"}
        assert result.withheld[0].startswith(mime)


def test_a_plain_chart_passes_without_its_embedding_options() -> None:
    mime = "application/vnd.vegalite.v5+json"
    spec = VEGA_LITE | {"usermeta": {"embedOptions": {"loader": {"baseURL": "https://evil.example"}}}}
    result = filter_bundle({mime: spec}, {mime: {"embed_options": {"ast": False}}})
    assert result.data == {mime: VEGA_LITE}
    assert result.metadata == {}


PLOTLY: dict[str, Any] = {
    "data": [{"type": "scatter", "x": [1, 2], "y": [3, 4], "hovertemplate": "<b>%{x}</b><br>lifestyle=%{y}"}],
    "layout": {"title": {"text": "a < b <i>c</i>"}, "template": {"layout": {"mapbox": {"style": "light"}}}},
}
HOSTILE_PLOTLY: list[dict[str, object]] = [
    {"data": [{"type": "scatter", "text": "<a href='javascript:alert(1)'>x</a>"}]},
    {"data": [{"type": "scatter", "text": ["ok", "<A\nHREF=https://evil.example>x</A>"]}]},
    {"layout": {"title": '<span style="fill:url(https://evil.example)">x</span>'}},
    {"layout": {"title": "$\\href{javascript:alert(1)}{x}$"}},
    {"layout": {"images": [{"source": "https://evil.example/x.png"}]}},
    {"layout": {"images": [{"source": "data:image/svg+xml,<svg/>"}]}},
    {"layout": {"template": {"layout": {"images": [{"source": "https://evil.example/x.png"}]}}}},
    {"frames": [{"layout": {"images[0].source": "https://evil.example/x.png"}}]},
    {"layout": {"updatemenus": [{"buttons": [{"args": ["images[0].source", "//evil.example"]}]}]}},
    {"layout": {"updatemenus": [{"buttons": [{"args2": [{"images[0].source": ["//evil.example"]}]}]}]}},
    {"layout": {"sliders": [{"steps": [{"args": [{"type": ["choropleth"]}]}]}]}},
    {"data": [{"type": "image", "source": "https://evil.example/x.png"}]},
    {"data": [{"type": "scattermapbox"}]},
    {"data": [{"type": "choropleth", "locations": ["FRA"]}]},
    {"data": [{"type": "scatter", "geojson": "https://evil.example/x"}]},
    {"layout": {"mapbox2": {"style": "https://evil.example/style.json"}}},
    {"layout": {"geo": {}}},
    {"layout": {"__proto__": {"x": 1}}},
    {"data": "x"},
]


@pytest.mark.parametrize("change", HOSTILE_PLOTLY, ids=range(len(HOSTILE_PLOTLY)))
def test_plotly_that_runs_or_loads_is_withheld(change: dict[str, object]) -> None:
    mime = "application/vnd.plotly.v1+json"
    result = filter_bundle({mime: PLOTLY | change, "text/plain": "x"})
    assert result.data == {"text/plain": "x"}
    assert result.withheld[0].startswith(mime)


def test_a_plain_figure_passes_with_harmless_switches() -> None:
    mime = "application/vnd.plotly.v1+json"
    config = {"plotlyServerURL": "https://evil.example", "responsive": True, "showSendToCloud": True}
    result = filter_bundle({mime: PLOTLY | {"config": config, "x": 1}})
    assert result.data == {mime: PLOTLY | {"config": {"responsive": True}}}


# Bundles


@pytest.mark.parametrize(
    "mime",
    [
        *("image/svg+xml", "application/javascript", "text/javascript", "application/pdf", "text/x-unknown"),
        *("application/vnd.jupyter.widget-view+json", "application/vnd.bokehjs_exec.v0+json", "Text/HTML"),
        *("text/html;x=1", "application/vnd.dataresource+json", "application/geo+json", "text/vnd.mermaid"),
        *("application/x-anything", "application/vnd.vega.v4+json"),
    ],
)
def test_every_other_type_is_withheld(mime: str) -> None:
    for value in ("<script>alert(1)</script>", {"x": 1}, b"x"):
        alone = filter_bundle({mime: value})
        assert list(alone.data) == ["text/plain"]
        assert len(alone.withheld) == 1
        assert filter_bundle({mime: value, "text/plain": "x"}).data == {"text/plain": "x"}


def test_markdown_is_shown_as_text() -> None:
    result = filter_bundle({"text/markdown": "# x <script>"})
    assert result.data == {"text/plain": "# x <script>"}
    assert len(result.withheld) == 1
    assert filter_bundle({"text/markdown": "# x", "text/plain": "y"}).data == {"text/plain": "y"}


def test_names_and_numbers_of_types_are_bounded() -> None:
    many = {f"x/y{n}": "z" for n in range(5000)}
    result = filter_bundle(many)
    assert len(result.withheld) == 33
    assert "4968 more types" in result.withheld[-1]
    odd: Any = {1: "x", None: "y", "<script>": "z", ("a",): 1, "x" * 10**6: 2, "text/plain": "ok"}
    result = filter_bundle(odd)
    assert result.data == {"text/plain": "ok"}
    assert all(len(text) < 100 for text in result.withheld)
    assert all("script" not in text for text in result.withheld)


def test_plain_text_is_cleaned_and_bounded() -> None:
    result = filter_bundle({"text/plain": "\x1b[31mred\x1b[0m\x1b]0;title\x07\x00"})
    assert result.data == {"text/plain": "\x1b[31mred\x1b[0m"}
    long = str(filter_bundle({"text/plain": "x" * (5 << 20)}).data["text/plain"])
    assert len(long) < (4 << 20) + 100
    assert long.endswith("more characters)")


def test_trusted_passes_everything_that_can_be_sent() -> None:
    data = {
        "text/html": "<script>1</script>",
        "application/javascript": "1",
        "image/png": b"x",
        "x/y": {"a": [1]},
    }
    metadata = {"text/html": {"isolated": True}}
    result = filter_bundle(data, metadata, trusted=True)
    assert result.data == data | {"image/png": "eA=="}
    assert result.metadata == metadata
    assert result.withheld == ()
    odd: Any = {1: "x", "x/y": object(), "text/html": "\ud800"}
    json.dumps(filter_bundle(odd, trusted=True).data).encode()


def random_value(source: random.Random, depth: int = 3) -> object:
    """Make something that a hostile frame or a careless caller could hand in."""
    scraps = [
        *HOSTILE_HTML[:40],
        *HOSTILE_LATEX[:10],
        PNG,
        IMAGE,
        "",
        "\x1b]8;;",
        "\ud800",
        "image",
        "data",
        "values",
    ]
    kind = source.randrange(9)
    if depth and kind == 0:
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if depth and kind == 1:
        return {source.choice(scraps): random_value(source, depth - 1) for _ in range(source.randrange(4))}
    if kind == 2:
        return source.choice(
            [None, True, -1, 1 << 70, float("inf"), b"\xff", object(), (1,), {2: 3}, {"bind": {"input": {}}}]
        )
    text = "".join(source.choice(scraps) for _ in range(source.randrange(4)))
    return "".join(c for c in text if source.random() > 0.02)


def test_random_bundles_never_raise_and_come_out_inert() -> None:
    source = random.Random(20240607)
    known = [
        *(
            "text/html",
            "text/plain",
            "text/latex",
            "text/markdown",
            "application/json",
            "image/png",
            "image/gif",
        ),
        *("application/vnd.vegalite.v5+json", "application/vnd.plotly.v1+json", "image/svg+xml", "x/y", 7),
    ]
    for _ in range(1500):
        data: Any = {source.choice(known): random_value(source) for _ in range(source.randrange(5))}
        metadata: Any = random_value(source)
        result = filter_bundle(data, metadata)
        assert result.data.keys() <= set(known) - {"text/markdown", "image/svg+xml", "x/y"}
        inspect(str(result.data.get("text/html", "")))
        json.dumps([result.data, result.metadata], ensure_ascii=False, allow_nan=False).encode()
        filter_bundle(data, metadata, trusted=True)
        filter_bundle(metadata)
        clean_traceback(random_value(source), random_value(source), random_value(source))


# Streams

KEPT = [
    "plain\n",
    "tab\tback\b\rcarriage",
    "\x1b[31;1mred\x1b[0m",
    "\x1b[38:5:9mx\x1b[m",
    " 50%|█| \x1b[K\x1b[A\r",
    "é漢🎉",
]
DROPPED = [
    ("\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "click"),
    ("\x1b]8;;https://evil.example\x07click\x1b]8;;\x07", "click"),
    ("\x1b]0;title\x07x", "x"),
    ("\x1b]52;c;cm0gLXJmIC8=\x07x", "x"),
    ("\x9d0;title\x9cx", "x"),
    ("\x1bPq#0\x1b\\x\x1b_apc\x1b\\y\x1b^pm\x1b\\z\x1bXsos\x1b\\", "xyz"),
    ("\x1b[2J\x1b[H\x1b[1;1fx\x1b[?25l\x1b[6n\x1b[!p\x1b[1;2r", "x"),
    ("\x1b[999Ax\x1b[3By", "xy"),
    ("\x9b31mx", "x"),
    ("\x1bcx\x1b(B\x1b#8y\x1b=", "xy"),
    ("a\x00b\x05c\x07d\x0be\x0cf\x0eg\x7fh\x85i", "abcdefghi"),
    ("\x1b[" + "1;" * 50 + "mx", "x"),
    ("\x1b\x1b[31mx", "\x1b[31mx"),
    ("x\x1b", "x"),
    ("x\x1b[31", "x"),
    ("x\x1b]0;never ended\ny", "x\ny"),
    ("a\u202eb\u2066c\u2069", "a\ufffdb\ufffdc\ufffd"),
    ("a\ud800b", "a\ufffdb"),
    ("\x1b]0;" + "x" * 254 + "end", "end"),
    ("\x1b[\x1b[31mx", "\x1b[31mx"),
]


@pytest.mark.parametrize("text", KEPT)
def test_ordinary_output_is_kept(text: str) -> None:
    assert clean_stream(text) == text


@pytest.mark.parametrize(("text", "expected"), DROPPED)
def test_what_a_terminal_would_obey_is_dropped(text: str, expected: str) -> None:
    assert clean_stream(text) == expected


def test_cursor_up_can_be_refused_for_a_terminal() -> None:
    assert clean_stream("a\x1b[Ab\x1b[Kc\x1b[1md", cursor_up=False) == "ab\x1b[Kc\x1b[1md"


def test_clean_text_comes_back_as_the_same_object() -> None:
    for text in ("plain\n" * 100_000, "é\n" * 1000):
        assert clean_stream(text) is text


def in_chunks(raw: bytes, sizes: list[int]) -> str:
    """Feed bytes in chunks of these sizes, over and over."""
    cleaner = StreamCleaner()
    out, at, turn = [], 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        out.append(cleaner.feed(raw[at : at + size]))
        at, turn = at + size, turn + 1
    return "".join(out) + cleaner.finish()


def test_a_stream_cut_anywhere_reads_as_the_uncut_one() -> None:
    source = random.Random(7)
    scraps = [
        *KEPT,
        *(text for text, _ in DROPPED if "\ud800" not in text),
        "\x1b",
        "[",
        "]",
        "\\",
        "\x9b",
        "m",
        "é",
    ]
    texts = ["".join(source.choices(scraps, k=12)) for _ in range(300)]
    for text in [*(text for text in scraps), *texts]:
        raw = text.encode()
        for sizes in ([1], [2], [3, 1], [source.randint(1, 300)]):
            assert in_chunks(raw, sizes) == clean_stream(text)


def test_a_stream_is_prompt() -> None:
    cleaner = StreamCleaner()
    assert cleaner.feed(b"no line end yet") == "no line end yet"
    assert cleaner.feed(b"a\x1b[3") == "a"
    assert cleaner.feed(b"1mb") == "\x1b[31mb"
    assert cleaner.feed("é".encode()[:1]) == ""
    assert cleaner.feed("é".encode()[1:] + b"x") == "éx"
    assert cleaner.feed(b"\xff\xfe") == "\ufffd\ufffd"
    assert cleaner.feed(b"\x1b]0;never ended") == ""
    assert cleaner.feed(b"y" * 1000).endswith("y" * 700)
    assert cleaner.finish() == ""


def test_hostile_streams_take_linear_time() -> None:
    for piece in (
        b"\x1b",
        b"\x1b[",
        b"\x1b]0",
        b"\x1b[1;",
        b"\x1b[31m",
        b"\x1bP\x1b",
        "\u202e".encode(),
        b"\xff",
        b"\0",
    ):
        start = time.process_time()
        in_chunks(piece * (1_000_000 // len(piece)), [4096])
        assert time.process_time() - start < 10


# Tracebacks


def test_tracebacks_are_cleaned_and_bounded() -> None:
    name, value, lines = clean_traceback(
        "E\x1b]0;x\x07\n" * 1000, "v\r\b" * 100_000, [f"line {n}" for n in range(5000)]
    )
    assert len(name) <= 200
    assert len(value) <= 10_000
    assert not re.search(r"[\r\b\x1b\n]", name + value)
    assert len(lines) == 200
    assert (lines[0], lines[-1]) == ("line 0", "line 4999")
    assert "4801 more lines" in lines[99]


@pytest.mark.parametrize(
    "traceback", [["x\n" * 10**6], ["y" * 10**6] * 300, ["\x1b[31m" * 10**5], [["x"]], "x", None, 5]
)
def test_hostile_tracebacks_stay_small(traceback: object) -> None:
    name, value, lines = clean_traceback(None, {"x": 1}, traceback)
    assert (name, value) == ("Error", "")
    assert sum(map(len, lines)) <= 200_000
    assert sum(line.count("\n") + 1 for line in lines) <= 201


def test_an_ordinary_traceback_is_kept() -> None:
    lines = ["\x1b[31m---------\x1b[39m", "ValueError: x"]
    assert clean_traceback("ValueError", "x", lines) == ("ValueError", "x", lines)
