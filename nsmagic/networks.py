"""Networks, from the owner's side: labs, and the way out.

A *lab* is a network of containers and of nothing else: a bridge in a namespace of its own (``launcher.lab`` is
its holder), addresses from a private range, names in the members' /etc/hosts.  It belongs to the process that
created it and ends with it.  *Outbound* is no network of ours: each container gets a pasta of its own, which
carries its connections out through the host's sockets (``outbound``).

A container that has one of them is built afresh, never taken from a standby: it costs an address, or a process.
Any thread may use this module.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nsmagic import confinement, options, spec
from nsmagic.errors import HostError, NetworkError, SpecError
from nsmagic.filesystem import Names
from nsmagic.host import remedy_for
from nsmagic.launcher import client, lab_frames, wiring
from nsmagic.plan import Doors
from nsmagic.result import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.spec import ContainerSpec

MOST_LABS: Final = 64
_BOOT: Final = "import sys; sys.path[:] = {path!r}; from nsmagic.launcher.lab import main; main()"
_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_LEAVING_SECONDS: Final = 2.0
_RETRY: Final = 0.02
_LOG_BYTES: Final = 2000


class Attachment:
    """One container's part in a network, from before its start until its end.

    Args:
        end: the socket for its init, which is given away.
        let_go: called at the container's end, for what was started for it alone.
    """

    def __init__(self, end: socket.socket, let_go: Callable[[], None] | None = None) -> None:
        self._end = end
        self._let_go = let_go

    @property
    def end(self) -> int:
        """The descriptor for its init."""
        return self._end.fileno()

    def close_end(self) -> None:
        """Init has it now."""
        self._end.close()

    def close(self) -> None:
        """The container has ended, or could not be made."""
        self._end.close()
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go()


def pair() -> tuple[socket.socket, socket.socket]:
    """A socket for init and one for whoever builds its network, who will be told who speaks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wiring.prepare(theirs)
    return ours, theirs


def names(spec: ContainerSpec) -> Names:
    """What a container of this spec is to know of others; here a wish for what is not there ends.

    Raises:
        HostError: ``outbound``, and there is no pasta.
        SpecError: there is no lab of that name.
    """
    if spec.net == "outbound":
        from nsmagic import outbound  # noqa: PLC0415 - which builds on us

        outbound.program()
        return Names(resolv_conf=outbound.resolv_conf())
    return Names(hosts_folder=find("--net", spec.net).hosts_folder)


def named(wanted: ContainerSpec, number: int) -> ContainerSpec:
    """A member of a lab has a name that others call it by: the given one, or one of its own."""
    if wanted.net in spec.NETWORKS or wanted.hostname != spec.DEFAULT_HOSTNAME:
        return wanted
    return replace(wanted, hostname=f"box{number}")


def doors(wanted: ContainerSpec) -> Doors | None:
    """The user namespace that a member's own is made in, so that the lab's holder has rights over it.

    Raises:
        SpecError: there is no lab of that name.
    """
    userns = find("--net", wanted.net).userns
    return Doors((("user", userns),), os.geteuid(), os.getegid()) if userns >= 0 else None


def attach(wanted: ContainerSpec, number: int) -> Attachment:
    """Have somebody wait for a container that is about to be made, to build its network.

    Raises:
        HostError, NetworkError, SpecError: it cannot have it; see ``Lab.attach``, ``outbound.attach``.
    """
    if wanted.net == "outbound":
        from nsmagic import outbound  # noqa: PLC0415 - as above

        return outbound.attach(wanted.publish)
    return find("--net", wanted.net).attach(wanted.hostname, number)


