"""What a container sees: the list of things that are put into its root.

Read-only from the host: programs and libraries, a few files of ``/etc``, the interpreter's own folders.
Its own: ``/tmp``, ``/dev/shm``, a home folder, ``/proc``, a small ``/dev``.  Copy-on-write: the working
directory.  **Not there**: home folders, Jupyter's runtime folder, sockets, credentials, unless they
are bound.  This module decides, the native runtime mounts.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nsmagic.errors import SpecError
from nsmagic.launcher.frames import Entry
from nsmagic.native import kinds
from nsmagic.spec import Bind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsmagic.spec import ContainerSpec, Image

_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    "alternatives", "ca-certificates", "crypto-policies", "fonts", "host.conf", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "localtime", "mime.types", "os-release", "pki", "protocols", "R", "services", "ssl",
    "terminfo", "timezone",
)  # fmt: skip
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_PACKAGE_FOLDERS: Final = ("site-packages", "dist-packages")
_OWN_FOLDERS: Final = ("/tmp", "/dev", "/dev/shm", "/proc", "/etc", "/run", "/var")  # noqa: S108 - the container's own
_LAB_FOLDER: Final = "/run/lab"
_OURS: Final = str(Path(__file__).resolve().parent)
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()
_BYTES_PER_INODE: Final = 4096
_MIN_INODES: Final = 4096
_MAX_INODES: Final = 1 << 18


@dataclass(frozen=True)
class Identity:
    """Who the payload is.

    Attributes:
        uid: as seen inside.
        gid: as seen inside.
        host_uid: what that is on the host.
        host_gid: what that is on the host.
        as_root: whether the host process is root.
    """

    uid: int
    gid: int
    host_uid: int
    host_gid: int
    as_root: bool

    @property
    def name(self) -> str:
        """The user's name inside."""
        return "root" if self.uid == 0 else "user"

    @property
    def home(self) -> str:
        """The user's home folder inside."""
        return "/root" if self.uid == 0 else "/home/user"


@dataclass(frozen=True)
class Names:
    """How a container learns the addresses of others; see hosts(5), resolv.conf(5).

    Attributes:
        hosts_folder: the host's folder in which somebody keeps a file ``hosts``; empty for an own one.
        resolv_conf: the text of its resolv.conf; empty for none.
    """

    hosts_folder: str = ""
    resolv_conf: str = ""


@dataclass(frozen=True)
class WritableFolder:
    """A folder of the scratch file system where the container may write.

    Attributes:
        target: its place in the container.
        scratch: its place in the scratch, relative.
        lower: the host's folder below a copy-on-write one, an image's layers below the root, or None.
    """

    target: str
    scratch: str
    lower: str | tuple[str, ...] | None


@dataclass
class Root:
    """A container's root: what to put into it, and what may be said about it.

    Attributes:
        entries: for the native runtime, in order.
        writable: the folders whose changes are listed, the working directory first.
        workdir: where the payload starts.
        disk_inodes: files that may be made.
        sockets: the place in the scratch of the folder where the payload listens; empty for none.
        places: where something is mounted or was made: none of that is the job's doing.
        made: folders of an image that were made if they were not there; what lies in them may be the job's.
        notes: what a user should know about it.
    """

    entries: list[Entry]
    writable: list[WritableFolder] = field(default_factory=list)
    sockets: str = ""
    places: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    workdir: str = "/"
    disk_inodes: int = _MAX_INODES
    notes: list[str] = field(default_factory=list)


def resolve_bind(option: str, bind: Bind, base: str) -> Bind:
    """Make a bind's paths absolute, and check that the source is there.

    Args:
        option: its name for the message.
        bind: as the user gave it.
        base: the folder that a relative source starts from.

    Raises:
        SpecError: there is no such file or folder.
    """
    source = os.path.realpath(Path(base, Path(bind.source).expanduser()))
    if not os.path.lexists(source):
        raise SpecError(option, f"there is no {source!r} on this host")
    if bind.mode == "cow" and not Path(source).is_dir():
        raise SpecError(option, f"{source!r} is a file; copy-on-write takes a folder, a file can be ro or rw")
    target = bind.target or os.path.abspath(Path(base, Path(bind.source).expanduser()))  # noqa: PTH100 - keeps links
    target = os.path.normpath(target)
    if target == "/":
        raise SpecError(option, "the container's root itself cannot be the place of a bind")
    return Bind(source, target, bind.mode)


