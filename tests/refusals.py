"""Make this machine refuse what others refuse: a system-call filter in front of a script, as Docker has one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nsmagic

if TYPE_CHECKING:
    from collections.abc import Sequence

HOME = str(Path(nsmagic.__file__).resolve().parents[1])

# Docker's way of refusing: a filter that lives on in every child.
# argv: [[number, errno, bits of the first argument, [argument, value]…], …], of each argument the lower half
FILTER = """
import ctypes, json, struct, sys
rules = json.loads(sys.argv.pop(1))
program = []
for number, errno, mask, *equal in rules:
    tests = [(0x20, 0, 0, 16), (0x45, 0, 0, mask)] if mask else []
    for argument, value in equal:
        tests += [(0x20, 0, 0, 16 + 8 * argument), (0x15, 0, 0, value)]
    block = [(0x20, 0, 0, 0), (0x15, 0, 0, number), *tests, (0x06, 0, 0, 0x00050000 | errno)]
    # Each test that fails leads behind the block.
    program += [
        (code, 0, len(block) - at - 1 if code in (0x15, 0x45) else 0, value)
        for at, (code, _, _, value) in enumerate(block)
    ]
program.append((0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.addressof(header), 0, 0) == 0, ctypes.get_errno()
"""
ON_ARM = platform.machine() == "aarch64"
_BOTH = {
    # On x86_64, on aarch64.
    "capget": (125, 90), "capset": (126, 91), "chdir": (80, 49), "chroot": (161, 51), "clone": (56, 220),
    "dup2": (33, 24), "fchdir": (81, 50), "fcntl": (72, 25), "ioctl": (16, 29), "keyctl": (250, 219),
    "mkdir": (83, 34), "mkdirat": (258, 34), "mount": (165, 40), "pivot_root": (155, 41),
    "prctl": (157, 167), "prlimit64": (302, 261), "recvmsg": (47, 212), "sendmsg": (46, 211),
    "sethostname": (170, 161), "setresgid": (119, 149), "setresuid": (117, 147), "socket": (41, 198),
    "socketpair": (53, 199), "symlinkat": (266, 36), "umount2": (166, 39), "unshare": (272, 97),
}  # fmt: skip
NUMBERS = {
    **{name: both[ON_ARM] for name, both in _BOTH.items()},
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "clone3": 435,
    "close_range": 436, "openat2": 437, "mount_setattr": 442, "landlock_create_ruleset": 444,
    "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip
EPERM, EAGAIN, ENOSPC, ENOSYS, CLONE_NEWUSER = 1, 11, 28, 38, 0x10000000


def refused(rules: Sequence[tuple[Any, ...]], code: str) -> Any:
    """What a script printed last, as JSON, on a host that refuses these calls.

    Args:
        rules: of each call its name, the errno that it fails with, bits of its first argument that make it
            fail, or 0 for always; and then pairs of an argument's place and the value that it must have.
        code: the script; it may use ``json``.
    """
    numbered = json.dumps([(NUMBERS[call], *rest) for call, *rest in rules])
    environment = {**os.environ, "PYTHONPATH": HOME}
    command = [sys.executable, "-c", FILTER + code, numbered]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
