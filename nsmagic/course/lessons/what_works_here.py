"""Lesson 00: where code runs, what this host can do, how a check works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsmagic.course.drawing import BLUE, GREY, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise

if TYPE_CHECKING:
    from nsmagic.course.look import Look


@exercise(
    "00a",
    "The variable first_pid holds the number of the scratch process first",
    hints=(
        "The process introduced itself with its number when it was started.",
        "%scratch lists the scratch processes with their numbers; first_pid = 1234, if it were 1234.",
    ),
)
def _first(look: Look) -> None:
    first = look.scratch("first")
    answer = look.answer("first_pid", int)
    command = "a process of that number" if answer == first.pid else "not the number of first"
    look.expect(answer == first.pid, "your variable first_pid, in /proc", command, "the number of first")


@exercise(
    "00b",
    "A container runs in the background, and its job is in the variable sleeper",
    hints=(
        "%%contain? lists the options. Two are needed: one to run behind, one that names a variable.",
        "--bg and --proc sleeper, and time.sleep(3600).",
    ),
    needs=("all namespaces",),
)
def _sleeper(look: Look) -> None:
    _, payload = look.container("sleeper")
    look.own(payload, "pid")


def picture(look: Look) -> Picture:
    """The three places for code, on one machine."""
    drawing = Drawing(640, 270)
    drawing.box(8, 8, 624, 200, "this machine, the host", fill=HOST, bold=True)
    drawing.box(24, 40, 180, 92, f"the notebook's kernel\nprocess {look.here.pid}\nyour rights, your files")
    drawing.box(230, 40, 180, 92, "a scratch process\nyour rights, your files,\nmay be spoilt")
    drawing.box(
        436, 40, 180, 92, "a container\nits own names, numbers,\nfiles, limits", fill=OWN, dashed=True
    )
    drawing.arrow(114, 176, 114, 134, colour=BLUE)
    drawing.arrow(320, 176, 320, 134, colour=BLUE)
    drawing.arrow(526, 176, 526, 134, colour=BLUE)
    drawing.text(114, 192, "a plain cell", anchor="middle", mono=True)
    drawing.text(320, 192, "%%scratch NAME", anchor="middle", mono=True)
    drawing.text(526, 192, "%%contain", anchor="middle", mono=True)
    drawing.box(8, 218, 624, 44, fill=KERNEL)
    drawing.text(320, 245, "one Linux kernel, which all three call", anchor="middle", colour=GREY)
    words = "Three places for code on one machine and one kernel: notebook, scratch process, container."
    return Picture(drawing.svg(), words)
