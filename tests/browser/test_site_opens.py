"""The site, opened in a browser: pages, pictures, styles, the search; nothing is asked of another server."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SECONDS = 200
PAGES = ("index", "course", "options", "docs/hosts", "docs/architecture", "docs/teaching",
         "notebooks/13-build-your-own", "notebooks/quickstart")  # fmt: skip

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(400)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        del arguments


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site, served on this machine."""
    out = tmp_path_factory.mktemp("site")
    tool = ROOT / "tools" / "website.py"
    subprocess.run([sys.executable, "-I", str(tool), str(out), "--unexecuted"], check=True, timeout=SECONDS)
    handler = functools.partial(Quiet, directory=str(out / "html"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_site_opens(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    failed: list[str] = []
    asked: set[str] = set()
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.on("request", lambda request: asked.add(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    for name in PAGES:
        page.goto(f"{address}{name}.html", wait_until="load")
        assert page.locator("article h1").first.inner_text()
        wide = page.evaluate("Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length")
        assert wide == 0, f"{name}: a picture is not shown"
    page.goto(f"{address}index.html")
    page.locator("nav a", has_text="The course").first.click()
    page.locator("article a", has_text="13 · Build your own container").first.click()
    page.locator("article h1", has_text="Build your own container").wait_for()
    page.goto(f"{address}search.html?q=pivot_root")
    page.locator("#search-results li").first.wait_for()
    elsewhere = {url for url in asked if not url.startswith((address, "data:"))}
    context.close()
    assert not elsewhere
    assert not failed
