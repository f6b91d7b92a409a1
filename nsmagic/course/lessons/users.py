"""Lesson 03: user namespaces; root inside, nobody outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, GREY, HOST, OWN, RED, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look


@exercise(
    "03a",
    "The variable host_uid holds the host's user id of the code in rootly",
    hints=(
        "/proc/PID/status has a line Uid: with four numbers, as the reader of the file sees them.",
        "That line of the container's init or of its child; the first of its numbers will do.",
    ),
)
def _host_uid(look: Look) -> None:
    _, payload = look.container("rootly")
    inside = [first for first, outside, _ in payload.id_map("uid") if outside == payload.ids("uid")[0]]
    look.require(
        inside == [0], f"/proc/{payload.pid}/uid_map", payload.id_map("uid"), "who runs it is 0 inside"
    )
    answer = look.answer("host_uid", int)
    met = answer == payload.ids("uid")[0]
    found = "the same" if met else f"{answer} is another user"
    look.expect(met, f"your variable host_uid, and Uid in /proc/{payload.pid}/status", found, "the same")


def _maps(look: Look, process: Process, kind: str, inside: int, outside: int) -> None:
    found = process.id_map(kind)
    text = ", ".join(f"{first} is {second} outside, {count} of them" for first, second, count in found)
    wanted = f"{inside} is {outside} outside, 1 of them"
    look.expect(
        found == [(inside, outside, 1)],
        f"/proc/{process.pid}/{kind}_map",
        text or "nothing is mapped",
        wanted,
    )


@exercise(
    "03b",
    "The process me sees itself as user 0 and group 0, and is you outside",
    hints=(
        "There are two maps to write, one line each: inside, outside, how many.",
        "Before the map of groups can be written, setgroups has to be given up.",
        "deny_setgroups('self'), then write_id_map('self', 'uid', [(0, uid, 1)]), and the same for 'gid'.",
    ),
)
def _me(look: Look) -> None:
    me = look.scratch("me")
    if look.own(me, "user"):
        _maps(look, me, "uid", 0, os.getuid())
        _maps(look, me, "gid", 0, os.getgid())


@exercise(
    "03c",
    "The process nested is 4242 in a user namespace two levels below the notebook's",
    hints=(
        "The calls of the exercise before, and then some of them again.",
        "In the second namespace the outside id is 0: that is who the process is in the first one.",
        "unshare, deny_setgroups, two maps with 0; then unshare again, and write_id_map with [(4242, 0, 1)].",
    ),
)
def _nested(look: Look) -> None:
    nested = look.scratch("nested")
    if not look.own(nested, "user"):
        return
    above = nested.ns_above("user")
    found = "the notebook's" if above == look.here.ns("user") else f"another one, {above}"
    look.expect(
        above not in {None, look.here.ns("user")}, "the parent of its user namespace, ioctl_nsfs(2)", found,
        "one between it and the notebook's",
    )  # fmt: skip
    _maps(look, nested, "uid", 4242, os.getuid())


def picture(look: Look) -> Picture:
    """Two scales of user ids and the map between them, of the process ``me`` where it lives."""
    process = scratch.find("me")
    maps = [(0, look.here.ids("uid")[0], 1)]
    if process is not None:
        maps = Process(process.pid).id_map("uid") or maps
    inside, outside, count = maps[0]
    drawing = Drawing(640, 300)
    drawing.box(24, 16, 230, 268, "inside: a user namespace", fill=OWN, bold=True)
    drawing.box(386, 16, 230, 268, "outside: the host", fill=HOST, bold=True)
    drawing.box(48, 60, 180, 44, f"{inside}\nall capabilities, in here")
    drawing.box(410, 150, 180, 44, f"{outside}\nwhat it owned before")
    drawing.arrow(228, 82, 408, 172, f"uid_map: {inside} {outside} {count}", colour=BLUE, both=True)
    drawing.box(48, 222, 180, 44, "65534\nnobody", edge=RED)
    for y, text in ((60, "root, 0" if outside else "some user, 1"), (222, "everybody else")):
        drawing.box(410, y, 180, 34, text)
        drawing.arrow(408, y + 17, 230, 246, colour=GREY, dashed=True)
    words = (
        f"User {inside} inside is user {outside} outside; everybody else outside is shown as 65534, nobody, "
        "inside. All capabilities of the one inside count inside only."
    )
    return Picture(drawing.svg(), words)
