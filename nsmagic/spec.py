"""What a container should be: pure data, validated, no I/O.

A spec says what is wanted; whether this host can do it is the business of ``host`` and ``cgroups``.  This
module knows no other but ``errors``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from nsmagic.errors import SpecError

NAMESPACES: Final = ("user", "pid", "mount", "net", "uts", "ipc", "cgroup", "time")
"""Every kind of namespace, by the name that namespaces(7) gives it."""

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

DEFAULT_HOSTNAME: Final = "container"
DEFAULT_PIDS: Final = 256
DEFAULT_DISK: Final = GIB
DEFAULT_OUTPUT_LIMIT: Final = 16 * MIB

MAX_BYTES: Final = 1 << 60
MAX_SECONDS: Final = 10 * 365 * 86400.0
MIN_MEM: Final = 4 * MIB
MAX_PIDS: Final = 1 << 22  # the kernel's own PID_MAX_LIMIT
MAX_CPUS: Final = 4096.0
MIN_CPUS: Final = 0.01
MAX_UID: Final = 65535

_BYTES: Final = {
    "": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip
_SECONDS: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER: Final = re.compile(r"(\d{1,24}(?:\.\d{1,9})?)\s*([a-zA-Z]*)")
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTAINER_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_ALIASES: Final = {"mnt": "mount", "network": "net", "hostname": "uts"}

BindMode = Literal["ro", "rw", "cow"]
Network = Literal["none", "host"]
AtLimit = Literal["stop", "drop"]
Rich = Literal["safe", "trusted"]


def _shown(value: object) -> str:
    """A value as an error message quotes it: short, on one line."""
    text = str(value)
    most = 60
    return repr(text) if len(text) <= most else f"{text[:most]!r}… ({len(text)} characters)"


def _quantity(value: object, units: dict[str, float] | dict[str, int]) -> float | int | None:
    """A number with a unit, in the unit's base; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    match = _NUMBER.fullmatch(str(value).strip())
    unit = units.get(match[2].lower()) if match else None
    if not match or unit is None:
        return None
    return float(match[1]) * unit if "." in match[1] else int(match[1]) * unit


def parse_size(option: str, value: object, least: int = 1) -> int:
    """A size in bytes: ``134217728``, ``"128M"``, ``"1.5G"``; K, M, G are powers of 1024, KB, MB, GB of 1000.

    Raises:
        SpecError: not a size, below ``least``, or past 2**60.
    """
    size = _quantity(value, _BYTES)
    if size is None or math.isnan(size):
        raise SpecError(
            option, f"{_shown(value)} is not a size; write bytes, or a number with K, M or G, as in 128M"
        )
    if not least <= size <= MAX_BYTES:
        raise SpecError(option, f"{_shown(value)} is out of range; give {least} to {MAX_BYTES} bytes")
    return int(size)


def parse_swap(option: str, value: object) -> int:
    """Like ``parse_size``, and 0 is allowed."""
    return parse_size(option, value, least=0)


def parse_mem(option: str, value: object) -> int:
    """A memory limit in bytes, at least 4 MiB: below that nothing starts."""
    return parse_size(option, value, least=MIN_MEM)


def parse_duration(option: str, value: object) -> float:
    """A duration in seconds: ``10``, ``"1.5"``, ``"500ms"``, ``"2m"``, ``"1h"``.

    Raises:
        SpecError: not a duration, or not positive.
    """
    seconds = _quantity(value, _SECONDS)
    if seconds is None or not 0 < seconds <= MAX_SECONDS:
        raise SpecError(
            option,
            f"{_shown(value)} is not a duration; write seconds above 0, or a number with ms, s, m or h",
        )
    return float(seconds)


def parse_cpus(option: str, value: object) -> float:
    """A number of processors, such as ``0.5`` or ``2``; at least 0.01 and at most 4096."""
    cpus = _quantity(value, {"": 1})
    if cpus is None or not MIN_CPUS <= cpus <= MAX_CPUS:
        raise SpecError(
            option, f"{_shown(value)} is not a number of CPUs; write one from 0.01 to 4096, as in 0.5"
        )
    return float(cpus)


