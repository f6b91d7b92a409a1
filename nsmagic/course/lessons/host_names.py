"""Lesson 02: host names, and the three calls that have to do with namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic.course.drawing import BLUE, GREEN, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise

if TYPE_CHECKING:
    from nsmagic.course.look import Look
    from nsmagic.course.outside import Process


def _name(look: Look, process: Process, wanted: str) -> None:
    found = process.inside("uts").hostname
    look.expect(found == wanted, f"host name in the UTS namespace of {process.name}", found, wanted)


@exercise(
    "02a",
    "The scratch process lab is called box, and the host keeps its name",
    hints=(
        "A process leaves a namespace that it shares by unshare(2). Which flag is for host names?",
        "unshare takes several flags at once, joined by |, and makes the user namespace first.",
        "unshare(CLONE_NEWUSER | CLONE_NEWUTS), then sethostname, in a cell under %%scratch lab.",
    ),
)
def _lab(look: Look) -> None:
    lab = look.scratch("lab")
    if look.own(lab, "uts"):
        _name(look, lab, "box")


@exercise(
    "02b",
    "The scratch process guest is in the UTS namespace of lab",
    hints=(
        "setns(2) moves the caller into a namespace that exists; it takes a descriptor that names it.",
        "The files to open are in /proc/PID/ns. First enter the user namespace that owns the other one.",
        "For kind in ('user', 'uts'): fd = os.open(f'/proc/{pid}/ns/{kind}', os.O_RDONLY), then setns(fd).",
    ),
)
def _guest(look: Look) -> None:
    lab, guest = look.scratch("lab"), look.scratch("guest")
    if look.own(lab, "uts"):
        mine, theirs = guest.ns("uts"), lab.ns("uts")
        look.expect(mine == theirs, "UTS namespace of guest and of lab", f"{mine} and {theirs}", "the same")


@exercise(
    "02c",
    "The process parent shares the notebook's UTS namespace, and a child of it lives in another",
    hints=(
        "clone3 takes the same flags as unshare, and gives them to the child only.",
        "The child may be born into a new user namespace and a new UTS namespace by one call.",
        "clone3(CLONE_NEWUSER | CLONE_NEWUTS); where it returned 0: signal.pause(), then os._exit(0).",
    ),
)
def _parent(look: Look) -> None:
    parent = look.scratch("parent")
    look.shared(parent, "uts")
    children = parent.children()
    look.require(
        bool(children), "children of parent, /proc/PID/task/PID/children", len(children), "one or more"
    )
    elsewhere = [child for child in children if child.ns("uts") not in (None, look.here.ns("uts"))]
    found = elsewhere[0] if elsewhere else children[0]
    look.own(found, "uts")


def picture(look: Look) -> Picture:
    """A box for each UTS namespace, and the three calls as ways into one."""
    drawing = Drawing(640, 260)
    name = look.here.inside("uts").hostname
    drawing.box(16, 16, 280, 150, f"UTS namespace {look.here.ns('uts')}", fill=HOST, bold=True)
    drawing.text(32, 60, f"name: {name}", mono=True)
    drawing.box(344, 16, 280, 150, "another UTS namespace", fill=OWN, bold=True)
    drawing.text(360, 60, "name: box", mono=True)
    drawing.box(40, 72, 90, 84, "process")
    drawing.box(500, 72, 90, 84, "process")
    drawing.arrow(130, 92, 498, 92, "clone: a child is born there", colour=BLUE)
    drawing.arrow(130, 118, 498, 118, "unshare: make it, and move in", colour=GREEN)
    drawing.arrow(130, 144, 498, 144, "setns: it is there; move in", colour=GREEN)
    drawing.box(
        16, 190, 608, 50, "one kernel: it keeps one record with a name for each namespace", fill=KERNEL
    )
    return Picture(
        drawing.svg(),
        f"Two UTS namespaces, {name} and box; clone, unshare and setns lead from one to the other.",
    )
