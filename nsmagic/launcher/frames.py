"""The wire format between owner, launcher and runner: typed and bounded.

Requests to the launcher are one packet each, with descriptors beside them.  Between owner and runner a frame
is four bytes of length (big-endian) and that many bytes of MessagePack.  What comes from a runner is
hostile: it is decoded into these types and nothing else, and a bad frame ends the channel.
This module knows no other.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REQUEST: Final = 160 * 1024
"""Bytes of one packet to the launcher; the kernel's default limit for a packet is 208 KiB."""
MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes of one frame from a runner."""
MAX_SMALL_FRAME: Final = 20 * 1024 * 1024
"""Likewise, where no values were asked for."""
MAX_OBJECTS: Final = 1024 * 1024
"""Bytes of a value that is not one text or one run of bytes: its objects may take 70 times as much memory."""
MAX_ENTRIES: Final = 1000
MAX_LINES: Final = 10_000
MAX_NAME: Final = 1000
LENGTH: Final = struct.Struct("!I")
CONNECTION_FILE: Final = "{connection_file}"
"""What stands in a kernel's argv for the file that tells it where to listen; Jupyter's own word for it."""


class FrameError(Exception):
    """A frame that is malformed, too long, or of no known type."""


# ---- owner -> launcher -----------------------------------------------------


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One thing in the container's root; see ``struct nsm_entry`` in nsmagic.h.

    Attributes:
        owner: root only: (uid, gid) whose files are to appear as the payload's.
    """

    kind: int
    target: bytes
    source: bytes = b""
    flags: int = 0
    mode: int = 0o755
    owner: tuple[int, int] | None = None


class Spawn(msgspec.Struct, frozen=True, tag="spawn"):
    """Make a container.  Six descriptors come with it (control, report, lifeline, stdin, stdout, stderr),
    then one for each v1 ``tasks`` file, then the cgroup v2 directory if ``into_cgroup``, then one for each of
    ``joins``, then one of a mount namespace if ``proc_from``, then if ``network`` the socket to whoever
    builds its network from outside.

    Attributes:
        parent_uid: what ``uid`` stands for in the user namespace that it is made in, the host's or another.
        parent_gid: likewise.
        tasks: how many v1 ``tasks`` files there are.
        joins: kinds of the namespaces to enter first, in this order, each by its clone flag; see join.c.
        proc_from: whether /proc is a copy of one in another mount namespace.
        hold: it takes no job: init keeps it for others, who join.
        directories: cgroup directories to remove, in this order, when the container is gone.
        confine: ``enum nsm_confinement`` in nsmagic.h.
        snapshots: a snapshot of the payload may take over when it dies.
        hostname_wished: nobody asked for just this name, so it can be done without.
        private: a folder to remove with all that is in it, when the container is gone; or empty.
        blank: wait for the rest of the plan, which comes with ``Finish``: what is not known now is empty.
    """  # noqa: D205

    id: int
    namespaces: int
    uid: int
    gid: int
    host_uid: int
    host_gid: int
    parent_uid: int
    parent_gid: int
    hostname: str | None
    workdir: bytes
    disk_bytes: int
    disk_inodes: int
    entries: list[Entry]
    rlimits: list[tuple[int, int]]
    tasks: int
    into_cgroup: bool
    directories: list[str]
    confine: int = 0
    snapshots: bool = False
    hostname_wished: bool = False
    private: str = ""
    blank: bool = False
    joins: list[int] = []
    proc_from: bool = False
    hold: bool = False
    network: bool = False


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """The rest of a blank's plan; see ``Spawn``."""

    id: int
    hostname: str | None
    hostname_wished: bool
    workdir: bytes
    disk_bytes: int
    disk_inodes: int
    entries: list[Entry]
    rlimits: list[tuple[int, int]]


class Release(msgspec.Struct, frozen=True, tag="release"):
    """The owner is done with a container: end what is left of it and remove its cgroup directories."""

    id: int


Request = Spawn | Finish | Release


# ---- launcher -> owner -----------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The launcher is ready.

    Attributes:
        failed: modules that could not be preloaded, each with the reason.
    """

    pid: int
    failed: list[tuple[str, str]]


# ---- owner -> runner --------------------------------------------------------


class Job(msgspec.Struct, frozen=True, tag="job"):
    """What to run; see ``JobSpec``.

    Attributes:
        code: Python source; of a kernel, its connection file's text.
        argv: the words of a program; of a kernel, the folder of its sockets, then the words of its program.
        variables: encoded values to put into the cell's namespace, by name.
        pickled: likewise, values that only pickle could carry; they come from the owner, who is trusted.
        ask: whether ``input()`` may ask the owner.
        keep: fork for this job and take another one afterwards.
        stdin: with ``keep``, the job's standard input; else that is a pipe.
    """

    kind: str
    code: str
    argv: list[str]
    env: dict[str, str]
    fresh: bool
    outputs: list[str]
    execution_count: int
    variables: dict[str, bytes]
    pickled: dict[str, bytes]
    ask: bool
    keep: bool
    stdin: bytes = b""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """What the user typed; None where nobody can answer."""

    text: str | None


class Go(msgspec.Struct, frozen=True, tag="go"):
    """The owner has shown all output up to a ``Display``: it may go on, and the order holds."""


ToRunner = Job | Answer | Go


# ---- runner -> owner: hostile ------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The runner waits for its job."""


