"""The guard of a scratch process: its parent, which runs no cell and leaves nothing behind.

    owner ── lifeline, report ── guard ── scratch process ── whatever its cells start
      └───── cells, stdout, stderr ────────┘

Both are one program, forked after all is imported.  The guard waits for the scratch process' end, which it
reports, and for the owner's, which closes the lifeline; then it ends everything below it (it is a subreaper,
so orphans come to it: PR_SET_CHILD_SUBREAPER in prctl(2)) and removes the cgroup directories.  The scratch
process could do none of that: a cell may have put it behind a chroot or a filter.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from nsmagic.launcher import scratch

if TYPE_CHECKING:
    from typing import NoReturn

_PR_SET_CHILD_SUBREAPER: Final = 36
_PF_FORKNOEXEC: Final = 0x40
_REMOVAL_TRIES: Final = 400
_REMOVAL_RETRY: Final = 0.005
_CELLS_USE: Final = (
    "argparse", "array", "base64", "collections", "copy", "ctypes.util", "dataclasses", "datetime",
    "encodings.idna", "encodings.latin_1", "enum", "errno", "fcntl", "functools", "glob", "grp", "hashlib",
    "inspect", "itertools", "json", "logging", "math", "mmap", "multiprocessing.context", "pathlib",
    "platform", "pprint", "pwd", "random", "re", "resource", "select", "selectors", "shlex", "shutil",
    "socket", "stat", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time",
    "typing", "uuid",
)  # fmt: skip
"""Modules of the standard library that a cell can import even where no file of it is to be seen any more."""


def guard(child: int, config: dict[str, Any]) -> NoReturn:
    """Wait for the ends of the scratch process and of the owner, and leave nothing."""
    lifeline, report = config["lifeline"], config["report"]
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, config["control"]):
        os.dup2(null, descriptor, inheritable=False)
    for descriptor in (*config["joins"], *([config["group"]] if config["group"] >= 0 else [])):
        os.close(descriptor)
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(lifeline, select.POLLHUP)
    poll.register(pidfd, select.POLLIN)
    if pidfd in dict(poll.poll()):
        became = _became(child)
        _, status = os.waitpid(child, 0)
        _end_all(config["directories"])
        with contextlib.suppress(OSError):
            os.write(report, scratch.encode(scratch.Ended(status, became)))
        # The owner still reads what the group has counted.
        poll.unregister(pidfd)
        poll.poll()
    _end_all(config["directories"])
    _remove(config["directories"])
    os._exit(0)


def _became(pid: int) -> str:
    """The program that a dead child, not yet reaped, had become; empty where it never called execve(2).

    The kernel marks a process that was forked and has run no other program since: ``flags`` in proc(5).
    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - no path to speak of
        before, _, after = file.read().rpartition(")")
    flags = int(after.split()[6])
    return "" if flags & _PF_FORKNOEXEC else before.partition("(")[2]


def _remove(directories: list[str]) -> None:
    """Remove the cgroup directories: first our own, then the bases, which others may still use."""
    for directory in directories:
        if _is_group(directory):  # a cell may have made groups in its own
            for below, _, _ in os.walk(directory, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(below)  # noqa: PTH106 - a plain path
        for _ in range(_REMOVAL_TRIES):
            try:
                os.rmdir(directory)  # noqa: PTH106 - a plain path from the owner
            except FileNotFoundError:
                break
            except OSError:
                # EBUSY: other groups lie in it; or its last process is not quite gone, which no event tells.
                if _has_groups(directory):
                    break
                time.sleep(_REMOVAL_RETRY)
            else:
                break


def _is_group(directory: str) -> bool:
    """Whether it is the group itself, and not the base of groups; see ``cgroups.directories``."""
    return os.path.basename(directory).startswith("c")  # noqa: PTH119 - a plain path


def _has_groups(directory: str) -> bool:
    with contextlib.suppress(OSError):
        return any(entry.is_dir() for entry in os.scandir(directory))
    return False


def _end_all(directories: list[str]) -> None:
    """SIGKILL and reap every child, and what they leave to us, until nobody is left.

    Each that ends hands its own children on to us, and does so before it can be reaped; so whenever one was
    reaped we look again.  Waits as long as the last one takes.
    """
    # What forks all the time must not grow back meanwhile.
    for directory in directories:
        if _is_group(directory):
            with contextlib.suppress(OSError), open(f"{directory}/pids.max", "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write("0")
    while children := _children():
        for child in children:
            # A setuid program may not be ours to kill.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:  # noqa: PTH123 - hot
        return [int(pid) for pid in file.read().split()]


def main() -> NoReturn:
    """Run both; the last argument is JSON.

    ``control``, ``report``, ``lifeline``: descriptors, see ``turns.Ends``.  ``joins``, ``group``:
    descriptors of cgroup v1 files and of a v2 directory (or -1), and ``directories`` to remove at the end,
    see ``cgroups.Group``. ``rlimits``: pairs of a resource and its limit.  ``path``: the cells' ``sys.path``.
    """
    config = json.loads(sys.argv[-1])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for name in _CELLS_USE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if os.read(config["control"], len(scratch.GO)) != scratch.GO:
        os._exit(0)
    child = os.fork()
    if child == 0:
        scratch.serve(config)
    guard(child, config)
