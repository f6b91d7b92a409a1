"""A host for tests of the way out: a network namespace with an uplink, addresses, a resolver; then a program.

usage: python fake_host.py PROGRAM ARG...    with the rights of an ordinary user, or as root

    uplink       192.0.2.2/24, 2001:db8:1::2/64, and the default routes; nobody is there
    lo           127.0.0.1, ::1; and as "elsewhere" 203.0.113.9, 2001:db8:9::9; as a cloud's metadata 169.254.169.254
    127.0.0.53   what /etc/resolv.conf names, as where systemd resolves

The program finds the machine's own files, but no other network than this.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import tempfile
import threading
from pathlib import Path

from pyroute2 import IPRoute

from nsmagic.linux import deny_setgroups, mount, unshare, write_id_map
from nsmagic.linux_constants import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, MS_BIND, MS_PRIVATE, MS_REC

ELSEWHERE = ("203.0.113.9", "2001:db8:9::9")
UPLINK = ("192.0.2.2", "2001:db8:1::2")
METADATA = "169.254.169.254"
RESOLVER = "127.0.0.53"


def become() -> None:
    """Go there.  An ordinary user stays who he is: of the new namespaces he keeps no right once he runs a program."""
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
        deny_setgroups("self")
        write_id_map("self", "uid", [(uid, uid, 1)])
        write_id_map("self", "gid", [(gid, gid, 1)])
    else:
        unshare(CLONE_NEWNET | CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"nameserver {RESOLVER}\n")
        file.flush()
        os.chmod(file.name, 0o644)
        mount(file.name, os.path.realpath("/etc/resolv.conf"), None, MS_BIND)
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")  # for the resolver
    with IPRoute() as ip:
        ip.link("add", ifname="uplink", kind="bridge")
        (loopback, uplink) = (ip.link_lookup(ifname=name)[0] for name in ("lo", "uplink"))
        for index in (loopback, uplink):
            ip.link("set", index=index, state="up")
        for address in (*ELSEWHERE, METADATA):
            ip.addr("add", index=loopback, address=address, prefixlen=128 if ":" in address else 32)
        ip.addr("add", index=uplink, address=UPLINK[0], prefixlen=24)
        ip.addr("add", index=uplink, address=UPLINK[1], prefixlen=64)
        ip.route("add", dst="default", gateway="192.0.2.1")
        ip.route("add", dst="default", gateway="2001:db8:1::1", family=10)


class Witness:
    """Serves TCP and UDP on addresses of this host, and remembers where somebody came."""

    def __init__(self, *addresses: str) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.port = 0
        self._selector = selectors.DefaultSelector()
        for address in addresses:
            place = socket.getaddrinfo(address, self.port, type=socket.SOCK_STREAM)[0]
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                ours = socket.socket(place[0], kind)
                ours.bind((place[4][0], self.port, *place[4][2:]))
                self.port = self.port or ours.getsockname()[1]
                if kind == socket.SOCK_STREAM:
                    ours.listen()
                self._selector.register(ours, selectors.EVENT_READ, (address, kind))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ours, (address, kind) = key.fileobj, key.data
                assert isinstance(ours, socket.socket)
                with contextlib.suppress(OSError):
                    if kind == socket.SOCK_STREAM:
                        theirs, _ = ours.accept()
                        theirs.sendall(b"reached")
                        theirs.close()
                    else:
                        _, whence = ours.recvfrom(100)
                        ours.sendto(b"reached", whence)
                self.seen.add((address, "tcp" if kind == socket.SOCK_STREAM else "udp"))


def resolve_everything(answer: str) -> None:
    """Be the resolver: whatever is asked for has this IPv4 address; see RFC 1035."""
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind((RESOLVER, 53))

    def serve() -> None:
        while True:
            query, whence = ours.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            wants_ipv4 = query[end - 4 : end - 2] == b"\0\1"
            head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if wants_ipv4 else b"\0\0") + bytes(4)
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(answer)
            ours.sendto(head + query[12:end] + (record if wants_ipv4 else b""), whence)

    threading.Thread(target=serve, daemon=True).start()


if __name__ == "__main__":
    become()
    os.execv(sys.argv[1], sys.argv[1:])
