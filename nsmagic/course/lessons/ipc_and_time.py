"""Lesson 05: IPC and time namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic.course.drawing import BLUE, GREY, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise

if TYPE_CHECKING:
    from nsmagic.course.look import Look

_KEY = 0xBEEF
_DAY = 86400
_TOLERANCE = 30


@exercise(
    "05a",
    "The process memory has a segment with the key 0xBEEF, which the notebook does not see",
    hints=(
        "First a namespace of its own for such objects, then the segment; else it is the host's.",
        "The call for the segment stands above, where the notebook makes one.",
        "unshare(CLONE_NEWUSER | CLONE_NEWIPC), then libc.shmget(0xBEEF, 4096, IPC_CREAT | 0o600).",
    ),
)
def _memory(look: Look) -> None:
    memory = look.scratch("memory")
    look.own(memory, "ipc")
    there = any(row[0] == _KEY for row in memory.inside("ipc").memories)
    look.expect(
        there, "/proc/sysvipc/shm in memory's IPC namespace", "the key 0xbeef" if there else "no key 0xbeef",
        "the key 0xbeef",
    )  # fmt: skip
    here = any(row[0] == _KEY for row in look.here.inside().memories)
    look.expect(
        not here, "/proc/sysvipc/shm of the notebook", "the key 0xbeef" if here else "no key 0xbeef",
        "no key 0xbeef",
    )  # fmt: skip


@exercise(
    "05b",
    "The process clock has a living child for which the machine has been up a day longer",
    hints=(
        "The offsets are written into a file of /proc/self. CLOCK_BOOTTIME counts the uptime.",
        "One line: the clock's name, seconds, nanoseconds. Then the child.",
        "Write 'boottime 86400 0' into /proc/self/timens_offsets, then fork(); in the child signal.pause().",
    ),
)
def _clock(look: Look) -> None:
    clock = look.scratch("clock")
    children = [child for child in clock.children() if child.state != "Z"]
    found = f"{len(children)} that live" if children else "none that lives"
    look.require(bool(children), f"children of clock: /proc/{clock.pid}/task", found, "one that lives")
    child = children[0]
    if look.own(child, "time"):
        ahead = child.inside("time").boottime - look.here.inside().boottime
        met = abs(ahead - _DAY) < _TOLERANCE
        found, wanted = f"{round(ahead, -1):g} s ahead", f"{_DAY} s ahead"
        look.expect(met, "CLOCK_BOOTTIME in its time namespace", found, wanted)


def picture(look: Look) -> Picture:
    """Two sets of namespaces: a table each for IPC, an offset each for time; one wall clock."""
    uptime = look.here.inside().boottime
    drawing = Drawing(640, 310)
    for x, fill, name, key, offset in (
        (16, HOST, "the host's namespaces", "0xC0FFEE", 0),
        (332, OWN, "namespaces of their own", "0xBEEF", _DAY),
    ):
        drawing.box(x, 12, 292, 200, name, fill=fill, bold=True)
        drawing.box(x + 16, 44, 260, 66, "IPC: a table of its own")
        drawing.text(x + 28, 92, f"{key} → a segment", mono=True)
        drawing.box(x + 16, 124, 260, 74, "time: an offset of its own")
        drawing.text(x + 28, 168, f"uptime {uptime:.0f} + {offset} s", mono=True)
        drawing.arrow(x + 146, 252, x + 146, 200, colour=BLUE)
    drawing.box(16, 254, 608, 44, "the kernel: one counter since the boot", fill=KERNEL, bold=True)
    drawing.text(300, 288, "one date for all, CLOCK_REALTIME", colour=GREY)
    words = (
        "Each IPC namespace has a table of its own; each time namespace adds an offset of its own to the one "
        f"counter, which is at {uptime:.0f} s. The date is the same for all."
    )
    return Picture(drawing.svg(), words)
