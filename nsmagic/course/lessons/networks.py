"""Lesson 09: network namespaces, cables and a switch; looked at in /proc/PID/net and from inside."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nsmagic import scratch
from nsmagic.course.drawing import BLUE, GREY, HOST, KERNEL, OWN, Drawing, Picture
from nsmagic.course.exercise import exercise
from nsmagic.course.outside import Process

if TYPE_CHECKING:
    from nsmagic.course.look import Look

ADDRESSES: Final = {"router": "10.9.0.1", "left": "10.9.0.2", "right": "10.9.0.3"}
_ESTABLISHED: Final = 1
_MOST: Final = 2000


class _Route(NamedTuple):
    device: str
    to: str
    through: str


def _routes(process: Process) -> list[_Route]:
    """The routes of its network namespace: proc_pid_net(5)."""
    found = []
    for line in process.text("net", "route").splitlines()[1:_MOST]:
        device, to, through = line.split()[:3]
        found.append(_Route(device, _dotted(to), _dotted(through)))
    return found


def _dotted(word: str) -> str:
    """An address as /proc writes it: the number as it lies in memory."""
    return socket.inet_ntoa(struct.pack("=I", int(word, 16)))


def _connections(process: Process) -> list[tuple[str, str]]:
    """Established TCP connections of its network namespace: own and other address."""
    found = []
    for line in process.text("net", "tcp").splitlines()[1:_MOST]:
        fields = line.split()
        if int(fields[3], 16) == _ESTABLISHED:
            found.append((_dotted(fields[1].split(":")[0]), _dotted(fields[2].split(":")[0])))
    return found


def _attached(look: Look, name: str, device: str) -> Process:
    """Note whether a scratch process has its own network, and in it a device with its address that is up."""
    process = look.scratch(name)
    look.own(process, "net")
    facts = process.inside("net")
    look.expect(device in facts.devices, f"devices of {name}", ", ".join(facts.devices), device)
    wanted = ADDRESSES[name]
    own = [each for each in facts.addresses if not each.startswith("127.")]
    look.expect(wanted in own, f"addresses of {name}", ", ".join(own) or "none", wanted)
    lines = [each for each in _routes(process) if each.to == "10.9.0.0"]
    found = lines[0].device if lines else "none: no device is up that has an address in it"
    look.expect(found == device, f"{name}'s route to 10.9.0.0/24, /proc/PID/net/route", found, device)
    return process


@exercise(
    "09a",
    "A cable leads from router to left, with an address at each end",
    hints=(
        "A veth is made in one namespace, and its other end is born in another: it takes a process id.",
        "Both ends have to be switched on, and each in its own cell: a process sees its own devices only.",
        "veth('port0', 'eth0', left), address('port0', '10.9.0.1/24'), up('port0'); in left likewise.",
    ),
)
def _cable(look: Look) -> None:
    _attached(look, "router", "port0")
    _attached(look, "left", "eth0")


@exercise(
    "09b",
    "left and right are at one switch, and have a connection",
    hints=(
        "The switch is router's: bridge0, with the ports port0 and port1. A port needs no address.",
        "router: bridge('bridge0'), veth('port1', 'eth0', right), plug(…) both ports, up(…) all three.",
        "The listening and the connecting are there; in right: address('eth0', '10.9.0.3/24'), up('eth0').",
    ),
    settles=2.0,
)
def _switch(look: Look) -> None:
    router = look.scratch("router")
    devices = router.inside("net").devices
    for each in ("bridge0", "port0", "port1"):
        look.expect(each in devices, "devices of router", ", ".join(devices), each)
    left, right = _attached(look, "left", "eth0"), _attached(look, "right", "eth0")
    for process, pair in (
        (left, (ADDRESSES["left"], ADDRESSES["right"])),
        (right, (ADDRESSES["right"], ADDRESSES["left"])),
    ):
        found = _connections(process)
        text = ", ".join(f"{own} to {other}" for own, other in found[:5]) or "none"
        look.expect(
            pair in found, f"{process.name}'s connections, /proc/PID/net/tcp", text, f"{pair[0]} to {pair[1]}"
        )


@exercise(
    "09c",
    "left sends what is for nobody known to router",
    hints=(
        "A route with no destination is the default route; its gateway must be a neighbour.",
        "In left: gateway('10.9.0.1').",
    ),
)
def _default(look: Look) -> None:
    left = look.scratch("left")
    found = [each for each in _routes(left) if each.to == "0.0.0.0"]  # noqa: S104 - a destination
    text = found[0].through if found else "no default route"
    look.expect(text == ADDRESSES["router"], "gateway of left's default route", text, ADDRESSES["router"])


def picture(look: Look) -> Picture:
    """Three network namespaces, a switch and two cables, and the host that is not connected."""
    drawing = Drawing(700, 330)
    drawing.box(16, 12, 250, 70, f"the host's network {look.here.ns('net')}", fill=HOST, bold=True)
    drawing.text(28, 62, "its own devices, ports, routes", size=11)
    drawing.box(290, 12, 394, 130, f"router {_inode('router')}", fill=OWN, bold=True)
    drawing.box(420, 48, 140, 34, "bridge0", fill=KERNEL)
    drawing.box(330, 100, 90, 32, "port0")
    drawing.box(560, 100, 90, 32, "port1")
    drawing.line(375, 100, 440, 82)
    drawing.line(605, 100, 540, 82)
    for x, name, port in ((290, "left", 375), (500, "right", 605)):
        drawing.box(x, 220, 184, 90, fill=OWN)
        drawing.text(x + 92, 302, f"{name} {_inode(name)}", bold=True, anchor="middle")
        drawing.box(port - 60, 236, 120, 40, f"eth0\n{ADDRESSES[name]}")
        drawing.arrow(port, 132, port, 234, "veth", colour=BLUE, both=True)
    drawing.line(141, 82, 141, 150, colour=GREY, dashed=True)
    drawing.text(
        28, 170, "no cable leads here: nobody\nreaches it, and it reaches nobody", size=11, colour=GREY
    )
    return Picture(
        drawing.svg(),
        "Router has a bridge with two ports; a cable (veth) leads from each to eth0 of left and of right, "
        "which have namespaces of their own. The host's network has no cable to any of them.",
    )


def _inode(name: str) -> str:
    found = scratch.find(name)
    inode = Process(found.pid).ns("net") if found is not None else None
    return "" if inode is None else str(inode)