def parse_count(option: str, value: object) -> int:
    """A number of processes and threads, at least 1."""
    count = _quantity(value, {"": 1})
    if count is None or not 1 <= count <= MAX_PIDS or count != int(count):
        raise SpecError(
            option, f"{_shown(value)} is not a number of processes; write a whole number from 1 to {MAX_PIDS}"
        )
    return int(count)


def parse_hostname(option: str, value: object) -> str:
    """A host name of 1 to 64 letters, digits, dots and hyphens, see hostname(7)."""
    if not isinstance(value, str) or not _HOSTNAME.fullmatch(value):
        raise SpecError(
            option, f"{_shown(value)} is not a host name; use 1 to 64 letters, digits, dots and hyphens"
        )
    return value


def parse_user(option: str, value: object) -> int:
    """The uid that the payload sees itself as: ``root`` (0) or a number up to 65535."""
    uid = 0 if value == "root" else _quantity(value, {"": 1})
    if uid is None or not 0 <= uid <= MAX_UID or uid != int(uid):
        raise SpecError(option, f"{_shown(value)} is not a user; write root or a uid from 0 to {MAX_UID}")
    return int(uid)


def parse_variable(option: str, value: object) -> tuple[str, str]:
    """An environment variable ``KEY=VALUE``."""
    key, equals, text = str(value).partition("=")
    if not equals or not _VARIABLE.fullmatch(key) or "\0" in text:
        raise SpecError(option, f"{_shown(value)} is not KEY=VALUE with a name of letters, digits and _")
    return key, text


def parse_namespaces(option: str, value: object) -> frozenset[str]:
    """A set of namespaces: ``all``, ``uts,pid``, or all but some: ``all-net``, ``all-net-user``.

    Raises:
        SpecError: a name that is no namespace; the text lists those that are.
    """
    text = str(value).strip()
    whole = text == "all" or text.startswith("all-")
    words = text.split("-")[1:] if whole else text.split(",")
    chosen = frozenset(_ALIASES.get(word.strip(), word.strip()) for word in words)
    for name in sorted(chosen - frozenset(NAMESPACES)):
        raise SpecError(
            option, f"{_shown(name)} is not a namespace; choose from {', '.join(NAMESPACES)}, or all"
        )
    return frozenset(NAMESPACES) - chosen if whole else chosen


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that is shown in the container.

    Attributes:
        source: path on the host.
        target: absolute path in the container; empty for the same as ``source``.
        mode: ``ro`` read-only, ``rw`` read and write, ``cow`` copy-on-write (what is written stays inside).
    """

    source: str
    target: str = ""
    mode: BindMode = "ro"


def parse_bind(option: str, value: object) -> Bind:
    """``SRC[:DST][:ro|rw|cow]``; SRC may be relative or begin with ``~``; it is looked for elsewhere.

    Raises:
        SpecError: empty parts, too many of them, or an unknown mode.
    """
    if isinstance(value, Bind):
        return value
    parts = str(value).split(":")
    mode: BindMode = "ro"
    match parts[-1]:
        case "ro" | "rw" | "cow" as word if len(parts) > 1:
            mode = word
            parts.pop()
    source, target = parts[0], ":".join(parts[1:])
    if not source or ":" in target or "\0" in str(value):
        raise SpecError(option, f"{_shown(value)} is not SRC[:DST][:ro|rw|cow]")
    if len(parts) > 1 and (not target.startswith("/") or ".." in target.split("/")):
        raise SpecError(
            option, f"the place in the container, {_shown(target)}, must be absolute, without '..'"
        )
    return Bind(source, target, mode)


def parse_name(option: str, value: object) -> str:
    """A container's name: a letter, then letters, digits, ``_`` and ``-``, 32 at most."""
    if not isinstance(value, str) or not _CONTAINER_NAME.fullmatch(value):
        raise SpecError(
            option,
            f"{_shown(value)} is not a container's name; use a letter, then letters, digits, _ and -, "
            "32 at most",
        )
    return value


