"""Lesson 13: build your own container; each stage is looked at in the newest child of the builder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, DANGER, GREEN, HOST, KERNEL, OWN, PAPER, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look

KINDS: Final = ("user", "pid", "mount", "net", "uts", "ipc", "cgroup")
NEW_ROOT: Final = "/tmp/root"  # noqa: S108 - in a mount namespace of its own
_SECOND: Final = 2
"""The process id of PID 1's first child."""
_STREAMS: Final = [0, 1, 2]


def _box(look: Look) -> Process:
    """PID 1 of the student's container: the newest child of the scratch process."""
    builder = look.scratch("builder")
    children = [each for each in builder.children() if each.state != "Z"]
    what = "living children of builder, /proc/PID/task/PID/children"
    look.require(bool(children), what, len(children), "one or more")
    return Process(children[-1].pid, "the container's PID 1")


@exercise(
    "13a",
    "A child of builder lives in seven namespaces of its own, and its root is you outside",
    hints=(
        "One call makes the child and all its namespaces; the maps are written by the parent, behind it.",
        "In the child (the call gave 0): close opener, read from gate, call inside(), os._exit(0).",
        "child = clone3(OWN); in the parent deny_setgroups(child), then write_id_map for 'uid' and 'gid'.",
    ),
)
def _start(look: Look) -> None:
    box = _box(look)
    for kind in KINDS:
        look.own(box, kind)
    number = box.pids()[-1]
    look.expect(number == 1, "its process id in there, NSpid in /proc/PID/status", number, "1")
    for kind, mine in (("uid", os.getuid()), ("gid", os.getgid())):
        found = box.id_map(kind)
        look.expect(found == [(0, mine, 1)], f"/proc/{box.pid}/{kind}_map", found, "0 inside is you outside")


@exercise(
    "13b",
    "What the container shall see is mounted in /tmp/root, and the host sees nothing of it",
    hints=(
        "Begin with mount('none', '/', None, MS_REC | MS_PRIVATE): what is it for?",
        "tmpfs on /tmp, folders, /tmp/root bound to itself, then usr, proc, dev/null and work in it.",
        "Read-only is MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV on the bound usr.",
        "mount('overlay', '/tmp/root/work', 'overlay', 0, 'lowerdir=.,upperdir=…,workdir=…,userxattr').",
    ),
)
def _files(look: Look) -> None:
    box = _box(look)
    shared = [each.target for each in box.mounts() if any("shared" in word for word in each.propagation)]
    look.expect(not shared, "mounts of it that are shared with other namespaces", len(shared), "none")
    root = box.mount_at(NEW_ROOT)
    look.require(root is not None, f"a mount on {NEW_ROOT}, /proc/PID/mountinfo", root and root.fstype, "one")
    _tree(look, box, NEW_ROOT)


def _tree(look: Look, box: Process, root: str) -> None:
    """What is to be seen below a path of the container's."""
    usr = box.mount_at(f"{root}/usr")
    words = "not mounted" if usr is None else ",".join(usr.options)
    look.expect("ro" in words.split(","), f"the mount on {root}/usr", words, "read-only")
    for name, fstype in (("proc", "proc"), ("work", "overlay")):
        found = box.mount_at(f"{root}/{name}")
        look.expect(
            found is not None and found.fstype == fstype,
            f"the mount on {root}/{name}",
            "none" if found is None else found.fstype,
            fstype,
        )
    null = box.mount_at(f"{root}/dev/null")
    look.expect(null is not None, f"the mount on {root}/dev/null", null and null.root, "the host's device")


@exercise(
    "13c",
    "The new root is the only thing to be seen, and nothing of the old one is left",
    hints=(
        "Go to the new root first: pivot_root(2) has a section on a pivot without a folder for the old root.",
        "The old root lies on top of the new one afterwards, and umount2 takes the uppermost away.",
        "chdir('/tmp/root'), pivot_root('.', '.'), umount2('.', MNT_DETACH), chdir('/work').",
    ),
)
def _enter(look: Look) -> None:
    box = _box(look)
    root = box.mount_at("/")
    look.require(
        root is not None and root.fstype == "tmpfs",
        "the file system on its /, /proc/PID/mountinfo",
        "none" if root is None else root.fstype,
        "tmpfs",
    )
    _tree(look, box, "")
    known = {"/", "/usr", "/proc", "/work", "/dev/null"}
    others = [
        each.target
        for each in box.mounts()
        if each.target not in known and not each.target.startswith(("/usr/", "/dev/"))
    ]
    look.expect(not others, "other mounts that it sees", others[:5], "none")
    where = box.cwd()
    look.expect(where == "/work", "its working directory, /proc/PID/cwd", where, "/work")


@exercise(
    "13d",
    "The container has no right left, and cannot get one",
    hints=(
        "Four things: the bounding set, the sets that are held, no_new_privs, the filter. Which needs which?",
        "PR_CAPBSET_DROP takes one capability and needs CAP_SETPCAP; the last is in kernel/cap_last_cap.",
        "prctl(PR_CAPBSET_DROP, n) for each; capset((), ()); prctl(PR_SET_NO_NEW_PRIVS, 1); then seccomp.",
    ),
)
def _rights(look: Look) -> None:
    box = _box(look)
    _entered(look, box)
    _powerless(look, box)


