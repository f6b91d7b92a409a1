"""Every instrument, run headless in a notebook: each has a text form, and a form for any front end and any export."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from instrument_cells import CELLS, LIMITED, notebook, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.container,
    pytest.mark.xdist_group("instruments notebook"),
    pytest.mark.timeout(300),
]

PICTURES = {"topology": 1, "explain": 1, "failure": 1, "memory": 1, "cpu": 1}
WORDS = {
    # What the text form must say.
    "doctor": "works",
    "both": "inside",
    "one": "lonely",
    "namespaces": "container",
    "containers": "init pid",
    "explain": "pivot_root",
    "failure": "what to do",
    "write": "peak memory",
    "changes": "notes.txt",
    "topology": "web",
    "memory": "out of memory",
    "cpu": "of 0.5",
    "scratch": "lab",
    "scratch-list": "lab",
}
NO_OUTPUT = {"lab", "serve", "lab-end", "load", "behind", "built", "stop", "scratch-stop"}
TAGS = {
    "a", "b", "br", "code", "div", "i", "img", "p", "pre", "small", "span", "strong", "table", "tbody", "td", "th", "thead", "tr",
    "wbr",
}  # fmt: skip
ATTRIBUTES = {"style", "src", "alt", "colspan", "href", "title"}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("instruments")
    return run(notebook(), str(folder))


def displays(book: Any, name: str) -> list[dict[str, str]]:
    (cell,) = [cell for cell in book.cells if cell["id"] == name]
    return [output.data for output in cell.outputs if output.output_type == "display_data"]


class Plain(HTMLParser):
    """Only tags and attributes that each front end shows, also where a notebook is not trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, (tag, attrs)
        given = dict(attrs)
        if tag == "img":
            assert given["alt"], "a picture is told in words, too"
            self.images.append(str(given["src"]))
        assert "url(" not in (given.get("style") or "")


@pytest.mark.parametrize("name", sorted(set(CELLS) - NO_OUTPUT - LIMITED))
def test_each_instrument_has_a_text_and_a_plain_form(book: Any, name: str) -> None:
    check(book, name)


@pytest.mark.limits
@pytest.mark.parametrize("name", sorted(LIMITED))
def test_each_instrument_of_limits_has_a_text_and_a_plain_form(book: Any, name: str) -> None:
    check(book, name)


def check(book: Any, name: str) -> None:
    shown = displays(book, name)
    assert shown, f"{name} shows nothing"
    data = shown[-1]
    assert WORDS[name] in data["text/plain"]
    assert "<" not in re.sub(r"<=|<-|<class|<stdin|<string", "", data["text/plain"]), (
        "no HTML in the text form"
    )
    parser = Plain()
    parser.feed(data["text/html"])
    assert len(parser.images) == PICTURES.get(name, 0)
    for image in parser.images:
        head, _, picture = image.partition(",")
        assert head == "data:image/svg+xml;base64"
        root = ET.fromstring(base64.b64decode(picture))
        allowed = {"svg", "rect", "text", "line", "circle", "polygon", "polyline"}
        assert {each.tag.rpartition("}")[2] for each in root.iter()} <= allowed


def test_cells_that_ought_to_fail_do_and_the_others_do_not(book: Any, limits_lack: str) -> None:
    failed = {
        cell["id"]: "".join(output.traceback)
        for cell in book.cells
        for output in cell.outputs
        if output.output_type == "error"
    }
    assert "could not be built" in failed.pop("failure")
    if limits_lack:
        for name in LIMITED & failed.keys():
            assert "HostError" in failed[name]
            assert "--best-effort" in failed.pop(name)
        failed.pop("scratch-stop", None)
    assert not failed


def test_a_static_page_keeps_every_picture(book: Any, tmp_path: Path) -> None:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(book)
    for name in CELLS:
        for data in displays(book, name):
            for picture in re.findall(r'src="(data:[^"]+)"', data.get("text/html", "")):
                assert picture in page
    assert "pivot_root" in page