class Display(msgspec.Struct, frozen=True, tag="display"):
    """Rich output.  Its values stay undecoded until their size is known to be bearable; see ``loads``.

    Attributes:
        kind: ``display`` or ``result`` (a cell's last expression).
        display_id: the sender's name for this output, so that it can be updated.
        update: whether it replaces the earlier output of that name.
    """

    kind: str
    data: Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=MAX_ENTRIES)]
    metadata: msgspec.Raw
    display_id: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] | None = None
    update: bool = False


class Clear(msgspec.Struct, frozen=True, tag="clear"):
    """Clear the output, now or when the next one comes."""

    wait: bool


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The cell raised."""

    ename: str
    evalue: str
    traceback: Annotated[list[str], msgspec.Meta(max_length=MAX_LINES)]


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """``input()`` or ``getpass()`` was called."""

    prompt: str
    password: bool


class NoProgram(msgspec.Struct, frozen=True, tag="no-program"):
    """The program could not be executed."""

    errno: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job is over, as the runner sees it.

    Attributes:
        exit_status: 0 to 255.
        values: encoded values taken out, by name.
        problems: names that could not be taken out, each with the reason.
    """

    exit_status: int
    values: Annotated[dict[str, bytes], msgspec.Meta(max_length=MAX_ENTRIES)]
    problems: Annotated[dict[str, str], msgspec.Meta(max_length=MAX_ENTRIES)]


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """With ``keep``: the job's process has ended.

    Attributes:
        status: as waitpid(2) gives it.
    """

    status: int


class Keeping(msgspec.Struct, frozen=True, tag="keeping"):
    """Of a kernel: whether it makes a snapshot before each cell has changed.

    Attributes:
        against: why it does not; empty where it does.
        amount: threads, bytes or microseconds, as the reason has it.
    """

    against: Literal["", "off", "host", "threads", "accelerator", "memory", "slow"]
    amount: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 0


class Revived(msgspec.Struct, frozen=True, tag="revived"):
    """Of a kernel: it died, and this is its snapshot, which goes on.

    Attributes:
        number: that its sockets' names have in them.
        line: the number of the cell that the snapshot was made before.
        processes: of the dead one, that were ended.
        threads: that are gone.
        tasks: of its event loop, that are gone.
    """

    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    line: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    processes: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    tasks: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


FromRunner = Ready | Display | Clear | Failure | Ask | NoProgram | Done | Exited | Keeping | Revived

_TEXT_OR_BYTES: Final = frozenset({0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_any = msgspec.msgpack.Decoder()
_encoder = msgspec.msgpack.Encoder()
_from_runner = msgspec.msgpack.Decoder(FromRunner)
_to_runner: msgspec.msgpack.Decoder[ToRunner] = msgspec.msgpack.Decoder(ToRunner)
_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_hello = msgspec.msgpack.Decoder(Hello)


def encode(message: msgspec.Struct) -> bytes:
    """A message as MessagePack, without a length."""
    return _encoder.encode(message)


def encode_frame(message: msgspec.Struct) -> bytes:
    """A message as a frame: its length, then MessagePack.

    Raises:
        FrameError: longer than ``MAX_FRAME``.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return LENGTH.pack(len(body)) + body


def decode_request(packet: bytes) -> Request:
    """What a packet asks the launcher to do."""
    return _request.decode(packet)


def decode_hello(packet: bytes) -> Hello:
    """The launcher's greeting."""
    return _hello.decode(packet)


def decode_to_runner(body: bytes) -> ToRunner:
    """A frame's content, in the runner."""
    return _to_runner.decode(body)


def loads(raw: msgspec.Raw) -> Any:
    """A value that came undecoded.

    Raises:
        FrameError: malformed, or of too many objects.
    """
    kind = bytes(memoryview(raw)[:1])
    plain = kind and (0xA0 <= kind[0] <= 0xBF or kind[0] in _TEXT_OR_BYTES)  # noqa: PLR2004 - MessagePack's fixstr
    if not plain and len(memoryview(raw)) > MAX_OBJECTS:
        raise FrameError("a value of too many objects")
    try:
        return _any.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError, MemoryError):
        raise FrameError("a malformed value") from None


class FrameReader:
    """Cuts a runner's bytes into frames, and decodes them; for the owner's side.

    Attributes:
        limit: bytes of one frame, and so of memory.
        length: bytes of the frame that was given last.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.limit = MAX_SMALL_FRAME
        self.length = 0

    def feed(self, data: bytes) -> Iterator[FromRunner]:
        """Add bytes and give the frames that are complete; ``length`` is that of the last, in bytes.

        Raises:
            FrameError: malformed, too long or of unknown type; the channel is of no more use.
        """
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self.limit:
                raise FrameError(f"a frame of {length} bytes, over the limit of {self.limit}")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[LENGTH.size : end])
            del self._buffer[:end]
            try:
                message = _from_runner.decode(body)
            except (msgspec.MsgspecError, RecursionError, ValueError, MemoryError):
                # Not said how: the decoder's words would quote the frame's, and those are hostile.
                raise FrameError("a malformed frame") from None
            self.length = length
            yield message
