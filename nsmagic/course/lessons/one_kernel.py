"""Lesson 01: a container is a process on one shared kernel."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from nsmagic import container
from nsmagic.course.drawing import BLUE, GREY, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise

if TYPE_CHECKING:
    from nsmagic.course.look import Look


@exercise(
    "01a",
    "The variable host_pid holds the host's number of the process that runs the code of job",
    hints=(
        "Its init is process job.container.init_pid on the host. What you look for is a child of that.",
        "/proc/PID/task/PID/children holds the numbers of a process's children (proc(5)).",
        "int(open(f'/proc/{init}/task/{init}/children').read()), where init is job.container.init_pid.",
    ),
)
def _found(look: Look) -> None:
    _, payload = look.container("job")
    answer = look.answer("host_pid", int)
    right = answer == payload.pid
    inside = payload.pids()[-1]
    found = f"number {inside} of the container" if right else "another process, or none"
    look.expect(right, f"NSpid in /proc/{answer}/status", found, "the process that runs the code of job")


@exercise(
    "01b",
    "The container partly has its own process ids and host name, and the host's network and IPC",
    hints=(
        "%%contain? explains --ns. A list of names makes those namespaces and no others.",
        "Two names, joined by a comma: the one for process ids, and the one for host names.",
        "%%contain --bg --proc partly --ns pid,uts",
    ),
)
def _partly(look: Look) -> None:
    _, payload = look.container("partly")
    for kind in ("pid", "uts"):
        look.own(payload, kind)
    for kind in ("net", "ipc"):
        look.shared(payload, kind)


def picture(look: Look) -> Picture:
    """A tree of processes on the host, some of them inside; under all of it one kernel."""
    live = [each for each in container.live.values() if each.init_pid and each.payload_pid]
    init, payload = (live[-1].init_pid, live[-1].payload_pid) if live else (None, None)
    drawing = Drawing(640, 320)
    drawing.box(8, 8, 624, 236, "the host: all processes, all numbers", fill=HOST, bold=True)
    drawing.box(24, 44, 190, 60, f"the notebook's kernel\n{look.here.pid}")
    drawing.box(24, 150, 190, 60, "the launcher,\nwhich clones containers")
    drawing.arrow(119, 104, 119, 148, colour=BLUE)
    drawing.box(290, 36, 326, 192, "a container: its own namespaces", fill=OWN, dashed=True, bold=True)
    outside, behind = (str(init), str(payload)) if live else ("?", "?")
    drawing.box(310, 70, 220, 56, f"init\n{outside} on the host, 1 inside")
    drawing.box(310, 156, 220, 56, f"your code\n{behind} on the host, 2 inside")
    drawing.arrow(420, 126, 420, 154, colour=BLUE)
    drawing.arrow(214, 180, 308, 110, colour=BLUE)
    release = platform.release().partition("-")[0]
    drawing.box(8, 260, 624, 52, f"one kernel: Linux {release}", fill=KERNEL, bold=True)
    drawing.text(16, 300, "processes · namespaces · control groups · mounts; no object called container")
    drawing.arrow(70, 210, 70, 258, colour=GREY)
    drawing.arrow(450, 228, 450, 258, colour=GREY)
    drawing.text(262, 255, "system calls", colour=GREY, anchor="middle")
    words = (
        f"One kernel, Linux {release}; on it the notebook's process {look.here.pid} and, in "
        f"namespaces of their own, a container's processes {outside} and {behind}, which are 1 and 2 inside."
    )
    return Picture(drawing.svg(), words)
