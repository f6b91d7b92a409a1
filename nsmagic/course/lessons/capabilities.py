"""Lesson 11: capabilities and system-call filters, as /proc/PID/status and /proc/PID/stat show them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, DANGER, GREEN, HOST, KERNEL, OWN, RED, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process
from nsmagic.linux_constants import CAP_NET_BIND_SERVICE

if TYPE_CHECKING:
    from nsmagic.course.look import Look

_ONE: Final = 1 << CAP_NET_BIND_SERVICE
_EXIT_CODE: Final = 52
"""The field of /proc/PID/stat, counted from 1."""
_SIGNAL: Final = 0x7F


@exercise(
    "11a",
    "The scratch process server holds one capability, in a user namespace of its own",
    hints=(
        "A new user namespace gives all of them. Then give up the others.",
        "unshare(CLONE_NEWUSER), then capset(effective, permitted), each a set with one member.",
    ),
)
def _server(look: Look) -> None:
    server = look.scratch("server")
    look.own(server, "user")
    for which in ("Eff", "Prm"):
        found = server.capabilities(which)
        look.expect(
            found == _ONE, f"Cap{which} of server, /proc/{server.pid}/status", f"{found:016x}", f"{_ONE:016x}"
        )


@exercise(
    "11b",
    "A program sleep that lab has started is root of its namespace, and has no right and gets none",
    hints=(
        "What gives a program of user id 0 its capabilities back, and which two things bar that?",
        "PR_CAPBSET_DROP for each number up to kernel/cap_last_cap, while CAP_SETPCAP is still held.",
        "Then capset((), ()) and prctl(PR_SET_NO_NEW_PRIVS, 1), all of it in the child, before execv.",
    ),
    settles=3.0,
)
def _sleep(look: Look) -> None:
    lab = look.scratch("lab")
    found = [each for each in lab.children() if each.command()[:1] == ["sleep"]]
    names = [" ".join(each.command())[:40] for each in lab.children()]
    look.require(bool(found), "children of lab, /proc/PID/cmdline", names, "sleep")
    sleep = Process(found[-1].pid, "sleep")
    look.expect(sleep.ns("user") == lab.ns("user"), "its user namespace", sleep.ns("user"), "that of lab")
    ids, mapped = sleep.ids("uid"), [outside for inside, outside, _ in sleep.id_map("uid") if inside == 0]
    look.expect(
        [ids[1]] == mapped, "its effective user id, as the host sees it", ids[1], "that of lab's root"
    )
    for which in ("Eff", "Prm", "Bnd"):
        bits = sleep.capabilities(which)
        look.expect(bits == 0, f"Cap{which} of sleep, /proc/{sleep.pid}/status", f"{bits:016x}", "none")
    new = sleep.status().get("NoNewPrivs", "?")
    look.expect(new == "1", "NoNewPrivs of sleep, likewise", new, "1")


@exercise(
    "11c",
    "A child of quiet was ended by its filter, and quiet has none",
    hints=(
        "The function answer makes the filter; which of the three answers ends a process?",
        "In the child: no_new_privs first, then seccomp(SECCOMP_SET_MODE_FILTER, 0, …).",
        "answer(GETPPID, SECCOMP_RET_KILL_PROCESS) is the filter.",
    ),
    settles=3.0,
)
def _killed(look: Look) -> None:
    quiet = look.scratch("quiet")
    mode = quiet.status().get("Seccomp", "?")
    look.expect(mode == "0", f"Seccomp of quiet, /proc/{quiet.pid}/status", mode, "0, no filter")
    dead = [each for each in quiet.children() if each.state == "Z"]
    look.require(bool(dead), "zombies among quiet's children", len(dead), "one")
    last = dead[-1]
    status = last.status()
    look.expect(
        status.get("NoNewPrivs") == "1", "NoNewPrivs of the zombie, likewise", status.get("NoNewPrivs"), "1"
    )
    # 2 is a filter; since Linux 5.16 who was killed by one shows 3.
    mode = status.get("Seccomp", "?")
    look.expect(mode in {"2", "3"}, "Seccomp of the zombie, likewise", mode, "a filter")
    code = int(last.text("stat").rpartition(")")[2].split()[_EXIT_CODE - 3])
    number = code & _SIGNAL
    name = signal.Signals(number).name if number in set(signal.Signals) else f"exit status {code >> 8}"
    look.expect(number == signal.SIGSYS, f"what it died of, /proc/{last.pid}/stat", name, "SIGSYS")


def picture(look: Look) -> Picture:
    """The way of a system call: the filter, then the capability in some user namespace."""
    name, process = _example(look)
    effective = process.capabilities("Eff")
    mode = process.status().get("Seccomp", "?")
    drawing = Drawing(700, 280)
    drawing.box(14, 70, 130, 90, f"{name}\nCapEff\n{effective:x}\nSeccomp {mode}", fill=OWN)
    drawing.box(210, 40, 150, 150, "1  the filter", fill=HOST, bold=True)
    drawing.text(
        220, 84, "looks at: number,\narchitecture, six\nnumbers\nnot at: what they\npoint to", size=11
    )
    drawing.box(430, 40, 150, 150, "2  capability?", fill=HOST, bold=True)
    drawing.text(
        440,
        84,
        "looks at: CapEff, and\nthe user namespace\nthat owns the thing:\nmine, or one below?",
        size=11,
    )
    drawing.box(630, 70, 58, 90, "done", fill=KERNEL)
    drawing.arrow(144, 112, 208, 112, "call", colour=BLUE)
    drawing.arrow(360, 112, 428, 112, "allow", colour=GREEN)
    drawing.arrow(580, 112, 628, 112, "", colour=GREEN)
    drawing.box(210, 222, 150, 44, "killed (SIGSYS),\nor any errno", fill=DANGER)
    drawing.box(430, 222, 150, 44, "EPERM", fill=DANGER)
    drawing.arrow(285, 190, 285, 220, colour=RED)
    drawing.arrow(505, 190, 505, 220, colour=RED)
    return Picture(
        drawing.svg(),
        f"A system call of {name} passes two gates: the filter, which sees numbers only and answers by an "
        "errno or SIGSYS, and the check of a capability in the user namespace that owns the thing: EPERM.",
    )


def _example(look: Look) -> tuple[str, Process]:
    """A process to show: the newest child of lab, else the notebook."""
    lab = scratch.find("lab")
    try:
        children = Process(lab.pid).children() if lab else []
        if children:
            children[-1].capabilities()
            return "sleep", children[-1]
    except OSError:
        pass
    return "the notebook", look.here
