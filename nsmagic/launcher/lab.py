"""The holder of a lab network: a process with a bridge, into which the containers' cables are plugged.

    owner ── requests ── holder: own user and network namespace, bridge lab0, no address, no way out
                            ║ veth             ║ veth
                          eth0 of web        eth0 of db

A network namespace lives as long as somebody is in it; the holder is who stays.  An ordinary user may lay a
cable between two network namespaces only with rights over the owners of both.  So the holder has a user
namespace of its own, and the members' user namespaces are its children: whoever has all capabilities in a
user namespace has them in those below, too.  Root has them anyway, and its lab has no user namespace.

The holder keeps the list of members, so no address and no name is given twice: one is free again when the
kernel has said that its member's init is dead (pidfd_open(2)), and the cable is gone.  It serves one owner,
and ends with it.  See bridge(8), veth(4), rtnetlink(7), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute, NetlinkError

from nsmagic.launcher import wiring
from nsmagic.launcher.lab_frames import (
    MAX_PACKET,
    End,
    Join,
    Joined,
    Look,
    Ready,
    Refused,
    Reply,
    Seen,
    View,
    decode_request,
    encode,
)
from nsmagic.launcher.wiring import Journal
from nsmagic.linux import (
    LinuxError,
    deny_setgroups,
    prctl,
    unshare,
    write_id_map,
)
from nsmagic.linux_constants import CLONE_NEWNET, CLONE_NEWUSER, PR_SET_NAME

if TYPE_CHECKING:
    from typing import NoReturn

BRIDGE: Final = "lab0"
INTERFACE: Final = "eth0"
MOST_MEMBERS: Final = 254
"""A /24 has that many addresses for hosts."""
HOSTS: Final = "hosts"

_MAC: Final = "02:6e:73:{:02x}:00:{:02x}"  # locally administered; 6e 73 is "ns"
_NO_LINK_LOCAL: Final = {
    "IFLA_AF_SPEC": {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
}
"""No address that the kernel makes up from the MAC: IN6_ADDR_GEN_MODE_NONE in linux/if_link.h."""


# ---- the holder -----------------------------------------------------------------------------


@dataclass
class _Member:
    """A container on the lab, or one that will come.

    Attributes:
        name: its own.
        number: the container's.
        host: the last byte of its address.
        init: the socket to its init.
        pidfd: init's; -1 before it has come.
        pid: likewise.
        cable: the index of the bridge's end; 0 before.
    """

    name: str
    number: int
    host: int
    init: socket.socket
    pidfd: int = -1
    pid: int = 0
    cable: int = 0

    @property
    def port(self) -> str:
        """What the bridge's end is called."""
        return f"port{self.host}"


