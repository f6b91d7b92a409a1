"""The labs of this process: each is a holder (``launcher.lab``), and the owner's end of it.

Any thread may use a lab; requests to its holder go one after the other.  A fork of the owner has none.
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
from typing import Final

from nsmagic import confinement, options, spec
from nsmagic.attachment import Attachment, pair
from nsmagic.errors import HostError, NetworkError, SpecError
from nsmagic.host import remedy_for
from nsmagic.launcher import client, lab_frames
from nsmagic.result import Step

MOST_LABS: Final = 64
_BOOT: Final = "import sys; sys.path[:] = {path!r}; from nsmagic.launcher.lab import main; main()"
_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_LEAVING_SECONDS: Final = 2.0
_RETRY: Final = 0.02
_LOG_BYTES: Final = 2000


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
        os.chmod(self.hosts_folder, 0o755)  # noqa: PTH101, S103 - members read it, whatever the umask says
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
            self.name,
            f"all {len(reply.members)} addresses of {self.subnet} are taken; stop a container first",
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


def find_or_create(name: str) -> Lab:
    """The living lab of this name, or a new one.

    Raises:
        HostError, NetworkError, SpecError: see ``create``.
    """
    with _current().lock:
        there = _current().labs.get(name)
        return there if there is not None and there.alive else create(name)


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
