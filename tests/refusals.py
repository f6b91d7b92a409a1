"""Make this machine refuse what others refuse: a system-call filter in front of a script, as Docker has one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import nsmagic

HOME = str(Path(nsmagic.__file__).resolve().parents[1])

# Docker's way of refusing: a filter that lives on in every child. argv: [[number, errno, argument mask], …]
FILTER = """
import ctypes, json, struct, sys
rules = json.loads(sys.argv.pop(1))
program = []
for number, errno, mask in rules:
    refuse = (0x06, 0, 0, 0x00050000 | errno)
    test = [(0x20, 0, 0, 16), (0x45, 0, 1, mask)] if mask else []
    program += [(0x20, 0, 0, 0), (0x15, 0, len(test) + 1, number), *test, refuse]
program.append((0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.addressof(header), 0, 0) == 0, ctypes.get_errno()
"""
ON_ARM = platform.machine() == "aarch64"
NUMBERS = {
    "clone": 220 if ON_ARM else 56, "mount": 40 if ON_ARM else 165, "pivot_root": 41 if ON_ARM else 155,
    "unshare": 97 if ON_ARM else 272, "open_tree": 428, "fsopen": 430, "clone3": 435, "close_range": 436,
    "mount_setattr": 442, "landlock_create_ruleset": 444, "sethostname": 161 if ON_ARM else 170,
}  # fmt: skip
EPERM, EAGAIN, ENOSPC, ENOSYS, CLONE_NEWUSER = 1, 11, 28, 38, 0x10000000


def refused(rules: list[tuple[str, int, int]], code: str) -> Any:
    """What a script printed last, as JSON, on a host that refuses these calls.

    Args:
        rules: of each call its name, the errno that it fails with, and bits of its first argument that make it
            fail, or 0 for always.
        code: the script; it may use ``json``.
    """
    numbered = json.dumps([(NUMBERS[call], errno, mask) for call, errno, mask in rules])
    environment = {**os.environ, "PYTHONPATH": HOME}
    command = [sys.executable, "-c", FILTER + code, numbered]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
