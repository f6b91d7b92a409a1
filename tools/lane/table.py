#!/usr/bin/env python3
"""Print a table of hosts and tests from JUnit reports, one report for each host, named after it.

Usage: ``table.py HOST.xml…``; exit status 1 where a test failed, or where no test ran on some host.
A cell says how many of a module's tests passed, failed (✗) and were skipped (-); why stands below.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import junit

_REASON = 110


def cell(counts: Counter[str]) -> str:
    """How a module's tests ended on a host."""
    bad = sum(number for ended, number in counts.items() if ended not in {"passed", "skipped"})
    marks = ((counts["passed"], ""), (bad, "✗"), (counts["skipped"], "-"))
    return " ".join(f"{number}{mark}" for number, mark in marks if number or not mark)


def main(paths: list[str]) -> int:
    """Print the table; the exit status."""
    hosts = [Path(path).stem for path in paths]
    found: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    reasons: defaultdict[str, set[str]] = defaultdict(set)
    good = bool(paths)
    for host, path in zip(hosts, paths, strict=True):
        tests = junit.read([path])
        good = good and any(test.ended == "passed" for test in tests)
        for test in tests:
            found[test.module.rpartition(".")[2] or test.name][host][test.ended] += 1
            good = good and test.ended in {"passed", "skipped"}
            if test.ended == "skipped":
                reasons[test.reason].add(host)
    cells = {module: [cell(found[module][host]) for host in hosts] for module in sorted(found)}
    rows = [["", *hosts], *([module, *row] for module, row in cells.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        texts = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(texts).rstrip() + "\n")
    for reason, where in sorted(reasons.items()):
        sys.stdout.write(f"skipped on {', '.join(sorted(where))}: {reason[:_REASON]}\n")
    total = Counter(ended for by in found.values() for counts in by.values() for ended in counts.elements())
    failed = sum(total.values()) - total["passed"] - total["skipped"]
    sys.stdout.write(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
