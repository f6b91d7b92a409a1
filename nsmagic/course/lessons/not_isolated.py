"""Lesson 12: what a container shares: a lock on an inode in /proc/locks, a network that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsmagic.course.drawing import GREY, HOST, KERNEL, OWN, PAPER, RED, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsmagic.course.look import Look

FILE: Final = "/usr/bin/env"
_FLOCK_FIELDS: Final = 8
_MOST_LOCKS: Final = 10_000


@exercise(
    "12a",
    "Container sender holds an exclusive lock on /usr/bin/env",
    hints=(
        "fcntl.flock takes an open file and what to do; the lock is gone when the file is closed.",
        "file = open('/usr/bin/env', 'rb'); fcntl.flock(file, fcntl.LOCK_EX); and then sleep.",
    ),
    settles=3.0,
)
def _sender(look: Look) -> None:
    _, sender = look.container("sender")
    for kind in ("mount", "pid", "ipc", "net"):
        look.own(sender, kind)
    inode = sender.at(FILE).stat().st_ino
    host = Path(FILE).stat().st_ino
    look.expect(inode == host, f"inode of {FILE} as sender sees it", inode, f"the host's, {host}")
    pids = {sender.pid, *(each.pid for each in sender.descendants())}
    held = [(pid, kind) for pid, kind, number in _locks() if pid in pids and number == inode]
    found = ", ".join(kind for _, kind in held) or "none"
    look.expect("WRITE" in found, "its locks on that inode, /proc/locks", found, "one that excludes others")


def _locks() -> Iterator[tuple[int, str, int]]:
    """Who holds which lock of flock(2) on which inode: proc_locks(5)."""
    for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()[:_MOST_LOCKS]:
        fields = line.split()
        if len(fields) == _FLOCK_FIELDS and fields[1] == "FLOCK":
            yield int(fields[4]), fields[3], int(fields[5].rpartition(":")[2])


@exercise(
    "12b",
    "Container half is in the host's network namespace, and in no other one of the host's",
    hints=(
        "One option of %%contain is about the network; %%contain? lists what it takes.",
        "--net host, beside --bg --proc half.",
    ),
)
def _half(look: Look) -> None:
    _, half = look.container("half")
    look.shared(half, "net")
    for kind in NAMESPACES:
        if kind != "net":
            look.own(half, kind)


def picture(look: Look) -> Picture:
    """Two towers: containers on one kernel, and virtual machines with one each."""
    del look
    release = os.uname().release.partition("-")[0]
    drawing = Drawing(700, 340)
    for x, title in ((16, "containers"), (364, "virtual machines")):
        drawing.text(x + 160, 22, title, size=14, bold=True, anchor="middle")
        drawing.box(x, 284, 320, 40, "hardware", fill=PAPER)
    drawing.box(16, 176, 320, 92, f"one kernel: {release[:34]}", fill=KERNEL, bold=True)
    drawing.text(28, 226, "files, network, scheduler, drivers:\nall that is behind a system call", size=11)
    for n in range(3):
        drawing.box(16 + n * 110, 40, 100, 96, f"container {n + 1}\nprograms", fill=OWN)
    drawing.line(16, 156, 336, 156, colour=RED, dashed=True)
    drawing.text(20, 170, "to be crossed: some 300 system calls", size=11, colour=RED)
    drawing.box(364, 228, 320, 40, "hypervisor (and its host)", fill=HOST, bold=True)
    for n in range(2):
        drawing.box(364 + n * 166, 40, 154, 148, f"machine {n + 1}", fill=PAPER, edge=GREY)
        drawing.box(374 + n * 166, 64, 134, 44, "programs", fill=OWN)
        drawing.box(374 + n * 166, 118, 134, 60, "a kernel\nof its own", fill=KERNEL)
    drawing.line(364, 206, 684, 206, colour=RED, dashed=True)
    drawing.text(368, 220, "to be crossed: virtual devices, a few dozen exits", size=11, colour=RED)
    return Picture(
        drawing.svg(),
        f"Containers stand on one kernel ({release}), and an attacker has to cross its system calls; virtual "
        "machines have a kernel each, and there it is the hypervisor's exits and devices.",
    )