class Network:
    """A lab network; with the same name as a living one of this process it is that.

    Use it in a ``with`` statement, or ``remove`` it; else it ends with this process.

    >>> with nsmagic.Network("lab"):
    ...     web = nsmagic.Container(net="lab", hostname="web").start()
    ...     nsmagic.run("...", net="lab").check()

    Args:
        name: 1 to 30 letters, digits, hyphens and underscores, a letter first.

    Raises:
        SpecError: no name for a lab.
        HostError: this host has no such networks.
        NetworkError: it could not be made.
    """

    def __init__(self, name: str) -> None:
        self.name = spec.parse_lab("network", name)
        with _current().lock:
            there = _current().labs.get(self.name)
            self._lab = there if there is not None and there.alive else create(self.name)

    def remove(self) -> None:
        """Remove it.

        Raises:
            NetworkError: it has members; the text says which.
        """
        self._lab.remove()

    def view(self) -> lab_frames.View:
        """What is there now, as the kernel shows it.

        Raises:
            NetworkError: it is gone.
        """
        return self._lab.view()

    @property
    def subnet(self) -> str:
        """Its range of addresses, such as ``10.77.0.0/24``."""
        return self._lab.subnet

    def __enter__(self) -> Network:
        """It is there already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it, once its members are gone; one that still has some goes with this process."""
        with contextlib.suppress(NetworkError):
            self.remove()

    def __repr__(self) -> str:
        """Name and state."""
        return f"<lab network {self.name}: {self.subnet if self._lab.alive else 'gone'}>"


