#!/usr/bin/env python3
"""Put what a lane saw into a page of the documentation: everything behind the page's mark is written anew.

Usage: ``page.py PAGE TABLE HOST.txt…``; TABLE is what ``table.py`` printed, HOST.txt what the doctor said.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

MARK: Final = "<!-- written by tools/lane/page.py -->"


def block(text: str) -> str:
    """Text as it is, in a page; but of the kernel's release only what everybody's has."""
    text = re.sub(r"(Linux \d+\.\d+\.\d+)\S*", r"\1", text)
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def main(page: str, table: str, *hosts: str) -> None:
    """Write the page."""
    head = Path(page).read_text(encoding="utf-8").partition(MARK)[0]
    parts = [head + MARK, block(Path(table).read_text(encoding="utf-8"))]
    for host in hosts:
        parts += [f"### {Path(host).stem}", block(Path(host).read_text(encoding="utf-8"))]
    Path(page).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
