"""Make this machine refuse what others refuse: a system-call filter in front of a script, as Docker has one."""

from __future__ import annotations

import platform

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
