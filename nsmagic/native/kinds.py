"""The kinds and flags of a root's entries, and what is closed where there are no namespaces.

They are numbered as in nsmagic.h; a test holds the two together.

They stand here in Python so that the owner's side can be imported where the runtime cannot.
"""

from typing import Final

DIRECTORY: Final = 1
FILE: Final = 2
SYMLINK: Final = 3
BIND: Final = 4
COW: Final = 5
PRIVATE: Final = 6
PROC: Final = 7
PTS: Final = 8
LAYER: Final = 9

WRITABLE: Final = 1
DEVICE: Final = 2
OPTIONAL: Final = 4
REPLACE: Final = 8

CONFINE_FILES: Final = 1
CONFINE_OTHERS: Final = 2
CONFINE_NETWORK: Final = 4
CONFINE_METADATA: Final = 8
CONFINE_TRUNCATE: Final = 16

CLONE_NEW: Final = {
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""The clone flag of each namespace, see namespaces(7)."""
