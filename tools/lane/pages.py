#!/usr/bin/env python3
"""Pages of the lane of machines: one for each host, and the table of hosts by features.

Usage: ``pages.py PAGE FOLDER``: write the table of hosts by features anew from the JSON that is there.

The doctor's words come as ``nsmagic doctor`` printed them, and as its ``--json``.  Every host that has a page
keeps its JSON beside it, so that the table of all hosts can be written when only some have run.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKS: Final = {"works": "✓", "weaker": "~", "missing": "✗", "": ""}
_BEGIN: Final = "<!-- The table below is written by the lane: make test-hosts. -->"
_END: Final = "<!-- The end of the table. -->"


def write_page(folder: Path, out: Path, name: str, title: str, how: str) -> None:
    """Write a host's page and its JSON.

    Args:
        folder: of the pages.
        out: what came back from the host: ``doctor.txt``, ``doctor.json``, ``junit.xml``, ``cgroup``.
        name: the page's.
        title: of the host.
        how: how the host is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads((out / "doctor.json").read_text())
    kept = {"title": title, **data}
    (folder / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    doctor = (out / "doctor.txt").read_text().rstrip()
    group = (out / "cgroup").read_text().strip()
    skips = _skips(out / "junit.xml")
    text = f"""# {title}

{how}

The group that a process starts in there:

```
{group}
```

## What the doctor says

```
{doctor}
```

## What the tests say

{skips}
"""
    (folder / f"{name}.md").write_text(text)


def _skips(report: Path) -> str:
    """The counts, and why tests were skipped, by reason."""
    import junit  # noqa: PLC0415 - it lies in the folder above, which the caller puts into the path

    tests = junit.read([str(report)])
    count = Counter(test.ended for test in tests)
    lines = [f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped."]
    # Numbers of processes and sizes differ from run to run.
    reasons = Counter(re.sub(r"\d{3,}", "…", test.reason) for test in tests if test.ended == "skipped")
    if reasons:
        lines += ["", "| skipped | because |", "|---:|---|"]
        lines += [f"| {number} | {reason.replace('|', '/')} |" for reason, number in reasons.most_common()]
    return "\n".join(lines)


def write_table(page: Path, folder: Path, order: Sequence[str]) -> None:
    """Write the table of hosts by features into a page, between its two marks.

    Args:
        page: the page, which has the marks.
        folder: where the hosts' JSON is.
        order: names of hosts; others that have a JSON come after them.
    """
    names = [path.stem for path in sorted(folder.glob("*.json"))]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    hosts: list[dict[str, Any]] = [json.loads((folder / f"{name}.json").read_text()) for name in names]
    features = dict.fromkeys(row["feature"] for host in hosts for row in host["findings"])
    alike = [
        feature
        for feature in features
        if all(_status(host, feature) == "works" for host in hosts) and feature not in hosts[0]["uses"]
    ]
    shown = [feature for feature in features if feature not in alike]
    lines = [
        f"| host | {' | '.join(shown)} | `--mem` uses |",
        f"|---|{':-:|' * len(shown)}---|",
    ]
    for name, host in zip(names, hosts, strict=True):
        marks = " | ".join(MARKS[_status(host, feature)] for feature in shown)
        lines.append(f"| [{host['title']}](hosts/{name}.md) | {marks} | {host['uses'].get('--mem', '')} |")
    lines += ["", f"And on every one of them: {', '.join(alike)}.", ""]
    text = page.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n" + "\n".join(lines) + f"\n{_END}{after}")


def _status(host: dict[str, Any], feature: str) -> str:
    found = [row["status"] for row in host["findings"] if row["feature"] == feature]
    return str(found[0]) if found else ""


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), Path(sys.argv[2]), [])
