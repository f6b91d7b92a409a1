"""Lesson 08: overlays: lower, upper and merged, looked at through /proc/PID/root."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from nsmagic import scratch
from nsmagic.course.drawing import DANGER, GREY, HOST, INK, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from pathlib import Path

    from nsmagic.course.look import Look
    from nsmagic.course.outside import MountPoint

_LAYERS: Final = 2
_MOST: Final = 4096


def _overlay(look: Look, name: str) -> tuple[Process, MountPoint]:
    """The overlay that lab has mounted on a folder of this name; without one the look ends."""
    lab = look.scratch("lab")
    look.own(lab, "mount")
    mounted = [each for each in lab.mounts() if each.target.endswith(f"/{name}")]
    found = mounted[-1] if mounted else None
    what = f"the mount of lab on {name}, /proc/{lab.pid}/mountinfo"
    if found is None or found.fstype != "overlay":
        raise look.unmet(what, "none" if found is None else found.fstype, "overlay")
    look.expect(True, what, "overlay", "overlay")  # noqa: FBT003 - a sentence
    return lab, found


def _option(mounted: MountPoint, name: str) -> str:
    """An option of the file system's, such as its lower folders."""
    for each in mounted.super_options:
        key, _, value = each.partition("=")
        if key == name:
            return value
    return ""


@exercise(
    "08a",
    "An overlay on merged shows book, and writes go to layers/upper",
    hints=(
        "mount(2) takes the kind of file system, and its options as one text; the source may be any word.",
        "Four options: lowerdir=…,upperdir=…,workdir=…,userxattr. Paths begin at the working directory.",
    ),
)
def _merged(look: Look) -> None:
    lab, mounted = _overlay(look, "merged")
    for option, wanted in (("lowerdir", "book"), ("upperdir", "upper"), ("workdir", "work")):
        found = _option(mounted, option)
        look.expect(found.split("/")[-1] == wanted, f"its option {option}", found or "none", wanted)
    names = set(os.listdir(lab.at(mounted.target)))  # noqa: PTH208 - names only
    look.expect({"two", "three"} <= names, "names in merged", sorted(names)[:9], "those of book")


@exercise(
    "08b",
    "Upper holds a whiteout for one, a longer two and a new four, and book is as it was",
    hints=(
        "Do what anybody does to files: remove, append, make. Only the place matters.",
        "os.remove('merged/one'); open('merged/two', 'a'); open('merged/four', 'w').",
    ),
)
def _marks(look: Look) -> None:
    lab, mounted = _overlay(look, "merged")
    here = mounted.target.rpartition("/")[0]
    upper, lower = lab.at(f"{here}/layers/upper"), lab.at(f"{here}/book")
    names = sorted(os.listdir(upper))  # noqa: PTH208 - names only
    look.expect(names == ["four", "one", "two"], "names in layers/upper", names[:9], "four, one, two")
    for name, wanted in (("one", "a whiteout"), ("two", "a file"), ("four", "a file")):
        found = _kind(upper / name)
        look.expect(found == wanted, f"layers/upper/{name}", found, wanted)
    if _kind(upper / "two") == "a file" and _kind(lower / "two") == "a file":
        old, new = _bytes(lower / "two"), _bytes(upper / "two")
        more = len(new) - len(old)
        look.expect(
            new.startswith(old) and more > 0, "bytes of two beyond those of book/two", more, "some more"
        )
    look.expect(_kind(lower / "one") == "a file", "book/one", _kind(lower / "one"), "a file")


def _kind(path: Path) -> str:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "nothing"
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return "a whiteout"
    return "a file" if stat.S_ISREG(status.st_mode) else "something else"


def _bytes(path: Path) -> bytes:
    """The beginning of a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _MOST)
    finally:
        os.close(descriptor)


@exercise(
    "08c",
    "An overlay on image has two lower layers, and the upper one of them wins",
    hints=(
        "The first folder in lowerdir is the uppermost; colons part them.",
        "Without upperdir and workdir it is read-only; userxattr is needed all the same.",
    ),
)
def _image(look: Look) -> None:
    lab, mounted = _overlay(look, "image")
    # A kernel may list each with an option of its own.
    lower = [each for each in mounted.super_options if each.startswith(("lowerdir=", "lowerdir+="))]
    count = sum(len(each.split(":")) for each in lower)
    look.expect(count == _LAYERS, "its lower layers", ", ".join(lower), "two")
    upper = _option(mounted, "upperdir")
    look.expect(not upper, "its option upperdir", upper or "none", "none")
    where = lab.at(mounted.target)
    for name, wanted in (("version", "2"), ("notes", "from base")):
        found = _bytes(where / name).decode("utf-8", "replace") if _kind(where / name) == "a file" else "none"
        look.expect(found == wanted, f"image/{name}", found, wanted)


def picture(look: Look) -> Picture:
    """Merged over upper over lower, and where each name comes from; upper as lab has it now, if it has."""
    del look
    names = ("one", "two", "three", "four")
    upper = _upper()
    drawing = Drawing(660, 330)
    rows = (
        ("merged: what is seen", OWN),
        ("upper: what was written", KERNEL),
        ("lower: book, never written", HOST),
    )
    for row, (label, fill) in enumerate(rows):
        drawing.box(12, 34 + row * 98, 636, 76, label, fill=fill, bold=True)
    for column, name in enumerate(names):
        x = 210 + column * 108
        drawing.text(x + 42, 24, name, anchor="middle", mono=True, bold=True)
        mark = upper.get(name, "")
        if name != "four":
            drawing.box(x, 250, 84, 36, "file")
        if mark == "a whiteout":
            drawing.box(x, 152, 84, 36, "whiteout", fill=DANGER)
        elif mark:
            drawing.box(x, 152, 84, 36, "copy" if name != "four" else "file")
            drawing.arrow(x + 42, 152, x + 42, 92, colour=INK)
        elif name != "four":
            drawing.line(x + 42, 250, x + 42, 152, colour=GREY, dashed=True)
            drawing.arrow(x + 42, 152, x + 42, 92, colour=GREY, dashed=True)
        if mark == "a file" or (not mark and name != "four"):
            drawing.box(x, 54, 84, 38, "is seen")
    shown = "; ".join(f"{name}: {upper.get(name, 'only in lower')}" for name in names[:3])
    return Picture(drawing.svg(), f"Merged shows upper over lower. In upper, {shown}; four: new in upper.")


def _upper() -> dict[str, str]:
    """What lab's upper folder holds, where there is one; else what the exercise asks for."""
    wanted = {"one": "a whiteout", "two": "a file", "four": "a file"}
    lab = scratch.find("lab")
    if lab is None:
        return wanted
    try:
        process = Process(lab.pid, "lab")
        place = process.at(f"{process.cwd()}/layers/upper")
        found = {name: _kind(place / name) for name in ("one", "two", "three", "four")}
    except OSError:
        return wanted
    return {name: kind for name, kind in found.items() if kind != "nothing"} or wanted
