#!/usr/bin/env python3
"""Add up pytest's JUnit reports and say in one line how many tests passed, failed and were skipped.

Usage: ``junit.py REPORT.xml…``; exit status 1 where a test failed or none ran.

The reports are our own test runs' and trusted.  Knows nothing of nsmagic.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Test(NamedTuple):
    """One test in one report.

    Attributes:
        report: the report's name, such as ``root-serial``.
        module: the module in dots; empty for a whole module that was skipped or could not be collected.
        name: the test's own name, or that of the whole module in dots.
        ended: ``passed``, ``failed`` or ``skipped``; an expected failure counts as skipped.
        reason: why it was skipped, or an empty string.
    """

    report: str
    module: str
    name: str
    ended: str
    reason: str

    @property
    def label(self) -> str:
        """The test as a reader finds it again."""
        return f"{self.module}::{self.name}" if self.module else self.name


def read(paths: Iterable[str]) -> list[Test]:
    """Read the reports; a test that failed and whose clean-up failed too stands there twice and counts once.

    Raises:
        OSError: a report is not there.
        ElementTree.ParseError: a report is cut off, as by a run that was killed.
    """
    tests: dict[tuple[str, str, str], Test] = {}
    for path in paths:
        for case in ET.parse(path).iter("testcase"):  # noqa: S314 - we wrote them ourselves
            ended, reason = "passed", ""
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                ended = "failed"
            elif skip is not None:
                ended, reason = "skipped", skip.get("message", "")
            module, name = case.get("classname", ""), case.get("name", "")
            test = Test(Path(path).stem, module, name, ended, reason)
            if ended == "failed" or test[:3] not in tests:
                tests[test[:3]] = test
    return list(tests.values())


def main(paths: list[str]) -> int:
    """Print the sum; the exit status."""
    try:
        tests = read(paths)
    except (OSError, ET.ParseError) as error:
        sys.stderr.write(f"junit.py: a report cannot be read: {error}\n")
        return 1
    for test in tests:
        if test.ended == "failed":
            sys.stdout.write(f"failed in {test.report}: {test.label}\n")
    count = Counter(test.ended for test in tests)
    sys.stdout.write(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped\n")
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