def resolve_workdir(option: str, workdir: str) -> str:
    """The working directory as an absolute path without links.

    Raises:
        SpecError: there is no such folder.
    """
    try:
        path = os.path.realpath(Path(workdir).expanduser())
        is_folder = Path(path).is_dir()
    except (OSError, RuntimeError, ValueError):
        is_folder = False
    if not is_folder:
        raise SpecError(option, f"there is no folder {workdir!r} on this host")
    return path


def shows_home(folder: str) -> bool:
    """Whether a folder is the user's home, or holds it: then it is not shown unless it is bound by name."""
    home = os.path.realpath(Path.home())
    return folder in {"/", home} or home.startswith(folder.rstrip("/") + "/")


def is_programs(folder: str) -> bool:
    """Whether a folder is, or lies in, one that programs and their settings are in."""
    return any(folder == other or folder.startswith(f"{other}/") for other in (*_PROGRAMS, "/etc"))


@cache
def interpreter_folders(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that Python and its packages lie in, without those that lie in others of them or in /usr.

    Of ``sys.path`` that is what holds installed packages, or was named in PYTHONPATH; the folder of the
    owner's own script is the owner's own affair.
    """
    named = os.environ.get("PYTHONPATH", "").split(":")
    packages = [path for path in paths if Path(path).name in _PACKAGE_FOLDERS or path in named]
    wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *packages, _OURS]
    folders = {os.path.realpath(path) for path in wanted if path} | {path for path in wanted if path}
    kept: list[str] = []
    for folder in sorted(folders):
        below_other = any(folder == other or folder.startswith(other + "/") for other in ("/usr", *kept))
        too_much = shows_home(folder) or folder in _OWN_FOLDERS
        if not below_other and not too_much and Path(folder).exists():
            kept.append(folder)
    return tuple(kept)


@cache
def library_folders(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that Python's modules lie in, and nothing beside them, for a root that has other programs.

    Those of ``sys.path``, without those that lie in others of them; the folder of the owner's own script is
    the owner's own affair.
    """
    import sysconfig  # noqa: PLC0415 - only images need it

    library = sysconfig.get_paths()
    named = os.environ.get("PYTHONPATH", "").split(":")
    wanted = {library["stdlib"], library["platstdlib"], _OURS}
    wanted |= {path for path in paths if Path(path).name in _PACKAGE_FOLDERS or path in named}
    kept: list[str] = []
    for folder in sorted(wanted | {os.path.realpath(path) for path in wanted}):
        too_much = shows_home(folder) or folder in _OWN_FOLDERS
        if (
            not too_much
            and Path(folder).exists()
            and not any(folder.startswith(f"{other}/") for other in kept)
        ):
            kept.append(folder)
    return tuple(kept)


def _bind(
    source: str, target: str | None = None, flags: int = 0, owner: tuple[int, int] | None = None
) -> Entry:
    return Entry(kinds.BIND, os.fsencode(target or source), os.fsencode(source), flags, owner=owner)


def _text(path: bytes) -> str:
    """As os.fsdecode() does it, which is slow for half a hundred entries."""
    return path.decode(_ENCODING, _ERRORS)


def _private(target: str, mode: int) -> Entry:
    return Entry(kinds.PRIVATE, os.fsencode(target), mode=mode)


def _file(target: str, text: str) -> Entry:
    return Entry(kinds.FILE, target.encode(), text.encode(), mode=0o644)


def _link(target: str, text: str) -> Entry:
    return Entry(kinds.SYMLINK, target.encode(), text.encode())


@cache
def programs() -> list[Entry]:
    """The host's folders of programs and libraries."""
    entries = []
    for path in _PROGRAMS:
        if Path(path).is_symlink():
            entries.append(_link(path, os.readlink(path)))  # noqa: PTH115 - as it is written
        elif Path(path).is_dir():
            entries.append(_bind(path))
    return entries


@cache
def host_etc() -> list[Entry]:
    """What of the host's /etc is shown; looked up once, so each may be gone by the time it is mounted."""
    return [
        _bind(os.path.realpath(f"/etc/{name}"), f"/etc/{name}", kinds.OPTIONAL)
        for name in _ETC
        if Path("/etc", name).exists()
    ]


def _etc(identity: Identity, spec: ContainerSpec, joined: str, names: Names) -> list[Entry]:
    entries = list(host_etc())
    passwd = f"{identity.name}:x:{identity.uid}:{identity.gid}::{identity.home}:/bin/sh\n"
    passwd += "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
    entries += [
        _file("/etc/passwd", passwd),
        _file("/etc/group", f"{identity.name}:x:{identity.gid}:\nnogroup:x:65534:\n"),
        _file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ]
    return entries + _names(spec, joined, names)


def _names(spec: ContainerSpec, joined: str, names: Names) -> list[Entry]:
    """The files of /etc that say what hosts are called."""
    hostname = spec.hostname if "uts" in spec.namespaces else joined or os.uname().nodename
    entries = [
        _file("/etc/hostname", hostname + "\n"),
        _link("/etc/hosts", f"{_LAB_FOLDER}/hosts")
        if names.hosts_folder
        else _file("/etc/hosts", f"127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"),
    ]
    if spec.net == "host" and Path("/etc/resolv.conf").exists():
        entries.append(_bind(os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"))
    if names.resolv_conf:
        entries.append(_file("/etc/resolv.conf", names.resolv_conf))
    return entries


def _kernel(spec: ContainerSpec) -> list[Entry]:
    entries = []
    if "pid" in spec.namespaces | spec.joined:
        entries.append(Entry(kinds.PROC, b"/proc"))
    else:
        # A procfs shows the PID namespace of its maker; without one of our own it is the host's.
        entries.append(_bind("/proc"))
    # The devices' file names are the host's, their numbers too; a container makes none of its own.
    entries += [_bind(f"/dev/{name}", flags=kinds.DEVICE) for name in DEVICES]
    entries += [
        Entry(kinds.PTS, b"/dev/pts"),
        _link("/dev/ptmx", "pts/ptmx"),
        _link("/dev/fd", "/proc/self/fd"),
        _link("/dev/stdin", "/proc/self/fd/0"),
        _link("/dev/stdout", "/proc/self/fd/1"),
        _link("/dev/stderr", "/proc/self/fd/2"),
    ]
    return entries


def _owner(path: str, identity: Identity) -> tuple[int, int] | None:
    """For root: whose files of a bind shall be the payload's; None where they are."""
    if not identity.as_root:
        return None
    status = _look_at(path)
    return None if status.st_uid == identity.host_uid else (status.st_uid, status.st_gid)


def _look_at(path: str) -> os.stat_result:
    """What lies there now: it was there when the spec was made.

    Raises:
        SpecError: it is there no longer, or may not be looked at.
    """
    try:
        return Path(path).stat()
    except OSError as error:
        raise SpecError("--bind", f"{path!r} cannot be looked at: {error.strerror}") from None


def owners(folders: Iterable[str]) -> set[int]:
    """The uids that folders belong to."""
    return {Path(folder).stat().st_uid for folder in folders}


def _user_binds(spec: ContainerSpec, identity: Identity) -> list[Entry]:
    entries = []
    for bind in spec.binds:
        owner = _owner(bind.source, identity)
        if bind.mode == "cow":
            source, target = os.fsencode(bind.source), os.fsencode(bind.target)
            entries.append(Entry(kinds.COW, target, source, owner=owner))
        else:
            is_socket = stat.S_ISSOCK(_look_at(bind.source).st_mode)
            writable = kinds.WRITABLE if bind.mode == "rw" or is_socket else 0
            entries.append(_bind(bind.source, bind.target, writable, owner))
    return entries


def _workdir(spec: ContainerSpec, identity: Identity, root: Root) -> list[Entry]:
    if spec.workdir and any(bind.target == spec.workdir for bind in spec.binds):
        root.workdir = spec.workdir
        return []
    if spec.workdir and not shows_home(spec.workdir):
        root.workdir = spec.workdir
        path = os.fsencode(spec.workdir)
        return [Entry(kinds.COW, path, path, owner=_owner(spec.workdir, identity))]
    if spec.workdir:
        root.notes.append(
            f"the working directory {spec.workdir} is or holds your home folder, so it is not shown inside; "
            "choose a folder below it with -w, or bind what is needed"
        )
    root.workdir = identity.home
    return []


def build_root(
    spec: ContainerSpec,
    identity: Identity,
    python_path: tuple[str, ...],
    hostname: str = "",
    names: Names | None = None,
) -> Root:
    """Everything that is put into a container's root, in the order in which it is mounted.

    Args:
        spec: what was asked for; its binds and its working directory are absolute.
        identity: who the payload is.
        python_path: the owner's ``sys.path``.
        hostname: the name of the host, if it is another container's.
        names: of a network that others have built.
    """
    names = names or Names()
    root = Root([], disk_inodes=min(max(spec.disk // _BYTES_PER_INODE, _MIN_INODES), _MAX_INODES))
    if "mount" not in spec.namespaces:
        root.workdir = spec.workdir or "/"
        return root

    # Own folders come first, binds below them after: a working directory in /tmp would else be hidden.
    made_by = _of_image if spec.image else _of_host
    entries = made_by(spec, identity, hostname, names)
    workdir = _workdir(spec, identity, root)
    if spec.image:
        workdir += _image_workdir(spec.image, root)
    shown = [os.fsdecode(entry.target) for entry in workdir] + [bind.target for bind in spec.binds]
    python = interpreter_folders(python_path) if not spec.image else ()
    if spec.image and spec.python:
        python = library_folders(python_path)
    entries += [
        _bind(os.path.realpath(folder), folder)
        for folder in python
        if not any(folder == other or folder.startswith(other + "/") for other in shown)
    ]
    mine = [*workdir, *_user_binds(spec, identity)]
    entries += sorted(mine, key=lambda entry: entry.target.count(b"/"))
    root.entries = entries
    root.writable = _writable(entries, root.workdir)
    for folder in [folder for folder in root.writable if folder.target == spec.sockets]:
        root.sockets = folder.scratch
        root.writable.remove(folder)
    root.places = [_text(entry.target) for entry in entries if entry.kind != kinds.LAYER]
    if spec.image:
        root.made = [_text(entry.target) for entry in entries if entry.kind == kinds.DIRECTORY]
        root.places = [place for place in root.places if place not in root.made]
    return root


def _of_host(spec: ContainerSpec, identity: Identity, joined: str, names: Names) -> list[Entry]:
    """The host's programs, and folders of its own."""
    return [
        *programs(),
        *_etc(identity, spec, joined, names),
        _private("/tmp", 0o1777),  # noqa: S108 - the container's own
        _link("/var/tmp", "/tmp"),  # noqa: S108 - likewise
        Entry(kinds.DIRECTORY, b"/run"),
        *_lab(names),
        _private("/dev/shm", 0o1777),  # noqa: S108 - likewise
        _private(identity.home, 0o700),
        *([_private(spec.sockets, 0o700)] if spec.sockets else []),
        *_kernel(spec),
    ]


def _lab(names: Names) -> list[Entry]:
    """A folder, not the file: the file is replaced whenever somebody comes or goes."""
    return [_bind(names.hosts_folder, _LAB_FOLDER)] if names.hosts_folder else []


def _of_image(spec: ContainerSpec, identity: Identity, joined: str, names: Names) -> list[Entry]:
    """An image's programs; of the host only its names, and what a kernel gives to every container.

    Folders of its own hide the image's /tmp and /dev: what lies there was made on another machine.
    """
    layers = spec.image.layers if spec.image else ()
    named = _names(spec, joined, names)
    return [
        *(Entry(kinds.LAYER, b"/", os.fsencode(layer), owner=_owner(layer, identity)) for layer in layers),
        _private("/tmp", 0o1777),  # noqa: S108 - the container's own
        _private("/dev", 0o755),
        _private("/dev/shm", 0o1777),  # noqa: S108 - likewise
        Entry(kinds.DIRECTORY, b"/root") if identity.uid == 0 else _private(identity.home, 0o700),
        *([_private(spec.sockets, 0o700)] if spec.sockets else []),
        *_kernel(spec),
        *_lab(names),
        *(msgspec.structs.replace(entry, flags=entry.flags | kinds.REPLACE) for entry in named),
    ]


def _image_workdir(image: Image, root: Root) -> list[Entry]:
    """Where the image's programs want to start: made, if the image has it not."""
    root.notes += image.notes
    if not image.workdir:
        return []
    root.workdir = image.workdir
    return [Entry(kinds.DIRECTORY, os.fsencode(image.workdir))]


def _writable(entries: list[Entry], workdir: str) -> list[WritableFolder]:
    """Where mount.c puts the writable folders: it numbers them by their entry."""
    folders = []
    for number, entry in enumerate(entries):
        if entry.kind not in {kinds.COW, kinds.PRIVATE}:
            continue
        target = _text(entry.target)
        if entry.kind == kinds.COW:
            folders.append(WritableFolder(target, f"cow{number}/upper", os.fsdecode(entry.source)))
        elif entry.kind == kinds.PRIVATE and target not in {"/dev", "/dev/shm"}:  # noqa: S108 - its own
            folders.append(WritableFolder(target, f"private{number}", None))
    layers = tuple(os.fsdecode(entry.source) for entry in entries if entry.kind == kinds.LAYER)
    if layers:
        folders.append(WritableFolder("/", "image/upper", layers))
    return sorted(folders, key=lambda folder: folder.target != workdir)
