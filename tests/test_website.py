"""The site: built from all pages and notebooks, and every link in it leads somewhere."""

from __future__ import annotations

import html.parser
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from nsmagic.course.lessons import LESSONS
from nsmagic.options import OPTIONS

ROOT = Path(__file__).parents[1]
SECONDS = 200

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("website")]


class Page(html.parser.HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in {"script", "img", "iframe", "source"} and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in {"stylesheet", "preload", "icon"}:
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with the notebooks as students open them."""
    out = tmp_path_factory.mktemp("site")
    tool = ROOT / "tools" / "website.py"
    done = subprocess.run(
        [sys.executable, "-I", str(tool), str(out), "--unexecuted"],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return out / "html"


def pages_of(site: Path) -> dict[Path, Page]:
    """All pages; in _static are the theme's templates."""
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_no_link_is_broken(site: Path) -> None:
    pages = pages_of(site)
    assert len(pages) > 40
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            where = urlsplit(link)
            if where.scheme or where.netloc:
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            if not target.exists():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif where.fragment and target in pages and where.fragment not in pages[target].names:
                broken.append(f"{path.relative_to(site)}: {link}: no such place in the page")
    assert not broken, "\n".join(broken)


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    elsewhere = {
        f"{path.relative_to(site)}: {load}"
        for path, page in pages_of(site).items()
        for load in page.loads
        if urlsplit(load).netloc or urlsplit(load).scheme not in {"", "data"}
    }
    assert not elsewhere


def test_every_lesson_and_option_is_there(site: Path) -> None:
    course = (site / "course.html").read_text(encoding="utf-8")
    for lesson in LESSONS:
        if (ROOT / "notebooks" / f"{lesson.name}.ipynb").exists():
            assert f"notebooks/{lesson.name}.html" in course
            assert (site / "notebooks" / f"{lesson.name}.html").exists()
    options = (site / "options.html").read_text(encoding="utf-8")
    for option in OPTIONS:
        for flag in option.flags:
            assert f">{flag}</span>" in options
    for page in ("index", "docs/hosts/docker", "docs/architecture", "docs/teaching", "docs/kernel"):
        assert (site / f"{page}.html").exists()
