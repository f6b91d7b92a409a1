"""Lesson 04: PID namespaces, init, zombies."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, GREY, HOST, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look

_CMINFLT = 8
"""Where /proc/PID/stat has the page faults of waited-for children, counted behind the process's name."""


def _alive(children: list[Process]) -> list[Process]:
    return [child for child in children if child.state != "Z"]


@exercise(
    "04a",
    "The process maker has a living child that is number 1 of a PID namespace",
    hints=(
        "maker has called unshare already. What is missing is the first child.",
        "In the child fork() returns 0; the parent must not wait for it, and the child must not end.",
        "child = fork(); if child == 0: signal.pause(), then os._exit(0).",
    ),
)
def _number_one(look: Look) -> None:
    maker = look.scratch("maker")
    look.shared(maker, "pid")
    children = _alive(maker.children())
    found = f"{len(children)} that live" if children else "none that lives"
    look.require(bool(children), f"children of maker: /proc/{maker.pid}/task", found, "one that lives")
    child = children[0]
    look.own(child, "pid")
    look.expect(
        child.pids()[-1] == 1, f"NSpid in /proc/{child.pid}/status", child.pids(), "a last number of 1"
    )


@exercise(
    "04b",
    "The process careless has a child that is a zombie",
    hints=(
        "A zombie is a child that has ended, and that its parent has not asked for.",
        "Let careless fork a child that calls os._exit at once, and do nothing else.",
    ),
    settles=2.0,
)
def _careless(look: Look) -> None:
    careless = look.scratch("careless")
    children = careless.children()
    found = len(children) or "none"
    look.require(bool(children), f"children of careless: /proc/{careless.pid}/task", found, "one")
    states = [child.state for child in children]
    look.expect("Z" in states, f"state in /proc/{children[0].pid}/status", ", ".join(states), "Z, a zombie")


@exercise(
    "04c",
    "The process careless has waited for its child, and no zombie is left",
    hints=(
        "The call is wait(2), or waitpid(2) for a certain child.",
        "os.waitpid(child, 0), in a cell under %%scratch careless.",
    ),
)
def _careful(look: Look) -> None:
    careless = look.scratch("careless")
    zombies = [child for child in careless.children() if child.state == "Z"]
    look.expect(not zombies, f"zombies in /proc/{careless.pid}/task", len(zombies) or "none", "none")
    faults = int(careless.text("stat").rpartition(")")[2].split()[_CMINFLT])
    found = "a child was waited for" if faults else "no child was waited for, ever"
    look.expect(faults > 0, f"cminflt in /proc/{careless.pid}/stat", found, "a child was waited for")


@exercise(
    "04d",
    "A descendant of nest lives two PID namespaces below the notebook's",
    hints=(
        "What maker did, its child can do, too.",
        "The child is in the new user namespace already, so it may call unshare(CLONE_NEWPID) by itself.",
        "unshare, fork; in the child unshare(CLONE_NEWPID), fork; there signal.pause(); every child pauses.",
    ),
    settles=2.0,
)
def _nest(look: Look) -> None:
    nest = look.scratch("nest")
    depth = len(look.here.pids())
    numbers = []
    for each in nest.descendants():
        with contextlib.suppress(OSError):
            numbers.append([] if each.state == "Z" else each.pids())
    deepest = max(numbers, key=len, default=[])
    found = f"at most {len(deepest)} numbers: {deepest}" if deepest else "nest has no living child"
    wanted = f"one with {depth + 2} numbers"
    look.expect(len(deepest) >= depth + 2, "NSpid of nest's descendants, in /proc/PID/status", found, wanted)


def picture(look: Look) -> Picture:
    """The notebook, ``maker`` and its child, each with its numbers."""
    maker = scratch.find("maker")
    children = Process(maker.pid).children() if maker is not None else []
    outside = str(children[0].pid) if children else "?"
    made = str(maker.pid) if maker is not None else "?"
    drawing = Drawing(640, 300)
    drawing.box(8, 8, 624, 284, "PID namespace of the host: sees everybody", fill=HOST, bold=True)
    drawing.box(24, 50, 170, 56, f"the notebook\n{look.here.pid}")
    drawing.box(24, 170, 170, 56, f"maker\n{made}")
    drawing.arrow(109, 106, 109, 168, colour=BLUE)
    drawing.box(250, 40, 366, 240, "a PID namespace below it: sees itself", fill=OWN, dashed=True, bold=True)
    drawing.box(270, 80, 200, 56, f"init\n{outside} outside, 1 inside")
    drawing.box(270, 190, 200, 56, "its children\n2, 3, … inside")
    drawing.arrow(194, 198, 268, 120, "fork", colour=BLUE)
    drawing.arrow(370, 136, 370, 188, colour=BLUE)
    drawing.arrow(490, 218, 490, 110, colour=GREY, dashed=True)
    drawing.text(498, 158, "orphans go\nto number 1", colour=GREY)
    drawing.text(270, 268, "number 1 ends: all end", colour=GREY)
    words = (
        f"The notebook, {look.here.pid}, and maker, {made}, in the host's PID namespace; below it another, "
        f"whose number 1 is {outside} outside. Numbers are seen from above, never from below."
    )
    return Picture(drawing.svg(), words)
