#!/usr/bin/env python3
"""Fail where a test was skipped that this machine can run.

Usage: ``check_skips.py [--alone] REPORT.xml…``, as the user who ran the tests; exit status 1 where a skip is
not right.  ``--alone``: the reports are of one user's tests, and other users' are somewhere else.

The rules, which CONTRIBUTING.md tells to those who write tests:

1. Every skip's reason begins with "host: " and names what the host lacks.
2. A test that ran in any pass has run: that root's pass skips what an ordinary user's pass runs is well.
3. A test that was skipped in every pass was so because of what the host lacks; wherever that can be looked up
   (``FACTS``) it is, and what the host does have is no reason.  Other lacks are believed, and printed.

Knows nothing of nsmagic: what it finds out, it finds out by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import junit

if TYPE_CHECKING:
    from collections.abc import Callable

_PREFIX: Final = "host: "
_CONTROLLERS: Final = frozenset({"memory", "pids", "cpu"})
_NOBODY: Final = 65534
_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_CLONE_NEWNS: Final = 0x00020000  # unshare(2)
_CLONE_NEWUSER: Final = 0x10000000


def _groups(kind: str) -> list[Path]:
    """The folders of our own groups that hold a controller we want and may be written to; see cgroups(7).

    Args:
        kind: the file system, "cgroup" for version 1 or "cgroup2".
    """
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[frozenset(controllers.split(",")) if controllers else frozenset({"cgroup2"})] = path
    folders = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, found, options, *_ = line.split()
        words = {"cgroup2"} if kind == "cgroup2" else set(options.split(","))
        for names in own if found == kind else ():
            folder = Path(target + own[names])
            if names <= words and os.access(folder, os.W_OK):
                listed = folder / "cgroup.controllers"
                if kind == "cgroup2" and not _is_handed_over(folder, own[names]):
                    continue
                if _CONTROLLERS & (names if kind == "cgroup" else set(listed.read_text().split())):
                    folders.append(folder)
    return folders


def _is_handed_over(folder: Path, path: str) -> bool:
    """Whether a cgroup v2 group, which holds us, may get groups with controllers below it.

    It may where it is the hierarchy's root, or ours to empty first: a namespace's root, or marked by systemd.
    """
    if not (folder / "cgroup.type").exists() or path == "/":
        return True
    for attribute in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, attribute) == b"1":
                return True
    return False


def _has_systemd(_: re.Match[str]) -> bool:
    """Whether systemd runs, and the controllers are in the hierarchy that it can hand groups over in."""
    there = Path("/run/systemd/system").is_dir() and Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return there and Path("/proc/1/comm").read_text() == "systemd\n"


def _has_user_namespaces(_: re.Match[str]) -> bool:
    """Whether an ordinary user can make a user namespace *and* mount in it, which AppArmor may refuse."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            libc.prctl(_PR_SET_DUMPABLE, 1)  # a change of uid makes our own /proc files root's
        uid = os.geteuid()
        if libc.unshare(_CLONE_NEWUSER) == 0:
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1\n")
            if libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
                os._exit(0)
    finally:
        os._exit(1)


def _has_linux(reason: re.Match[str]) -> bool:
    have = re.match(r"(\d+)\.(\d+)", platform.release())
    return have is not None and tuple(map(int, have.groups())) >= (int(reason[1]), int(reason[2]))


FACTS: Final[dict[str, Callable[[re.Match[str]], bool]]] = {
    r"no cgroup v1\b": lambda _: bool(_groups("cgroup")),
    r"no cgroup v2\b": lambda _: bool(_groups("cgroup2")),
    r"no systemd with cgroup v2\b": _has_systemd,
    r"no user namespaces\b": _has_user_namespaces,
    r"no container\b": _has_user_namespaces,
    r"(?:fresh /proc|copy-on-write) is ": _has_user_namespaces,
    r"no program (\S+)": lambda reason: shutil.which(reason[1]) is not None,
    r"Linux older than (\d+)\.(\d+)": _has_linux,
    r"not (x86_64|aarch64)\b": lambda reason: platform.machine() == reason[1],
    r"one processor\b": lambda _: len(os.sched_getaffinity(0)) > 1,
}
"""What follows "host: " in a reason, and whether this host has it all the same."""

USERS: Final = ("not root", "runs as root")
"""Reasons that hold for one pass only: another pass must have run the test."""


def _lie(reason: str) -> bool | None:
    """Whether the host has what this reason says it lacks; None where that cannot be looked up."""
    for pattern, has in FACTS.items():
        if found := re.match(pattern, reason):
            return has(found)
    return None


def _never_run(tests: list[junit.Test]) -> dict[str, set[str]]:
    """The tests that every pass skipped, and each pass's reason without its prefix."""
    ran = [test for test in tests if test.ended != "skipped"]
    labels = {test.label for test in ran}
    modules = {test.module + "." for test in ran}
    skips: defaultdict[str, set[str]] = defaultdict(set)
    for test in tests:
        if test.reason.startswith(_PREFIX) and test.label not in labels:
            # A module that was skipped as a whole stands in the report in place of its tests.
            whole = not test.module
            if not (whole and any(module.startswith(test.name + ".") for module in modules)):
                skips[test.label].add(test.reason.removeprefix(_PREFIX))
    return skips


def judge(tests: list[junit.Test], *, alone: bool = False) -> tuple[list[str], list[str]]:
    """What is wrong with the skips, and which lacks are only believed; a line each.

    Args:
        tests: of all reports.
        alone: do not ask for another user's pass.
    """
    wrong = {
        f'{test.label}: the reason does not begin with "{_PREFIX}": {test.reason}'
        for test in tests
        if test.ended == "skipped" and not test.reason.startswith(_PREFIX)
    }
    believed: set[str] = set()
    for label, reasons in _never_run(tests).items():
        lacks = {reason for reason in reasons if not reason.startswith(USERS)}
        if not (lacks or alone) and (
            os.geteuid() == 0 or any(reason.startswith("runs as root") for reason in reasons)
        ):
            wrong.add(f"{label}: no pass ran it: {'; '.join(sorted(reasons))}")
        for reason in lacks:
            answer = _lie(reason)
            if answer:
                wrong.add(f'{label}: skipped for "{reason}", and this host has it')
            elif answer is None:
                believed.add(f"{label}: {reason}")
    return sorted(wrong), sorted(believed)


def main(paths: list[str]) -> int:
    """Print what is wrong; the exit status."""
    alone = paths[:1] == ["--alone"]
    try:
        tests = junit.read(paths[alone:])
    except (OSError, ET.ParseError) as error:
        sys.stderr.write(f"check_skips.py: a report cannot be read: {error}\n")
        return 1
    if not tests:
        sys.stderr.write("check_skips.py: no test in the reports\n")
        return 1
    wrong, believed = judge(tests, alone=alone)
    for line in believed:
        sys.stdout.write(f"skipped, believed: {line}\n")
    for line in wrong:
        sys.stdout.write(f"skipped, wrongly: {line}\n")
    skipped = sum(test.ended == "skipped" for test in tests)
    sys.stdout.write(f"{skipped} skips looked at, {len(wrong)} wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
