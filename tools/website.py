#!/usr/bin/env python3
"""Build the site: README, course, host pages, options, architecture, as HTML that needs no other server.

usage: website.py OUT               execute the notebooks whose copy is older than they are, then build
       website.py OUT --unexecuted  take the notebooks as students open them; quick

Sphinx builds it, and reads Markdown and notebooks by MyST (myst-nb).  The folder that it builds from,
OUT/source, is a copy of the repository's pages as they lie, so that the links in them mean the same; beside
them are an executed copy of each notebook and what is made here: the options' reference and the course's
page.  A link that leads nowhere is an error.  OUT/html/index.html is the site.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic.course.lessons import LESSONS
from nsmagic.options import OPTIONS

if TYPE_CHECKING:
    from types import ModuleType

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "LICENSE")
BUILT: Final = ROOT / "build" / "wheel" / ".built"
"""Newer than a notebook's executed copy: what it shows may have changed."""

SCOPES: Final = {
    "container": ("What a container is", "`%%contain`, `%contain_config`, `nsmagic run`, the API, kernels"),
    "job": ("One run", "likewise"),
    "life": ("How long it lives", "`%%contain` and the API"),
    "view": ("What is shown of it", "`%%contain` and `nsmagic run`"),
    "magic": ("In a notebook", "`%%contain`"),
    "line": ("For the whole session", "`%contain_config`"),
    "command": ("In a shell", "`nsmagic run`"),
    "kernel": ("Of a kernel", '"Isolated Python", `%isolation`'),
    "supervisor": ("What a kernel spec starts", "written by `nsmagic kernel install` and `wrap`"),
    "install": ("Installing kernels", "`nsmagic kernel install`"),
    "scratch": ("Scratch processes", "`%%scratch`"),
}  # fmt: skip
"""What the options' reference calls their scopes; see ``options.Option``."""

COURSE: Final = """\
# The course

What isolation is made of, from *does a container share its host's kernel?* to a container of one's own.
Each notebook takes 20 to 40 minutes, and is here as it runs from top to bottom before anybody has solved an
exercise: the checks say what is missing. To work on them, open them in JupyterLab: `make run`. For teachers:
[Teaching with it](docs/teaching.md).
"""

CONFIG: Final = """
project = "nsmagic"
html_title = "nsmagic"
extensions = ["myst_nb"]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True, "use_download_button": True}
html_copy_source = html_show_sourcelink = False
html_show_copyright = False
nb_execution_mode = "off"  # they were run before, by the course's own tool
myst_enable_extensions = []
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure", "myst.header", "mystnb.unknown_mime_type"]
html_math_renderer = "nothing"  # no page has formulas, and a renderer would be fetched

def setup(app):
    app.add_html_math_renderer("nothing", (None, None), (None, None))
"""

CONTENTS: Final = """
```{toctree}
:hidden:
:caption: Course

course
PAGES
```
```{toctree}
:hidden:
:caption: Using it

notebooks/quickstart
docs/kernel
docs/snapshots
notebooks/snapshots
docs/scratch
options
docs/hosts
```
```{toctree}
:hidden:
:caption: Teaching, changing

docs/teaching
docs/course-authors
docs/architecture
CONTRIBUTING
CHANGELOG
OTHERS
```
"""
OTHER_KERNELS: Final = frozenset({"isolated-python"})
"""Notebooks for these are shown as they are: what runs the others is the plain kernel."""
PLACED: Final = frozenset(
    {"kernel", "snapshots", "scratch", "hosts", "teaching", "course-authors", "architecture"}
)


