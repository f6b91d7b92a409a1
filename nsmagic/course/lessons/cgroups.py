"""Lesson 10: control groups: what is asked of them, and one made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nsmagic.course import groups
from nsmagic.course.drawing import DANGER, GREY, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.look import Unmet
from nsmagic.result import size_text

if TYPE_CHECKING:
    from nsmagic.course.look import Look
    from nsmagic.course.outside import Process

MEMORY: Final = 48 << 20
SHARE: Final = 0.25
CROWD: Final = 12
FEW: Final = 3


@exercise(
    "10a",
    "The group of container job may use 48 MiB of memory",
    hints=(
        "The limit is an option of %%contain; %%contain? lists them.",
        "%%contain --bg --proc job --mem …, and a size is written like 48M.",
    ),
    needs=("--mem",),
    settles=3.0,
)
def _memory(look: Look) -> None:
    _, job = look.container("job")
    place = groups.folder(job.pid, "memory")
    look.expect(place != groups.folder(look.here.pid, "memory"), "job's group", str(place), "one of its own")
    found = groups.memory_limit(job.pid)
    text = "none" if found is None else size_text(found)
    look.expect(found == MEMORY, f"the limit of memory in {place}", text, size_text(MEMORY))


@exercise(
    "10b",
    "Container spin gets a quarter of a processor, and has been held back",
    hints=(
        "One option, a number of processors; and a loop that never waits.",
        "while True: pass, in a container with --cpus and a number below 1.",
    ),
    needs=("--cpus",),
    settles=5.0,
)
def _cpu(look: Look) -> None:
    _, spin = look.container("spin")
    place = groups.folder(spin.pid, "cpu")
    share = groups.cpu_share(spin.pid)
    text = "no limit of its own" if share is None else f"{share:g} processors"
    look.require(share == SHARE, f"quota by period in {place}", text, f"{SHARE:g} processors")
    count = groups.table(groups.read(place, "cpu.stat")).get("nr_throttled", 0)
    look.expect(count > 0, "periods in which it was held back, nr_throttled in cpu.stat", count, "some")


@exercise(
    "10c",
    "Container crowd is full: it may have 12 processes, and has 12",
    hints=(
        "os.fork raises BlockingIOError at the limit. Who must not end then, and who must not fork?",
        "Children sleep, and never go on with the loop; the parent sleeps when it was refused.",
        "try: while True: if os.fork() == 0: time.sleep(600) … except BlockingIOError: time.sleep(600)",
    ),
    needs=("--pids",),
    settles=5.0,
)
def _crowd(look: Look) -> None:
    box, crowd = look.container("crowd")
    most = box.spec.pids
    look.require(most == CROWD, "the limit of processes that crowd was started with", most, str(CROWD))
    count = 1 + len(crowd.descendants())
    look.expect(count == CROWD, "processes in it: its first one and all that come from it", count, str(CROWD))


@exercise(
    "10d",
    "A group that lab has made by hand may hold three processes, and is full",
    hints=(
        "A group is a folder: mkdir makes it. A limit is a number that is written to a file in it.",
        "few = mine / 'few'; few.mkdir(); write '3' to few / 'pids.max'. Then fork.",
        "In the child: write '0' to few / 'cgroup.procs', which means the writer; fork until OSError; pause.",
    ),
    needs=("--mem", "--pids"),
    settles=3.0,
)
def _few(look: Look) -> None:
    lab = look.scratch("lab")
    mine = groups.folder(lab.pid, "pids")
    below = [each for each in lab.descendants() if _group(each) not in (None, str(mine))]
    look.require(
        bool(below),
        "children of lab in another group, /proc/PID/cgroup",
        len(below),
        "three, in one of lab's",
    )
    place = groups.folder(below[0].pid, "pids")
    look.expect(
        mine.parent in place.parents, "where that group is", str(place), "at or below lab's own group"
    )
    limit = groups.pids_limit(below[0].pid)
    look.expect(limit == FEW, f"{place}/pids.max", "max" if limit is None else limit, str(FEW))
    count = len(groups.members(place))
    look.expect(count == FEW, f"processes in it, {place}/cgroup.procs", count, str(FEW))


def _group(process: Process) -> str | None:
    try:
        return str(groups.folder(process.pid, "pids"))
    except OSError:  # it has ended meanwhile
        return None


def picture(look: Look) -> Picture:
    """The tree of groups, and what the kernel does to who reaches a limit."""
    drawing = Drawing(700, 330)
    drawing.box(16, 12, 668, 40, "the host's group: everything", fill=HOST, bold=True)
    drawing.box(16, 84, 200, 60, "the notebook's\n" + _shown(look, "notebook"), fill=HOST)
    drawing.box(250, 84, 434, 60, "nsmagic's: what it hands out stays below this", fill=HOST)
    for x in (116, 467):
        drawing.line(x, 52, x, 84, colour=GREY)
    kinds = (("job", "--mem"), ("spin", "--cpus"), ("crowd", "--pids"))
    for place, (name, option) in enumerate(kinds):
        x = 250 + place * 148
        drawing.line(x + 69, 144, x + 69, 176, colour=GREY)
        drawing.box(x, 176, 138, 60, f"{name} {option}\n{_shown(look, name)}", fill=OWN)
    rows = (("memory", "the end: killed"), ("cpu", "waits for more"), ("pids", "fork is refused"))
    for place, (name, what) in enumerate(rows):
        drawing.box(250 + place * 148, 250, 138, 44, f"{name} reached:\n{what}", fill=DANGER)
    drawing.box(
        16,
        176,
        200,
        118,
        "a limit holds for a group\nand all groups below it;\nwho is born in a group\nis in it",
        fill=KERNEL,
    )
    return Picture(
        drawing.svg(),
        "A tree of groups: the host's; below it the notebook's and nsmagic's; below that each container's. "
        "Who reaches a limit of memory is killed, of processor time waits, of processes is refused a fork.",
    )


def _shown(look: Look, name: str) -> str:
    """One number of a living container's group, or nothing."""
    try:
        pid = look.here.pid if name == "notebook" else look.container(name)[1].pid
        if name == "spin":
            share = groups.cpu_share(pid)
            return "" if share is None else f"{share:g} processors"
        if name == "crowd":
            most = groups.pids_limit(pid)
            return "" if most is None else f"{most} with its PID 1"
        most = groups.memory_limit(pid)
        return "no memory limit" if most is None else size_text(most)
    except (OSError, Unmet, ValueError):
        return ""
