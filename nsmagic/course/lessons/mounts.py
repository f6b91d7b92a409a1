"""Lesson 07: mounts, bind mounts, pivot_root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, HOST, OWN, RED, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look
    from nsmagic.course.outside import MountPoint

_MIB_OPTIONS = frozenset({"size=1024k", "size=1m", "size=1048576"})


def _target(name: str) -> str:
    return os.path.realpath(name)


def _kind(found: MountPoint | None) -> str:
    if found is None:
        return "nothing is mounted there"
    return f"{found.fstype}, {','.join(found.options)}; {','.join(found.super_options)}"


@exercise(
    "07a",
    "The process disk has a tmpfs of one MiB on the folder disk, and the notebook has not",
    hints=(
        "mount takes a source, a target, the kind of file system, flags and options.",
        "The kind is 'tmpfs', there are no flags, and the option is a text.",
        "mount('none', 'disk', 'tmpfs', 0, 'size=1M')",
    ),
)
def _disk(look: Look) -> None:
    disk = look.scratch("disk")
    look.own(disk, "mount")
    target = _target("disk")
    found = disk.mount_at(target)
    met = found is not None and found.fstype == "tmpfs" and bool(_MIB_OPTIONS & set(found.super_options))
    look.expect(met, f"{target} in /proc/{disk.pid}/mountinfo", _kind(found), "a tmpfs of one MiB")
    here = look.here.mount_at(target)
    look.expect(here is None, "the same in the notebook's", _kind(here), "nothing is mounted there")


@exercise(
    "07b",
    "The folder data is read-only for the process reader, and for the notebook it is not",
    hints=(
        "Two calls of mount: the first makes a mount of the folder, on itself; the second changes its flags.",
        "First MS_BIND; then MS_REMOUNT | MS_BIND with MS_RDONLY. The other arguments can be None.",
        "mount('data', 'data', None, MS_BIND); then None, 'data', None, MS_REMOUNT | MS_BIND | MS_RDONLY.",
    ),
)
def _reader(look: Look) -> None:
    reader = look.scratch("reader")
    look.own(reader, "mount")
    target = _target("data")
    found = reader.mount_at(target)
    met = found is not None and "ro" in found.options
    look.expect(met, f"{target} in /proc/{reader.pid}/mountinfo", _kind(found), "a mount with the flag ro")
    here = os.stat(target), os.stat(reader.at(target))  # noqa: PTH116 - the two ways to it
    same = os.path.samestat(*here)
    words = "the same folder" if same else "another folder"
    look.expect(same, "what is mounted there", words, "the folder data itself")
    may = os.access(target, os.W_OK)
    look.expect(may, "the folder, for the notebook", "writable" if may else "not writable", "writable")


@exercise(
    "07c",
    "The root of the process box is a tmpfs, and the host's root is not mounted in its namespace",
    hints=(
        "The order: mount the new root, make a folder for the old one in it, pivot, step in, unmount.",
        "pivot_root(new, old) takes two paths as they are before it; then the old root is at its new place.",
        "mount('none', 'newroot', 'tmpfs'), os.makedirs, pivot_root, os.chdir('/'), umount2(…, MNT_DETACH).",
    ),
)
def _box(look: Look) -> None:
    box = look.scratch("box")
    if not look.own(box, "mount"):
        return
    root = box.mount_at("/")
    found = "nothing" if root is None else root.fstype
    look.expect(found == "tmpfs", f"/ in /proc/{box.pid}/mountinfo", found, "tmpfs")
    top = look.here.mount_at("/")
    left = [each.target for each in box.mounts() if top is not None and each.device == top.device]
    look.expect(not left, "mounts there of the host's root", ", ".join(left) or "none", "none")
    cwd = os.stat(f"/proc/{box.pid}/cwd").st_dev  # noqa: PTH116 - follows a link of /proc
    same = cwd == os.stat(box.at("/")).st_dev  # noqa: PTH116 - likewise
    look.expect(
        same, f"/proc/{box.pid}/cwd", "in its root" if same else "on another file system", "in its root"
    )


def _tree(process: Process, most: int) -> list[str]:
    """The mounts of a process as short lines, the root first."""
    mounts = process.mounts()
    mounts.sort(key=lambda each: (each.target.count("/") if each.target != "/" else 0, each.target))
    lines = [f"{each.target[-26:]}  {each.fstype}" for each in mounts[:most]]
    return lines + ([f"… and {len(mounts) - most} more"] if len(mounts) > most else [])


def picture(look: Look) -> Picture:
    """Two trees of mounts, the notebook's and that of ``box``, and what pivot_root does to the second."""
    process = scratch.find("box")
    ours = _tree(look.here, 6)
    own = process is not None and Process(process.pid).ns("mount") != look.here.ns("mount")
    theirs = _tree(Process(process.pid), 6) if process is not None and own else ["/  tmpfs"]
    drawing = Drawing(640, 300)
    drawing.box(16, 16, 250, 268, "mount namespace of the host", fill=HOST, bold=True)
    drawing.box(374, 16, 250, 268, "mount namespace of box", fill=OWN, bold=True)
    for x, lines in ((32, ours), (390, theirs)):
        for number, line in enumerate(lines):
            drawing.text(x, 62 + 22 * number, line, mono=True, size=11)
    drawing.arrow(266, 60, 372, 60, "unshare: a copy", colour=BLUE)
    drawing.box(390, 214, 218, 56, "the old root\nmoved below, then unmounted", edge=RED, dashed=True)
    drawing.arrow(280, 242, 388, 242, "pivot_root,", colour=RED)
    drawing.text(326, 258, "then umount2", anchor="middle", colour=RED, size=11)
    words = (
        f"The host's mounts: {', '.join(ours)}. Those of box: {', '.join(theirs)}. pivot_root moved the old "
        "root below the new one, and umount2 took it away."
    )
    return Picture(drawing.svg(), words)