def hostname_of(name: str) -> str:
    """The host name of a container of this name, if nobody asks for another."""
    return name.replace("_", "-").rstrip("-") or DEFAULT_HOSTNAME


@dataclass(frozen=True)
class Join:
    """Which container is joined.

    Attributes:
        name: its name.
        kinds: which of its namespaces are shared with a new container; None to run in it as it is.
    """

    name: str
    kinds: frozenset[str] | None = None


def parse_join(option: str, value: object) -> Join:
    """``NAME``, to run in that container, or ``NAME:net,uts``, for a new one that shares those namespaces.

    Raises:
        SpecError: not a container's name, or one of the kinds is no namespace.
    """
    if isinstance(value, Join):
        return value
    name, colon, kinds = str(value).partition(":")
    parse_name(option, name)
    if not colon:
        return Join(name)
    chosen = parse_namespaces(option, kinds)
    return Join(name, chosen)


def parse_network(option: str, value: object) -> Network:
    """``none`` (a loopback of its own, no way out) or ``host`` (the host's own network)."""
    match value:
        case "none" | "host" as network:
            return network
    raise SpecError(option, f"{_shown(value)} is not a network; choose none or host")


def parse_rich(option: str, value: object) -> Rich:
    """``safe`` (rich output is filtered) or ``trusted`` (it is not)."""
    match value:
        case "safe" | "trusted" as rich:
            return rich
    raise SpecError(option, f"{_shown(value)} is not a kind of rich output; choose safe or trusted")


def parse_output_limit(option: str, value: object) -> tuple[int, AtLimit]:
    """``SIZE[:stop|drop]``: at that many bytes of output the job is stopped, or the rest is dropped."""
    if isinstance(value, tuple):
        return value
    size, colon, action = str(value).partition(":")
    match action if colon else "stop":
        case "stop" | "drop" as word:
            return parse_size(option, size), word
    raise SpecError(option, f"{_shown(action)} is not what can be done at the limit; choose stop or drop")