class Holder:
    """Serves one owner until it is gone, or has told us to end.

    Args:
        owner: the socket to it.
        subnet: the third byte of the lab's addresses.
        folder: where the members' hosts file lies.
    """

    def __init__(self, owner: socket.socket, subnet: int, folder: str) -> None:
        self._owner = owner
        self._subnet = subnet
        self._folder = folder
        self._members: dict[str, _Member] = {}
        self._poll = select.poll()
        self._poll.register(owner.fileno(), select.POLLIN)
        self._ip = IPRoute()
        self._ip.link("add", ifname=BRIDGE, kind="bridge", address=_MAC.format(subnet, 0))
        self._bridge = self._ip.link_lookup(ifname=BRIDGE)[0]
        # The bridge only passes frames on: without an address nobody can speak to the holder itself.
        with contextlib.suppress(NetlinkError):  # a kernel without IPv6
            self._ip.link("set", index=self._bridge, **_NO_LINK_LOCAL)
        self._ip.link("set", index=self._bridge, state="up")
        self._write_hosts()

    def serve(self) -> None:
        """Answer until the end."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._owner.fileno():
                    if not self._take_request():
                        return
                else:
                    self._take_event(descriptor)

    # ---- the owner's requests -----------------------------------------------------------

    def _take_request(self) -> bool:
        """One request; False at the end."""
        packet, descriptors, _, _ = socket.recv_fds(self._owner, MAX_PACKET, 1)
        if not packet:
            return False
        request = decode_request.decode(packet)
        reply: Reply
        if isinstance(request, Join):
            reply = self._reserve(request, socket.socket(fileno=descriptors.pop()))
        elif isinstance(request, Look):
            reply = self._look()
        else:
            self._forget_dead()
            reply = Refused("busy", members=self._names()) if self._members else Ready()
        self._owner.send(encode(reply))
        return not (isinstance(request, End) and isinstance(reply, Ready))

    def _names(self) -> list[tuple[str, int]]:
        return [(member.name, member.number) for member in self._members.values()]

    def _reserve(self, request: Join, init: socket.socket) -> Reply:
        self._forget_dead()
        taken = {member.host for member in self._members.values()}
        free = next((host for host in range(1, MOST_MEMBERS + 1) if host not in taken), 0)
        same = self._members.get(request.name)
        if same is not None or not free:
            init.close()
            if same is not None:
                return Refused("taken", members=[(same.name, same.number)])
            return Refused("full", members=self._names())
        member = _Member(request.name, request.number, free, init)
        self._members[member.name] = member
        self._poll.register(init.fileno(), select.POLLIN)
        return Joined(self._address(member), self._mac(member))

    def _address(self, member: _Member) -> str:
        return f"10.77.{self._subnet}.{member.host}"

    def _mac(self, member: _Member) -> str:
        return _MAC.format(self._subnet, member.host)

    # ---- the members' coming and going ------------------------------------------------------

    def _take_event(self, descriptor: int) -> None:
        for member in list(self._members.values()):
            if descriptor == member.pidfd:
                self._unplug(member)
            elif descriptor == member.init.fileno():
                self._take_call(member)

    def _forget_dead(self) -> None:
        """See those off whose end was not looked at yet."""
        ends = [descriptor for descriptor, _ in self._poll.poll(0) if descriptor != self._owner.fileno()]
        for descriptor in ends:
            self._take_event(descriptor)

    def _take_call(self, member: _Member) -> None:
        """Init says that its namespace is there, or is gone before it could."""
        self._poll.unregister(member.init.fileno())
        pid = wiring.take_call(member.init)
        journal = Journal()
        done = pid != 0 and journal.guard(lambda: self._plug(member, pid, journal))
        if pid:
            journal.answer(member.init, done=done)
        member.init.close()
        if not done:
            self._unplug(member)

    def _plug(self, member: _Member, pid: int, journal: Journal) -> None:
        """Lay the cable between the bridge and the container, and set up both ends.

        Raises:
            StepError: a step failed.
        """
        member.pid = pid
        member.pidfd = journal.attempt(f"pidfd_open({pid})", lambda: os.pidfd_open(pid))
        self._poll.register(member.pidfd, select.POLLIN)
        namespace = journal.attempt(
            f'open("/proc/{pid}/ns/net", O_RDONLY)', lambda: wiring.open_namespace(pid, "net")
        )
        try:
            journal.attempt(
                f'RTM_NEWLINK(kind=veth, name="{member.port}", master="{BRIDGE}", peer="{INTERFACE}" in the '
                f"container, address={self._mac(member)})",
                lambda: self._lay_cable(member, namespace),
            )
            journal.attempt(
                f'RTM_SETLINK(name="{member.port}", state=up)', lambda: self._bring_up(member.cable)
            )
            inner = journal.attempt(
                "setns(the container's network namespace, CLONE_NEWNET) and back, with a netlink socket",
                lambda: wiring.in_namespace(namespace, IPRoute),
            )
            with contextlib.closing(inner):
                self._configure(self._address(member), inner, journal)
        finally:
            os.close(namespace)
        journal.attempt(f'rename("{HOSTS}.new", "{HOSTS}")', self._write_hosts)

    def _lay_cable(self, member: _Member, namespace: int) -> None:
        peer = {"ifname": INTERFACE, "net_ns_fd": namespace, "address": self._mac(member)}
        self._ip.link("add", ifname=member.port, kind="veth", master=self._bridge, peer=peer)
        member.cable = self._ip.link_lookup(ifname=member.port)[0]

    def _bring_up(self, port: int) -> None:
        with contextlib.suppress(NetlinkError):  # a kernel without IPv6
            self._ip.link("set", index=port, **_NO_LINK_LOCAL)
        self._ip.link("set", index=port, state="up")

    @staticmethod
    def _configure(address: str, inner: IPRoute, journal: Journal) -> None:
        """The container's end, by a socket that speaks to its network namespace."""
        (index,) = inner.link_lookup(ifname=INTERFACE)
        journal.attempt_or_not(
            f'RTM_SETLINK(name="{INTERFACE}", addr_gen_mode=none)',
            lambda: inner.link("set", index=index, **_NO_LINK_LOCAL),
            wiring.NO_IPV6,
        )
        journal.attempt(
            f'RTM_NEWADDR(name="{INTERFACE}", address={address}/24)',
            lambda: inner.addr("add", index=index, address=address, prefixlen=24),
        )
        journal.attempt(
            f'RTM_SETLINK(name="{INTERFACE}", state=up)',
            lambda: inner.link("set", index=index, state="up"),
        )

    def _unplug(self, member: _Member) -> None:
        """It is dead, or could not be made: its name and its address are free again."""
        if member.cable:
            with contextlib.suppress(Exception):  # it went with the container's namespace
                self._ip.link("del", index=member.cable)
        if member.pidfd >= 0:
            self._poll.unregister(member.pidfd)
            os.close(member.pidfd)
        if member.init.fileno() >= 0:
            with contextlib.suppress(KeyError):
                self._poll.unregister(member.init.fileno())
            member.init.close()
        del self._members[member.name]
        with contextlib.suppress(OSError):
            self._write_hosts()

    def _write_hosts(self) -> None:
        """The members' /etc/hosts, replaced at once: nobody reads half of it; see hosts(5)."""
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        lines += [f"{self._address(member)} {member.name}" for member in self._members.values() if member.pid]
        path = os.path.join(self._folder, HOSTS)  # noqa: PTH118 - as text
        with open(f"{path}.new", "w", encoding="ascii") as file:  # noqa: PTH123 - as text
            file.write("\n".join(lines) + "\n")
            os.fchmod(file.fileno(), 0o644)
        os.replace(f"{path}.new", path)  # noqa: PTH105 - as text

    # ---- what is there ------------------------------------------------------------------------

    def _look(self) -> View:
        self._forget_dead()
        links = {link["index"]: link for link in self._ip.get_links()}
        seen = []
        for member in self._members.values():
            link = links.get(member.cable)
            up = False
            counted: dict[str, int] = {}
            if link is not None:
                up = link.get_attr("IFLA_OPERSTATE") == "UP"
                counted = link.get_attr("IFLA_STATS64") or {}
            seen.append(
                Seen(
                    member.name, member.number, self._address(member), self._mac(member), member.port, up,
                    # What the bridge's end sends is what the member receives.
                    int(counted.get("tx_bytes", 0)), int(counted.get("rx_bytes", 0)),
                    listening(member.pid),
                )
            )  # fmt: skip
        return View(BRIDGE, _MAC.format(self._subnet, 0), f"10.77.{self._subnet}.0/24", seen)