def _tool(name: str) -> ModuleType:
    """A script of this folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ---- what is made here ----------------------------------------------------------------------------


def options_page() -> str:
    """The reference of all options, from the one table that magics, command line and API read."""
    parts = ["# Options\n", "One table in `nsmagic/options.py`, which everything reads that takes options.\n"]
    for scope, (title, where) in SCOPES.items():
        rows = [option for option in OPTIONS if option.scope == scope]
        if not rows:
            continue
        parts += [
            f"## {title}\n",
            f"Taken by {where}.\n",
            "| option | in Python | what it does | without it |",
        ]
        parts.append("|---|---|---|---|")
        for option in rows:
            flags = ", ".join(f"`{flag}`" for flag in option.flags)
            value = f" `{option.metavar}`" if option.metavar else ""
            many = " May be given more than once." if option.many else ""
            words = f" One of {', '.join(f'`{each}`' for each in option.choices)}." if option.choices else ""
            text = f"{option.help}{words}{many}".replace("|", "\\|")
            parts.append(
                f"| {flags}{value} | `{option.name}` | {text} | {option.default} |".replace(
                    "`SIZE[", "`SIZE["
                )
            )
        parts.append("")
    return "\n".join(parts) + "\n"


def course_page(names: dict[str, str]) -> str:
    """The course's table of contents: each lesson, and what one can say at its end."""
    parts = [COURSE]
    for lesson in LESSONS:
        if lesson.name not in names:
            continue
        parts += [
            f"## [{lesson.number} · {lesson.title}](notebooks/{lesson.name}.ipynb)\n",
            names[lesson.name],
            "",
        ]
    return "\n".join(parts)


def _aims(notebook: dict[str, Any]) -> str:
    """What one can say at the end: the first cell's text behind its title."""
    text = "".join(notebook["cells"][0]["source"])
    return text.partition("\n")[2].strip()


# ---- the folder that Sphinx reads -------------------------------------------------------------------


def _copy_pages(source: Path) -> None:
    for name in PAGES:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("*.json"))
        else:
            shutil.copy(place, source / name)


def _notebooks(source: Path, kept: Path, *, execute: bool) -> dict[str, dict[str, Any]]:
    """Put the notebooks into the source, executed where that is wanted; each by its name."""
    course = _tool("course")
    (source / "notebooks").mkdir()
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if execute and made["metadata"].get("kernelspec", {}).get("name") not in OTHER_KERNELS:
            copy = kept / path.name
            newest = max(path.stat().st_mtime, BUILT.stat().st_mtime if BUILT.exists() else 0)
            if not copy.exists() or copy.stat().st_mtime < newest:
                sys.stdout.write(f"running {path.name}\n")
                sys.stdout.flush()
                copy.write_text(course.dumped(course.executed(made)), encoding="utf-8")
            made = json.loads(copy.read_text(encoding="utf-8"))
        (source / "notebooks" / path.name).write_text(course.dumped(made), encoding="utf-8")
        found[path.stem] = made
    return found


def _index(source: Path, lessons: list[str]) -> None:
    """The README is the first page; what is not placed in the contents comes at their end."""
    readme = source / "README.md"
    others = sorted(path.stem for path in (source / "docs").glob("*.md") if path.stem not in PLACED)
    contents = CONTENTS.replace("PAGES", "\n".join(f"notebooks/{name}" for name in lessons))
    contents = contents.replace("OTHERS", "\n".join(f"docs/{name}" for name in others))
    (source / "index.md").write_text(readme.read_text(encoding="utf-8") + contents, encoding="utf-8")
    readme.unlink()
    for path in source.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("README.md)", "index.md)").replace("](LICENSE)", "](LICENSE.md)"), encoding="utf-8"
        )
    hosts = source / "docs" / "hosts"
    pages = "\n".join(f"hosts/{path.stem}" for path in sorted(hosts.glob("*.md")))
    with (source / "docs" / "hosts.md").open("a", encoding="utf-8") as file:
        file.write(f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n")


def build(out: Path, *, execute: bool) -> int:
    """Build all of it below a folder; the exit status."""
    source, html, kept = out / "source", out / "html", out / "executed"
    for folder in (source, html):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    kept.mkdir(exist_ok=True)
    _copy_pages(source)
    notebooks = _notebooks(source, kept, execute=execute)
    lessons = [lesson.name for lesson in LESSONS if lesson.name in notebooks]
    (source / "options.md").write_text(options_page(), encoding="utf-8")
    course = course_page({name: _aims(notebooks[name]) for name in lessons})
    (source / "course.md").write_text(course, encoding="utf-8")
    _index(source, lessons)
    (source / "conf.py").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-I", "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    status = subprocess.run(
        [*command, str(source), str(html)], env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False
    ).returncode
    if status == 0:
        sys.stdout.write(f"{html / 'index.html'}\n")
    return status


def main(arguments: list[str]) -> int:
    """Do what was asked for; the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", type=Path)
    parser.add_argument("--unexecuted", action="store_true", help="take the notebooks as they are")
    given = parser.parse_args(arguments)
    return build(given.out.resolve(), execute=not given.unexecuted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