@dataclass(frozen=True)
class Image:
    """Another root file system: folders on this host, one over the other, and how its programs are to be run.

    Attributes:
        name: as people call it.
        layers: absolute paths of folders, the topmost first; they are only read.
        env: variables that it sets.
        workdir: absolute path inside where its programs start; empty for none of its own.
        command: what it runs where nobody names a program.
        notes: what of its wishes is not met.
    """

    name: str
    layers: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContainerSpec:
    """What one container should be.  Containers of equal specs are interchangeable while unused.

    Attributes:
        namespaces: those asked for; ``user`` is added where it takes one to make the others.
        net: ``none`` or ``host``.
        mem: bytes of memory, or None for no limit.
        swap: bytes of swap on top of ``mem``.
        cpus: processors' worth of time, or None for no limit.
        pids: processes and threads.
        disk: bytes that may be written to all of the container's own file systems together.
        binds: what else of the host is shown, absolute paths.
        workdir: absolute path of the working directory, shown copy-on-write at the same place; empty for
            an own empty one.
        hostname: the name that the container sees itself by.
        user: uid inside, or None for the caller's own (1000 where the caller is root).
        best_effort: run with less isolation where the host cannot do all that is asked.
        sockets: absolute path of a folder of its own, where its payload listens and the owner connects to
            (``Container.sockets``); empty for none.  Nothing in it counts as a change.
        name: what it is kept under, to be joined by others; empty for one that ends with its job.
        join: the container whose namespaces it shares, beside those of its own.
        image: the root file system, copy-on-write; None for the host's programs, read-only.
        python: in an image, show the folders of the owner's Python too, so that cells can run.
        snapshots: whether its payload keeps a snapshot of itself, which takes over when it dies.
    """

    namespaces: frozenset[str] = frozenset(NAMESPACES)
    net: Network = "none"
    mem: int | None = None
    swap: int = 0
    cpus: float | None = None
    pids: int = DEFAULT_PIDS
    disk: int = DEFAULT_DISK
    binds: tuple[Bind, ...] = ()
    workdir: str = ""
    hostname: str = DEFAULT_HOSTNAME
    user: int | None = None
    best_effort: bool = False
    sockets: str = ""
    name: str = ""
    join: Join | None = None
    image: Image | None = None
    python: bool = True
    snapshots: bool = False

    @property
    def joined(self) -> frozenset[str]:
        """The namespaces that it shares with the one that it joins; none where it is no new one."""
        return (self.join and self.join.kinds) or frozenset()

    def __post_init__(self) -> None:
        """Check what concerns more than one field."""
        self._check_join()
        if "net" in self.namespaces and self.net == "host":
            raise SpecError(
                "--net", "host means no network namespace, but --ns asks for one; leave one of them out"
            )
        if "net" not in self.namespaces | self.joined and self.net == "none":
            raise SpecError("--net", "none needs a network namespace, which --ns leaves out; say --net host")
        if self.binds and "mount" not in self.namespaces:
            raise SpecError("--bind", "needs a mount namespace, which --ns leaves out")
        if self.image and "mount" not in self.namespaces:
            raise SpecError("--image", "needs a mount namespace, which --ns leaves out; so does --rootfs")
        targets = [bind.target for bind in self.binds]
        for target in targets:
            if targets.count(target) > 1:
                raise SpecError("--bind", f"{_shown(target)} is the place of two binds")

    @property
    def joined_text(self) -> str:
        """What it shares, in words; empty for nothing."""
        if self.join is None or not self.joined:
            return ""
        return f"{', '.join(kind for kind in NAMESPACES if kind in self.joined)} of {self.join.name}"

    def _check_join(self) -> None:
        """What is shared is as it is: nothing of it can be asked for."""
        for kind in NAMESPACES:
            if kind in self.namespaces & self.joined:
                raise SpecError(
                    "--join",
                    f"shares the {kind} namespace, but --ns asks for a new one; leave one of them out",
                )
        asked = {
            "uts": ("--hostname", self.hostname != DEFAULT_HOSTNAME),
            "user": ("--user", self.user is not None),
            "mount": ("--disk", self.disk != DEFAULT_DISK),
            "net": ("--net", self.net != "none"),
        }
        for kind, (option, given) in asked.items():
            if kind in self.joined and given:
                raise SpecError(
                    option, f"is settled already where --join shares the {kind} namespace; leave it out"
                )
        if self.name and self.join is not None and self.join.kinds is None:
            raise SpecError(
                "--name",
                f"{self.join.name} has its name already; for a new one say which namespaces it shares",
            )


@dataclass(frozen=True)
class JobSpec:
    """One thing to run in a container.

    Attributes:
        kind: ``cell`` (Python with a cell's semantics), ``script`` (Python as ``python FILE`` runs it),
            ``program`` (any argv) or ``kernel`` (a Jupyter kernel that listens on the container's sockets).
        code: Python source of a cell or script; of a kernel, its connection file's text.
        argv: the program and its arguments; of a script, its ``sys.argv``; of a kernel, the folder of its
            sockets and then its program's words, none for an ipykernel.
        env: variables added to the container's own.
        timeout: seconds of wall clock, or None.
        output_limit: bytes of output, streams and rich together.
        at_output_limit: ``stop`` the job there or ``drop`` the rest.
        fresh_exec: run Python in a new interpreter rather than a clone of the launcher's.
        rich: ``safe`` or ``trusted``.
        outputs: names of variables to take out of a cell.
        execution_count: the number that a cell shows in its tracebacks.
    """

    kind: Literal["cell", "script", "program", "kernel"]
    code: str = ""
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    timeout: float | None = None
    output_limit: int = DEFAULT_OUTPUT_LIMIT
    at_output_limit: AtLimit = "stop"
    fresh_exec: bool = False
    rich: Rich = "safe"
    outputs: tuple[str, ...] = ()
    execution_count: int = 1