_LISTENS: Final = {"tcp": "0A", "udp": "07"}
_MOST_LISTENED: Final = 12


def listening(pid: int) -> list[str]:
    """What is served on in a process's network namespace: ``80/tcp``, sorted; see proc_pid_net(5)."""
    found: set[tuple[int, str]] = set()
    for protocol, state in _LISTENS.items():
        for table in (protocol, f"{protocol}6"):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii")
                for words in map(str.split, text.splitlines()[1:]):
                    if words[3] == state:
                        found.add((int(words[1].rpartition(":")[2], 16), protocol))
    return [f"{port}/{protocol}" for port, protocol in sorted(found)][:_MOST_LISTENED]


def _enter(*, own_user: bool) -> None:
    """Our namespaces.

    Raises:
        LinuxError: the kernel's answer.
    """
    if not own_user:
        unshare(CLONE_NEWNET)
        return
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    # The members' maps name this id again: what is not mapped here cannot be mapped below.
    deny_setgroups("self")
    write_id_map("self", "uid", [(uid, uid, 1)])
    write_id_map("self", "gid", [(gid, gid, 1)])


def main() -> NoReturn:
    """Run it; the last argument is JSON.

    ``owner``: the socket.  ``subnet``: a number.  ``folder``: for the hosts file, is there; ``remove``: to
    remove at the end.  ``own_user``: whether to have a user namespace.
    """
    config: dict[str, Any] = json.loads(sys.argv[-1])
    owner = socket.socket(fileno=config["owner"])
    try:
        try:
            prctl(PR_SET_NAME, "nsmagic-lab")
            _enter(own_user=config["own_user"])
            holder = Holder(owner, config["subnet"], config["folder"])
        except LinuxError as error:
            owner.send(encode(Refused(error.call, error.errno or 0)))
            sys.exit(1)
        except Exception as error:  # noqa: BLE001 - netlink's errors are of many classes
            owner.send(encode(Refused(f"netlink: {error}"[:400], getattr(error, "code", 0) or 0)))
            sys.exit(1)
        # Who makes a member's user namespace must stand in ours; root stands where it is.
        spaces = [os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)] if config["own_user"] else []
        socket.send_fds(owner, [encode(Ready())], spaces)
        for descriptor in spaces:
            os.close(descriptor)
        with contextlib.suppress(ConnectionError):
            holder.serve()
    finally:
        shutil.rmtree(config["remove"], ignore_errors=True)
    sys.exit(0)