def _entered(look: Look, process: Process) -> None:
    root = process.mount_at("/")
    found = "none" if root is None else root.fstype
    look.expect(found == "tmpfs", f"the file system on / of {process.name}", found, "tmpfs")


def _powerless(look: Look, process: Process) -> None:
    for which in ("Eff", "Prm", "Bnd"):
        found = process.capabilities(which)
        look.expect(found == 0, f"Cap{which} of {process.name}, /proc/PID/status", f"{found:016x}", "none")
    status = process.status()
    for key, wanted, words in (("NoNewPrivs", "1", "1"), ("Seccomp", "2", "2, a filter")):
        look.expect(
            status.get(key) == wanted, f"{key} of {process.name}, likewise", status.get(key, "?"), words
        )


@exercise(
    "13e",
    "PID 1 of the container has a child, PID 2, which has become the program sleep",
    hints=(
        "fork, and in the child execv: its first argument is the path, the second the whole list.",
        "os.wait() gives (pid, status) of whoever ends; go on until it was the program.",
        "code = os.waitstatus_to_exitcode(status); it is below zero after a signal; end by os._exit.",
    ),
    settles=3.0,
)
def _run(look: Look) -> None:
    box = _box(look)
    program = _program(look, box)
    number = program.pids()[-1]
    look.expect(number == _SECOND, "its process id in there", number, "2")
    _entered(look, program)
    _powerless(look, program)


def _program(look: Look, box: Process) -> Process:
    """The program that PID 1 has started."""
    found = [each for each in box.children() if each.command()[:1] == ["/usr/bin/sleep"]]
    names = [" ".join(each.command()) for each in box.children()]
    look.require(bool(found), "children of PID 1, /proc/PID/cmdline", names, "/usr/bin/sleep")
    return Process(found[0].pid, "the program")


@exercise(
    "13f",
    "The program has the three standard streams open and nothing else",
    hints=(
        "Which descriptors there are is in /proc/self/fd; is a /proc there that you may believe?",
        "os.closerange(first, last) closes all in a range, open or not; see also close_range(2).",
    ),
    settles=3.0,
)
def _shut(look: Look) -> None:
    box = _box(look)
    program = _program(look, box)
    for each in (box, program):
        found = _descriptors(each)
        look.expect(
            found == _STREAMS, f"open descriptors of {each.name}, /proc/{each.pid}/fd", found, "[0, 1, 2]"
        )
    _powerless(look, program)


def _descriptors(process: Process) -> list[int]:
    """What it has open; a program that has just been started opens its libraries for a moment."""
    return sorted(int(name) for name in os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208 - names only


def _living() -> Process | None:
    """PID 1 of the student's container, where one lives."""
    builder = scratch.find("builder")
    try:
        children = Process(builder.pid).children() if builder is not None else []
        return children[-1] if children else None
    except OSError:
        return None


def picture(look: Look) -> Picture:
    """The walls around a program, from outside in, and the call that makes each."""
    drawing = Drawing(720, 430)
    box, here = _living(), look.here
    drawing.box(8, 8, 704, 362, f"the host: notebook {here.pid}, builder", fill=HOST, bold=True)
    pid = f"host's pid {box.pid}" if box else "no container lives: numbers are left out"
    drawing.box(40, 44, 640, 310, f"start: seven namespaces ({pid})", fill=OWN, bold=True)
    drawing.text(56, 82, _numbers(box), size=11, mono=True)
    drawing.box(72, 108, 576, 190, "enter: another root; files: all that is in it", fill=PAPER, bold=True)
    drawing.text(88, 146, "/usr read-only   /proc fresh   /work copy-on-write", size=11, mono=True)
    drawing.box(104, 160, 512, 122, "shut: 0, 1, 2      rights: none", fill=DANGER, bold=True)
    drawing.box(124, 196, 200, 70, "PID 1\nwaits, buries the dead", fill=PAPER)
    drawing.box(394, 196, 200, 70, "PID 2\nthe program", fill=PAPER)
    drawing.arrow(324, 232, 394, 232, "run", colour=BLUE)
    drawing.text(88, 326, "uid 0 in here is", size=12)
    drawing.text(196, 326, f"uid {os.getuid()} out there", size=12, colour=GREEN, bold=True)
    drawing.box(8, 382, 704, 40, "one kernel, for all of them: every system call ends here", fill=KERNEL)
    return Picture(
        drawing.svg(),
        "From outside in: the host; namespaces (start); another root with few files in it (enter, files); no "
        "descriptors and no rights (shut, rights); PID 1, and the program. Below all, one kernel.",
    )


def _numbers(box: Process | None) -> str:
    if box is None:
        return "  ".join(KINDS)
    found = [f"{kind} {str(box.ns(kind) or '?')[-4:]}" for kind in KINDS]
    return "inodes …  " + "  ".join(found)