class Lab:
    """The owner's end of a lab: requests to its holder, one at a time.

    Args:
        name: what the user calls it.
        number: the third byte of its addresses.

    Raises:
        HostError: the kernel refused a namespace or a bridge.
        NetworkError: the holder did not start.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self._owner = os.getpid()
        self.subnet = f"10.77.{number}.0/24"
        self.userns = -1
        self._lock = threading.Lock()
        self._log = os.memfd_create("nsmagic-lab-log")
        self._folder = confinement.private_folder()
        self.hosts_folder = os.path.join(self._folder, "names")  # noqa: PTH118 - as text
        os.mkdir(self._folder, 0o700)  # noqa: PTH102 - as text
        os.mkdir(self.hosts_folder, 0o755)  # noqa: PTH102 - likewise
        os.chmod(self.hosts_folder, 0o755)  # noqa: PTH101 - whatever the umask says: members read it
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.owned.add(self._socket.fileno())
        config = {
            "owner": theirs.fileno(), "subnet": number, "folder": self.hosts_folder, "remove": self._folder,
            "own_user": os.geteuid() != 0,
        }  # fmt: skip
        path = [*client.python_path()]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT.format(path=path), json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                cwd="/",
                start_new_session=True,  # a Ctrl-C in our terminal is for us alone
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> None:
        self._socket.settimeout(_START_SECONDS)
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._socket, lab_frames.MAX_PACKET, 1)
        except OSError:
            packet, descriptors = b"", []
        self._socket.settimeout(_ANSWER_SECONDS)
        if descriptors:
            self.userns = descriptors[0]
            client.owned.add(self.userns)
        if not packet:
            raise NetworkError(self.name, f"its holder {self._how_it_died()}")
        reply = lab_frames.decode_reply.decode(packet)
        if isinstance(reply, lab_frames.Refused):
            step = Step("network", reply.why, -1, reply.errno, 0.0, 0.0)
            answer = f"{reply.why}: {os.strerror(reply.errno)}" if reply.errno else reply.why
            raise HostError("A lab network", answer, remedy_for(step))

    @property
    def alive(self) -> bool:
        """Whether its holder lives."""
        return self._process.poll() is None and self._socket.fileno() >= 0

    @property
    def pid(self) -> int:
        """Its holder's process id."""
        return self._process.pid

    def _how_it_died(self) -> str:
        how = "closed its channel"
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_END_SECONDS)
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = os.pread(self._log, _LOG_BYTES, 0).decode(errors="replace").strip() if self._log >= 0 else ""
        return f"{how}. It printed:\n{said}" if said else how

    def _ask(self, request: lab_frames.Request, descriptors: list[int] | None = None) -> lab_frames.Reply:
        with self._lock:
            try:
                socket.send_fds(self._socket, [lab_frames.encode(request)], descriptors or [])
                packet = self._socket.recv(lab_frames.MAX_PACKET)
            except TimeoutError:
                self._process.kill()  # its answer would be taken for that to another request
                packet = b""
            except OSError:
                packet = b""
            if not packet:
                raise NetworkError(
                    self.name, f"it is gone: its holder {self._how_it_died()}; create it again"
                )
            return lab_frames.decode_reply.decode(packet)

    def attach(self, name: str, number: int) -> Attachment:
        """Make room for a container; it is a member once its init has come.

        Args:
            name: what the others shall call it.
            number: its own.

        Raises:
            NetworkError: the name is taken, or all addresses are; or the network is gone.
        """
        ours, theirs = pair()
        with theirs:
            try:
                reply = self._ask(lab_frames.Join(name, number), [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        if isinstance(reply, lab_frames.Joined):
            return Attachment(ours)
        ours.close()
        assert isinstance(reply, lab_frames.Refused)  # noqa: S101 - one of the two
        if reply.why == "taken":
            raise NetworkError(
                self.name,
                f"the name {name!r} is container {reply.members[0][1]}'s; take another with --hostname",
            )
        raise NetworkError(
            self.name, f"all {len(reply.members)} addresses of {self.subnet} are taken; stop a container first"
        )

    def view(self) -> lab_frames.View:
        """What is there now.

        Raises:
            NetworkError: it is gone.
        """
        reply = self._ask(lab_frames.Look())
        assert isinstance(reply, lab_frames.View)  # noqa: S101 - the only answer
        return reply

    def remove(self) -> None:
        """Have the holder end.  Containers whose job is over may take a moment to go.

        Raises:
            NetworkError: it has members.
        """
        deadline = time.monotonic() + _LEAVING_SECONDS
        while self.alive:
            reply = self._ask(lab_frames.End())
            if not isinstance(reply, lab_frames.Refused):
                break
            if time.monotonic() > deadline:
                names = ", ".join(f"{name} (container {number})" for name, number in reply.members)
                raise NetworkError(self.name, f"it has members: {names}; stop them first")
            time.sleep(_RETRY)
        self.close()

    def close(self) -> None:
        """Let go of it: its holder ends, whoever its members are."""
        if self._owner != os.getpid():  # a fork of the owner: it is not ours
            return
        with _current().lock:
            if _current().labs.get(self.name) is self:
                del _current().labs[self.name]
        for descriptor in (self._socket.fileno(), self.userns):
            client.owned.discard(descriptor)
        self._socket.close()
        if self.userns >= 0:
            os.close(self.userns)
            self.userns = -1
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # where the holder was killed
        if self._log >= 0:
            os.close(self._log)
            self._log = -1


# ---- those of this process -------------------------------------------------------------------


class _Registry:
    """The labs of one owner; a fork of it has none."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.labs: dict[str, Lab] = {}


_registry = _Registry()


def _current() -> _Registry:
    global _registry  # noqa: PLW0603 - there is one, and a fork of the owner starts anew
    if _registry.pid != os.getpid():
        _registry = _Registry()
    return _registry


def create(name: str) -> Lab:
    """A new lab; the registry's lock is held by whoever must not be disturbed.

    Raises:
        SpecError: there is one of that name, or too many.
        HostError, NetworkError: see ``Lab``.
    """
    with _current().lock:
        labs = _current().labs
        old = labs.get(name)
        if old is not None and old.alive:
            raise SpecError("network", f"there is a network {name!r} already: {old.subnet}")
        if old is not None:
            old.close()
        taken = {each.number for each in labs.values()}
        if len(taken) >= MOST_LABS:
            raise SpecError("network", f"there are {MOST_LABS} labs already; remove one first")
        found = Lab(name, next(number for number in range(MOST_LABS) if number not in taken))
        labs[name] = found
        return found


def living() -> list[Lab]:
    """Those that live, and those whose holder was killed and that nobody has removed yet."""
    return list(_current().labs.values())


def find(option: str, name: str) -> Lab:
    """The lab of this name.

    Raises:
        SpecError: there is none in this process; the text names those that are there.
    """
    labs = _current().labs
    if name in labs:
        return labs[name]
    near = options.nearest(name, [*spec.NETWORKS, *labs])
    known = ", ".join((*spec.NETWORKS, *labs))
    raise SpecError(
        option,
        f"{name!r} is not a network here{near}; there are {known}; %network create NAME or "
        "nsmagic.Network(NAME) makes a lab, for the notebook or program that it is made in",
    )


def close_all() -> None:
    """End all of this process."""
    for each in living():
        with contextlib.suppress(Exception):
            each.close()


atexit.register(close_all)
