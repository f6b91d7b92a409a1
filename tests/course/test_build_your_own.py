"""Lesson 13's container is also a program: about sixty lines, which run without the notebook."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "notebooks" / "sources" / "13-build-your-own.md"
GIVEN = {"filter"}
START = """
child = start(lambda: (files(), enter(), shut(), rights(), run(["/bin/sh", "-c", COMMANDS])))
print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
COMMANDS = """
echo "$$ $(uname -n) $(id -u)"; ls /; touch /work/inside && ls /work
ls /proc/self/fd | wc -l; umount /work 2>/dev/null; exit 7
"""


def solutions() -> list[str]:
    """The student's cells, solved, without their magics, up to where each tries its stage out."""
    blocks = re.findall(
        r"^```python solve-13.*\n%%scratch builder\n([\s\S]*?)^```$", SOURCE.read_text(), re.MULTILINE
    )
    texts = [re.sub(r"^ *### (BEGIN|END) SOLUTION\n", "", block, flags=re.MULTILINE) for block in blocks]
    return [re.sub(r"^again\(.*\n", "", text, flags=re.MULTILINE) for text in texts]


def length(node: ast.stmt, text: str) -> int:
    """Its lines, without its docstring and blank ones."""
    lines = [line.strip() for line in text.split("\n")[node.lineno - 1 : node.end_lineno]]
    return sum(bool(line) and not line.startswith('"""') for line in lines)


def test_it_is_about_sixty_lines() -> None:
    found = {}
    for text in solutions():
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = length(node, text)
    assert found.keys() == {"start", "files", "enter", "filter", "rights", "run", "shut"}
    assert sum(count for name, count in found.items() if name not in GIVEN) <= 64


@pytest.mark.works("all namespaces", "copy-on-write")
def test_it_runs_without_a_notebook(tmp_path: Path) -> None:
    head = "import os, signal\nfrom nsmagic.linux import *\n"
    program = head + "\n".join(solutions()) + f"\nCOMMANDS = {COMMANDS!r}\n" + START
    (tmp_path / "seen").write_text("")
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    first, *rest = done.stdout.splitlines()
    assert first == "2 box 0"
    assert {"dev", "proc", "usr", "work"} <= set(rest)
    assert not {"home", "etc", "root"} & set(rest)
    assert {"inside", "seen"} <= set(rest)
    assert rest[-1] == "status 7"
    assert [each.name for each in tmp_path.iterdir()] == ["seen"]
