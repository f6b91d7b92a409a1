"""Lesson 06: chroot, and the way out of it."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, GREEN, GREY, HOST, OWN, RED, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look

_JAIL = "jail"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _jailed(look: Look, process: Process) -> None:
    """Note both pointers of a process that should be in the folder ``jail``."""
    wanted = os.path.realpath(_JAIL)
    root, cwd = process.root(), process.cwd()
    look.expect(root == wanted, f"/proc/{process.pid}/root", root, wanted)
    look.expect(_below(cwd, wanted), f"/proc/{process.pid}/cwd", cwd, f"{wanted}, or a folder in it")


@exercise(
    "06a",
    "Root and working directory of the process jail are the folder jail",
    hints=(
        "One call for each pointer. The first one does not move the second.",
        "chroot moves the root. What is the new root called, seen from inside?",
        "chroot('jail'), then os.chdir('/').",
    ),
)
def _jail(look: Look) -> None:
    _jailed(look, look.scratch("jail"))


@exercise(
    "06b",
    "The process fugitive is out: its root is the notebook's",
    hints=(
        "The rule for .. looks for the root on the way up. Where does who stands never come across it?",
        "chroot moves the root and leaves the working directory. There is a folder to move it to.",
        "chroot('inner'), os.chdir('..') many times, chroot('.').",
    ),
)
def _fugitive(look: Look) -> None:
    fugitive = look.scratch("fugitive")
    if look.own(fugitive, "user"):  # which it has since the cell that jailed it
        root = fugitive.root()
        look.expect(root == look.here.root(), f"/proc/{fugitive.pid}/root", root, look.here.root())


@exercise(
    "06c",
    "The process kept is in the folder jail, with no capability and no way to the outside open",
    hints=(
        "First as in 06a. Then the rights: a process may always drop its own.",
        "capset(effective, permitted) sets the two sets; an empty list is nothing.",
        "chroot('jail'), os.chdir('/'), capset([], []).",
    ),
)
def _kept(look: Look) -> None:
    kept = look.scratch("kept")
    look.own(kept, "user")
    _jailed(look, kept)
    for name in ("Eff", "Prm", "Inh", "Amb"):
        held = kept.capabilities(name)
        found = f"{held.bit_count()} capabilities" if held else "none"
        look.expect(held == 0, f"Cap{name} in /proc/{kept.pid}/status", found, "none")
    outside = [path for path in _open_folders(kept) if not _below(path, kept.root())]
    look.expect(
        not outside, f"folders open in /proc/{kept.pid}/fd", outside or "none outside", "none outside"
    )


def _open_folders(process: Process) -> list[str]:
    """The folders that a process has descriptors of."""
    found = []
    folder = f"/proc/{process.pid}/fd"
    for number in os.listdir(folder):  # noqa: PTH208 - names only
        with contextlib.suppress(OSError):  # closed meanwhile
            if stat.S_ISDIR(os.stat(f"{folder}/{number}").st_mode):  # noqa: PTH116 - follows a link of /proc
                found.append(os.readlink(f"{folder}/{number}"))  # noqa: PTH115 - likewise
    return found


def picture(look: Look) -> Picture:
    """The tree of folders, and the two pointers of ``fugitive`` before and after the second chroot."""
    del look
    process = scratch.find("kept")
    root = Process(process.pid).root() if process is not None else "/"
    root = "…/jail" if root == "/" else f"…/{'/'.join(root.split('/')[-2:])}"
    drawing = Drawing(640, 330)
    drawing.box(8, 8, 624, 314, "/", fill=HOST, bold=True)
    drawing.box(24, 44, 110, 34, "etc")
    drawing.box(150, 44, 110, 34, "usr")
    drawing.box(24, 96, 592, 216, root, fill=OWN, bold=True)
    drawing.box(44, 170, 150, 40, "README")
    drawing.box(44, 250, 150, 40, "inner")
    drawing.text(300, 140, "1  chroot('jail'), chdir('/')", mono=True)
    drawing.text(300, 158, "both pointers here: it is jailed", colour=GREEN)
    drawing.text(300, 206, "2  chroot('inner')", mono=True)
    drawing.arrow(296, 202, 196, 262, "root", colour=BLUE)
    drawing.text(300, 224, "the working directory stays at 1:", colour=RED)
    drawing.text(300, 240, "it is above the root now", colour=RED)
    drawing.text(300, 284, "3  chdir('..'), as often as you like", mono=True)
    drawing.arrow(290, 280, 270, 26, colour=RED, dashed=True)
    drawing.text(300, 30, "no root on the way: this is the top", colour=GREY)
    words = (
        f"A tree of folders. The jail's root is {root}; a second chroot to inner leaves the working "
        "directory above the root, and from there .. leads to the top."
    )
    return Picture(drawing.svg(), words)
