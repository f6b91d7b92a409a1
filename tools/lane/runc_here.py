#!/usr/bin/python3 -I
"""runc, for a machine whose own root lacks some capability: it is taken from what a container asks for.

Docker's --privileged asks for every capability that the kernel knows, and runc fails where it cannot give
one.  On a machine that lacks none this changes nothing.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Final

NAMES: Final = (  # noqa: SIM905 - forty words in quotes would read worse
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""By number, see capabilities(7)."""


def lacking() -> set[str]:
    """The capabilities that are not in our bounding set."""
    found = re.search(r"^CapBnd:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return {f"CAP_{name}" for number, name in enumerate(NAMES) if not mask >> number & 1}


def main(words: list[str]) -> None:
    """Mend the bundle of a ``create``, and become runc."""
    if "create" in words and "--bundle" in words:
        config = Path(words[words.index("--bundle") + 1], "config.json")
        spec = json.loads(config.read_text())
        sets = spec["process"].get("capabilities", {})
        for kind, names in sets.items():
            sets[kind] = [name for name in names if name not in lacking()]
        config.write_text(json.dumps(spec))
    os.execvp("runc", ["runc", *words])  # noqa: S606 - that is what we stand for


if __name__ == "__main__":
    main(sys.argv[1:])
