#!/usr/bin/env python3
"""Make the course's notebooks from their sources.

usage: course.py build      write notebooks/NN-….ipynb, as students open them: exercises are open
       course.py check      exit status 1 where one of those is not what its source says
       course.py solved DIR     write notebooks with solutions between nbgrader's marks, for teachers
       course.py executed DIR   run what students open and write it with its outputs, for readers; an open
                                exercise fails its check there

A source is notebooks/sources/NN-….md: Markdown with fenced blocks.  A block of ``python`` with a name is a
code cell, everything else is text; docs/course-authors.md says it all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "notebooks" / "sources"
NOTEBOOKS: Final = ROOT / "notebooks"

BEGIN: Final = "### BEGIN SOLUTION"
END: Final = "### END SOLUTION"
OPEN: Final = "# your code here"
KEPT: Final = "shown"
"""The tag of cells whose output is kept in the notebooks that students open."""
_FENCE: Final = re.compile(r"```python (?P<name>[a-z0-9-]+)(?P<tags>( [a-z-]+)*)")
_SECONDS: Final = 120


class SourceError(Exception):
    """A source says something that makes no notebook."""


@dataclass
class Cell:
    """One cell.

    Attributes:
        kind: ``markdown`` or ``code``.
        name: its id, unique in the notebook.
        text: of a code cell with marks around its solution.
        stub: what the student gets in place of all of it; None where the marks say what.
        tags: for Jupyter.
    """

    kind: str
    name: str
    text: str
    stub: str | None = None
    tags: list[str] = field(default_factory=list)

    @property
    def is_solution(self) -> bool:
        """Whether a student writes it."""
        return self.name.startswith("solve-")

    @property
    def is_check(self) -> bool:
        """Whether it is graded."""
        return self.name.startswith("check-")

    def student(self) -> str:
        """What a student sees."""
        return self.stub if self.stub is not None else _opened(self.text)

    def marked(self) -> str:
        """The solution between its marks."""
        return self.text

    def solved(self) -> str:
        """The solution as it can be run: a cell magic must stand in the first line."""
        return "\n".join(line for line in self.text.split("\n") if line.strip() not in {BEGIN, END})


def _opened(text: str) -> str:
    """A cell without what stands between the marks."""
    lines, inside = [], False
    for line in text.split("\n"):
        if line.strip() == BEGIN:
            inside = True
            lines.append(line.replace(BEGIN, OPEN))
        elif line.strip() == END:
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines)


def read(path: Path) -> list[Cell]:
    """The cells of a source.

    Raises:
        SourceError: with the line.
    """
    cells: list[Cell] = []
    prose: list[str] = []
    names: set[str] = set()
    lines = path.read_text(encoding="utf-8").split("\n")
    number = 0

    def end_prose() -> None:
        text = "\n".join(prose).strip("\n")
        prose.clear()
        if text:
            heading = re.match(r"#+ (.*)", text)
            last = next((cell.name for cell in reversed(cells) if cell.kind == "code"), "start")
            name = f"text-{_slug(heading[1])}" if heading else f"text-after-{last}"
            cells.append(Cell("markdown", _unique(name, names), text))

    while number < len(lines):
        line = lines[number]
        fence = _FENCE.fullmatch(line)
        if fence is None:
            if line.startswith("```"):  # a block that is text: it is not looked into for headings
                end = _end(lines, number, path)
                prose += lines[number : end + 1]
                number = end + 1
                continue
            if line.startswith("#"):
                end_prose()
            prose.append(line)
            number += 1
            continue
        end_prose()
        end = _end(lines, number, path)
        text, name, tags = "\n".join(lines[number + 1 : end]), fence["name"], fence["tags"].split()
        number = end + 1
        if name.startswith("stub-"):
            if not cells or cells[-1].name != name.replace("stub-", "solve-", 1):
                raise SourceError(f"{path.name}: {name} does not follow its solve- cell")
            cells[-1].stub = text
            continue
        if name in names:
            raise SourceError(f"{path.name}: there are two cells {name}")
        names.add(name)
        cells.append(Cell("code", name, text, tags=tags))
    end_prose()
    _validate(cells, path)
    return cells


def _end(lines: list[str], number: int, path: Path) -> int:
    for end in range(number + 1, len(lines)):
        if lines[end] == "```":
            return end
    raise SourceError(f"{path.name}: the block that begins in line {number + 1} has no end")


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:48] or "text"


def _unique(name: str, names: set[str]) -> str:
    found = next(each for each in (name, *(f"{name}-{n}" for n in range(2, 99))) if each not in names)
    names.add(found)
    return found


def _validate(cells: list[Cell], path: Path) -> None:
    for cell in cells:
        if cell.is_solution and (cell.stub is None) and (BEGIN not in cell.text or END not in cell.text):
            raise SourceError(f"{path.name}: {cell.name} has no marks around its solution and no stub")
        label = cell.name.partition("-")[2]
        if cell.is_check and cell.text.strip() != f"%check {label}":
            raise SourceError(f"{path.name}: {cell.name} should hold %check {label} and no more")
        if cell.is_check and label[:2] != path.name[:2]:
            raise SourceError(f"{path.name}: {cell.name} is another lesson's")


# ---- notebooks ------------------------------------------------------------------------------------


def notebook(cells: list[Cell], text: str) -> dict[str, Any]:
    """A notebook, as JSON.

    Args:
        cells: of the source.
        text: ``student``: exercises are open; ``solved``: they are done; ``source``: done, and marked.
    """
    texts = {"student": Cell.student, "solved": Cell.solved, "source": Cell.marked}
    return {
        "cells": [_cell(cell, texts[text](cell)) for cell in cells],
        "metadata": {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(cell: Cell, text: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": cell.tags} if cell.tags else {}
    if cell.is_solution or cell.is_check:
        metadata["nbgrader"] = {
            "grade": cell.is_check, "grade_id": cell.name, "locked": cell.is_check,
            "schema_version": 3, "solution": cell.is_solution, "task": False,
            **({"points": 1} if cell.is_check else {}),
        }  # fmt: skip
    lines = text.splitlines(keepends=True)
    made = {"cell_type": cell.kind, "id": cell.name, "metadata": metadata, "source": lines}
    return made if cell.kind == "markdown" else {**made, "execution_count": None, "outputs": []}


def sources() -> list[Path]:
    """All sources, in order."""
    return sorted(SOURCES.glob("[0-9][0-9]-*.md"))


def dumped(made: dict[str, Any]) -> str:
    """A notebook as a file holds it."""
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def _execute(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a notebook from top to bottom, whatever fails; with its outputs."""
    import nbclient  # noqa: PLC0415 - only here
    import nbformat  # noqa: PLC0415 - likewise
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - likewise
    from jupyter_client.manager import AsyncKernelManager  # noqa: PLC0415 - likewise

    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    cells = [_joined(cell) for cell in made["cells"]]
    node = nbformat.from_dict({**made, "cells": cells})  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(
        node, km=manager, timeout=_SECONDS, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder.parent / "ipython")})
    for cell, ran in zip(made["cells"], node.cells, strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = ran["outputs"], ran["execution_count"]
    return made


def _joined(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell as programs hold it: a file has its text as a list of lines."""
    return {**cell, "source": "".join(cell["source"])}


def executed(made: dict[str, Any]) -> dict[str, Any]:
    """The same, run in an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        work = Path(folder, "work")
        work.mkdir()
        return _execute(made, work)


def built(path: Path) -> dict[str, Any]:
    """What a student opens: outputs only where a cell is tagged to show one, of a run with the solutions."""
    cells = read(path)
    made = notebook(cells, "student")
    if any(KEPT in cell.tags for cell in cells):
        run = executed(notebook(cells, "solved"))
        for cell, ran in zip(made["cells"], run["cells"], strict=True):
            if KEPT in cell["metadata"].get("tags", []):
                cell["outputs"] = ran["outputs"]
                for output in cell["outputs"]:
                    output.pop("execution_count", None)
    return made


def same(path: Path, there: dict[str, Any]) -> bool:
    """Whether a notebook is what its source says, outputs aside."""
    wanted = notebook(read(path), "student")
    shown = [{**cell, "outputs": []} if cell["cell_type"] == "code" else cell for cell in there["cells"]]
    return bool(wanted == {**there, "cells": shown})


def main(arguments: list[str]) -> int:
    """Do what was asked for; the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=("build", "check", "solved", "executed"))
    parser.add_argument("folder", nargs="?", type=Path, help="where to, for solved and executed")
    parser.add_argument("--only", default="", help="the lessons whose names begin so, such as 02")
    given = parser.parse_args(arguments)
    if (given.folder is None) == (given.what in {"solved", "executed"}):
        parser.error(f"{given.what} {'needs a' if given.folder is None else 'takes no'} folder")
    status = 0
    for path in sources():
        if not path.name.startswith(given.only):
            continue
        name = f"{path.stem}.ipynb"
        if given.what == "check":
            there = NOTEBOOKS / name
            if not there.exists() or not same(path, json.loads(there.read_text(encoding="utf-8"))):
                sys.stderr.write(f"notebooks/{name} is not what its source says: make course\n")
                status = 1
            continue
        if given.what == "build":
            target, made = NOTEBOOKS / name, built(path)
        elif given.what == "solved":
            target, made = given.folder / path.stem / name, notebook(read(path), "source")
        else:
            target, made = given.folder / name, executed(notebook(read(path), "student"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(dumped(made), encoding="utf-8")
        sys.stdout.write(f"{target}\n")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SourceError as error:
        sys.exit(f"course.py: {error}")
