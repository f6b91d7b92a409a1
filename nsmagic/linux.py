"""The kernel's own calls, one thin function each, for whoever wants to see what a container is made of.

>>> from nsmagic.linux import *
>>> unshare(CLONE_NEWUSER | CLONE_NEWUTS)
>>> sethostname("box")

Nothing of nsmagic's own isolation is used here, and nothing is undone: what a function does, it does to the
process that calls it.  Do not call these in a notebook's kernel; ``%%scratch`` gives you a process for it.

Each function is named like the system call and makes just that one, through syscall(2), so that what
strace(1) shows is what was written.  That is why this file uses ctypes, from the standard library, and not
the package's C extension: the number of a call, its arguments and its errno are all there to be read, and a
student can copy a function and change it.  What fails raises ``LinuxError``, an ``OSError`` with the call,
the errno and a **hint**: the likely reason and the way on.

Works on x86_64 and aarch64.  It can be imported anywhere; elsewhere each call says that it cannot be made.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import signal
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from nsmagic import linux_constants, linux_hints
from nsmagic.errors import NsmagicError
from nsmagic.linux_constants import *  # noqa: F403 - a manual page's names, all of them
from nsmagic.linux_constants import Capability, Clone, Mount, Prctl, Seccomp, SeccompFlag, Unmount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from enum import IntFlag

__all__ = [  # noqa: PLE0604 - the constants are a list of texts, too
    *linux_constants.__all__,
    "Capabilities",
    "Instruction",
    "LinuxError",
    "capget",
    "capset",
    "chroot",
    "clone3",
    "deny_setgroups",
    "fork",
    "getns",
    "mount",
    "pivot_root",
    "prctl",
    "seccomp",
    "sethostname",
    "setns",
    "umount2",
    "unshare",
    "write_id_map",
]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_NUMBERS: Final = {
    "x86_64": {
        "capget": 125, "capset": 126, "chroot": 161, "clone3": 435, "mount": 165, "pivot_root": 155,
        "prctl": 157, "seccomp": 317, "sethostname": 170, "setns": 308, "umount2": 166, "unshare": 272,
    },
    "aarch64": {
        "capget": 90, "capset": 91, "chroot": 51, "clone3": 435, "mount": 40, "pivot_root": 41,
        "prctl": 167, "seccomp": 277, "sethostname": 161, "setns": 268, "umount2": 39, "unshare": 97,
    },
}  # fmt: skip
"""The numbers of the calls, which differ from machine to machine: syscalls(2), asm/unistd.h."""


# ---- errors ------------------------------------------------------------------------------


class LinuxError(OSError):
    """A system call failed.

    Where Python has a class of its own for the errno, the error is one of that class too, so that
    ``except PermissionError`` works.

    Attributes:
        errno, strerror: as of every ``OSError``.
        call: the call with its arguments by name.
        hint: the likely reason, and what to do; may be empty.
    """

    def __init__(self, error: int, call: str, hint: str = "") -> None:
        super().__init__(error, os.strerror(error))
        self.call = call
        self.hint = hint

    def __str__(self) -> str:
        """The call, the errno by name and in words, and the hint."""
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        return f"{self.call}: {name} ({self.strerror})" + (f". Hint: {self.hint}." if self.hint else "")


class _PermissionError(LinuxError, PermissionError):
    """EPERM and EACCES."""


class _FileNotFoundError(LinuxError, FileNotFoundError):
    """ENOENT."""


class _NotADirectoryError(LinuxError, NotADirectoryError):
    """ENOTDIR."""


class _ProcessLookupError(LinuxError, ProcessLookupError):
    """ESRCH."""


class _BlockingIOError(LinuxError, BlockingIOError):
    """EAGAIN."""


_CLASSES: Final[dict[int, type[LinuxError]]] = {
    errno.EPERM: _PermissionError,
    errno.EACCES: _PermissionError,
    errno.ENOENT: _FileNotFoundError,
    errno.ENOTDIR: _NotADirectoryError,
    errno.ESRCH: _ProcessLookupError,
    errno.EAGAIN: _BlockingIOError,
}
for _class in _CLASSES.values():
    _class.__name__ = _class.__qualname__ = "LinuxError"  # what a traceback calls it


def _error(failure: linux_hints.Failure, call: str) -> LinuxError:
    return _CLASSES.get(failure.error, LinuxError)(failure.error, call, linux_hints.hint(failure))


# ---- syscall(2) --------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _syscall(*, holding_the_interpreter: bool = False) -> ctypes._NamedFuncPointer:
    """The C library's syscall(2).  Only a fork must not let go of the interpreter around it."""
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        raise NsmagicError(
            "nsmagic.linux makes system calls of Linux on x86_64 or aarch64, and this is "
            f"{platform.system()} on {platform.machine()}. Use Docker, WSL2, Codespaces or Binder."
        )
    load = ctypes.PyDLL if holding_the_interpreter else ctypes.CDLL
    function = load(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def _number(name: str) -> ctypes.c_long:
    return ctypes.c_long(_NUMBERS[platform.machine()][name])


def _word(value: object) -> object:
    """An argument as a whole machine word: syscall(2) is variadic, and a C int leaves half of it unset."""
    return ctypes.c_ulong(value) if isinstance(value, int) else value


def _call(
    name: str, *arguments: object, shown: str, flags: int = 0, paths: tuple[bytes, ...] = (), kind: str = ""
) -> int:
    """Make one system call.

    Args:
        name: the call's.
        arguments: numbers, bytes (as a pointer to them), pointers, None for a null pointer.
        shown: the arguments by name, for the error's text.
        flags: for the hint.
        paths: likewise.
        kind: likewise.

    Raises:
        LinuxError: the kernel's answer.
    """
    syscall = _syscall()
    result = int(syscall(_number(name), *map(_word, arguments)))
    if result == -1:
        failure = linux_hints.Failure(name, ctypes.get_errno(), flags, paths, _effective(), kind)
        raise _error(failure, f"{name}({shown})")
    return result


def _path(path: Path) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError(f"a path cannot hold a zero byte: {path!r}")
    return encoded


def _text(text: str | None) -> bytes | None:
    return None if text is None else _path(text)


def _names(kind: type[IntFlag], value: int) -> str:
    """Flags as one writes them: ``CLONE_NEWUTS|CLONE_NEWNS``."""
    known = [member for member in kind if value & member]
    rest = value & ~sum(known)
    return "|".join([*(str(member.name) for member in known), *([hex(rest)] if rest else [])]) or "0"


# ---- namespaces --------------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Move the calling process out of namespaces that it shares, into new ones of its own.

    A new PID namespace (``CLONE_NEWPID``) or time namespace is for the children to come; the caller stays.

    Args:
        flags: ``CLONE_NEWUSER``, ``CLONE_NEWNS`` and so on, joined by ``|``.

    Raises:
        LinuxError: EINVAL (several threads; a second CLONE_NEWPID), EPERM (no CAP_SYS_ADMIN), ENOSPC (a
            limit).

    See unshare(2), namespaces(7), user_namespaces(7).
    """
    _call("unshare", flags, shown=_names(Clone, flags), flags=flags)


def setns(fd: int, nstype: int = 0) -> None:
    """Enter another process' namespace.

    Args:
        fd: a descriptor of ``/proc/PID/ns/KIND``, or a pidfd.
        nstype: which kind it must be; with a pidfd, which namespaces to enter.

    Raises:
        LinuxError: EINVAL (wrong kind; several threads), EPERM (no CAP_SYS_ADMIN in the owning user
            namespace).

    See setns(2), pidfd_open(2).
    """
    _call("setns", fd, nstype, shown=f"fd={fd}, nstype={_names(Clone, nstype)}", flags=nstype)


def getns(pid: int | Literal["self"] = "self") -> dict[str, int]:
    """The namespaces of a process, by kind: the inode numbers that its links show.

    Two processes are in the same namespace exactly if the numbers are equal.

    Raises:
        OSError: there is no such process, or it is another user's.

    See namespaces(7), "The /proc/pid/ns/ directory".
    """
    folder = f"/proc/{pid}/ns"
    found = {}
    for kind in sorted(os.listdir(folder)):  # noqa: PTH208 - names only
        try:
            found[kind] = os.stat(f"{folder}/{kind}").st_ino  # noqa: PTH116 - no path to speak of
        except FileNotFoundError:
            if kind != "pid_for_children":  # after unshare it is not there until the first child is born
                raise
    return found


class _CloneArguments(ctypes.Structure):
    """``struct clone_args``: clone(2)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


def clone3(flags: int = 0, *, exit_signal: int = signal.SIGCHLD, cgroup: int | None = None) -> int:
    """Make a child process that is born in new namespaces: fork(2) and unshare(2) in one step.

    Call it in a process that has a single thread.  End the child with ``os._exit``.

    Args:
        flags: ``CLONE_NEW…`` flags.
        exit_signal: what the parent gets when the child ends.
        cgroup: a descriptor of a cgroup v2 directory, in which the child is born.

    Returns:
        the child's pid, and 0 in the child.

    Raises:
        LinuxError: as ``unshare``; ENOMEM (PID 1 of the children's namespace has ended), EAGAIN (a limit),
            ENOSYS (a container around us hides the call).
        ValueError: a flag that makes parent and child share memory or files, which no Python survives.

    See clone(2), namespaces(7).
    """
    allowed = sum(flag for flag in Clone if flag.name and flag.name.startswith("CLONE_NEW"))
    if flags & ~allowed:
        raise ValueError(f"clone3 takes CLONE_NEW… flags, not {_names(Clone, flags & ~allowed)}")
    if cgroup is not None:
        flags |= Clone.CLONE_INTO_CGROUP
    arguments = _CloneArguments(flags=flags, exit_signal=exit_signal, cgroup=cgroup or 0)
    syscall, number = _syscall(holding_the_interpreter=True), _number("clone3")
    pointer, size = ctypes.byref(arguments), ctypes.c_ulong(ctypes.sizeof(arguments))
    # CPython must be told that this is a fork: its locks and its idea of threads are the parent's.
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(syscall(number, pointer, size))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        failure = linux_hints.Failure("clone3", error, flags, effective=_effective())
        raise _error(failure, f"clone3({_names(Clone, flags)})")
    return pid


def fork() -> int:
    """Make a child process; ``os.fork`` with a hint where it fails.

    Returns:
        the child's pid, and 0 in the child.

    Raises:
        LinuxError: ENOMEM (PID 1 of the children's PID namespace has ended), EAGAIN (a limit).

    See fork(2), pid_namespaces(7).
    """
    try:
        return os.fork()
    except OSError as error:
        raise _error(linux_hints.Failure("fork", error.errno or 0), "fork()") from None


def write_id_map(
    pid: int | Literal["self"], kind: Literal["uid", "gid"], ranges: Iterable[tuple[int, int, int]]
) -> None:
    """Say who the ids in a process' user namespace are outside; once for uids, once for gids.

    Args:
        pid: a process in the user namespace.
        kind: which map.
        ranges: (inside, outside, count) each.  ``[(0, os.getuid(), 1)]``, taken *before* the unshare, makes
            the caller root.

    Raises:
        LinuxError: EPERM (written already; setgroups not denied; ids that are not the writer's), EACCES
            (not our process; AppArmor), EINVAL (overlaps).

    See user_namespaces(7), "User and group ID mappings".
    """
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)
    shown = f"/proc/{pid}/{kind}_map, {text.strip()!r}".replace("\\n", "; ")
    _write("write_id_map", f"/proc/{pid}/{kind}_map", text, shown, kind=kind, pid=str(pid))


def deny_setgroups(pid: int | Literal["self"]) -> None:
    """Forbid setgroups(2) in a process' user namespace, without which an ordinary user may write no gid map.

    A group can be a means to *refuse* somebody a file; who could leave a group could get at that file.

    Raises:
        LinuxError: EPERM (the gid map is written already), EACCES (not our process).

    See user_namespaces(7), "The /proc/pid/setgroups file".
    """
    path = f"/proc/{pid}/setgroups"
    _write("deny_setgroups", path, "deny", path, pid=str(pid))


def _write(name: str, path: str, text: str, shown: str, *, kind: str = "", pid: str) -> None:
    """Write to one of the kernel's files, in one write(2) as it must be."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        failure = linux_hints.Failure(name, error.errno or 0, kind=kind, pid=pid)
        raise _error(failure, f"{name}({shown})") from None


# ---- what a process sees --------------------------------------------------------------------


def mount(
    source: Path | None, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """Mount a file system, or change a mount.

    Args:
        source: what to mount: a folder or file with ``MS_BIND``, else what the file system takes, such as
            ``"none"``.
        target: on which folder or file.
        fstype: ``"tmpfs"``, ``"proc"``, ``"overlay"`` …; None for a bind mount or a change.
        flags: ``MS_BIND | MS_REC``, ``MS_REC | MS_PRIVATE``, ``MS_REMOUNT | MS_RDONLY`` …
        data: the file system's own options, such as ``"size=1M"``.

    Raises:
        LinuxError: EPERM (no CAP_SYS_ADMIN in the user namespace that owns the mount namespace; a file system
            that is not for user namespaces), EINVAL, EBUSY, ENOENT, ENODEV (unknown file system).

    See mount(2), mount_namespaces(7).
    """
    shown = f"{source!s}, {target!s}, {fstype}, {_names(Mount, flags)}, {data}"
    paths = (_path(target), *([_path(source)] if source is not None and flags & Mount.MS_BIND else []))
    _call(
        "mount", None if source is None else _path(source), paths[0], _text(fstype), flags, _text(data),
        shown=shown, flags=flags, paths=paths, kind=fstype or "",
    )  # fmt: skip


def umount2(target: Path, flags: int = 0) -> None:
    """Unmount what was mounted last on a path.

    Args:
        target: the mount point.
        flags: ``MNT_DETACH`` (out of sight now, gone when nobody uses it), ``MNT_FORCE`` …

    Raises:
        LinuxError: EINVAL (not a mount point, or a locked one), EBUSY (in use), EPERM.

    See umount(2).
    """
    _call(
        "umount2", _path(target), flags, shown=f"{target!s}, {_names(Unmount, flags)}", paths=(_path(target),)
    )


def pivot_root(new_root: Path, put_old: Path) -> None:
    """Make another mount the root of this mount namespace, and move the old root to a place below it.

    Unlike after chroot(2) the old root can then be unmounted, and there is no way back.

    Args:
        new_root: a mount point that is not on the current root's mount.
        put_old: a folder at or below ``new_root``.

    Raises:
        LinuxError: EBUSY (one of the two is on the current root's mount), EINVAL (not a mount point; shared
            propagation; ``put_old`` elsewhere; behind chroot), EPERM.

    See pivot_root(2).
    """
    paths = (_path(new_root), _path(put_old))
    _call("pivot_root", *paths, shown=f"{new_root!s}, {put_old!s}", paths=paths)


def chroot(path: Path) -> None:
    """Let the paths of this process begin at another folder.

    The working directory stays where it is, which may be outside; whoever has CAP_SYS_CHROOT gets out again.

    Raises:
        LinuxError: EPERM (no CAP_SYS_CHROOT), ENOENT, ENOTDIR.

    See chroot(2).
    """
    _call("chroot", _path(path), shown=str(path), paths=(_path(path),))


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace.

    Args:
        name: at most 64 bytes.

    Raises:
        LinuxError: EPERM (no CAP_SYS_ADMIN in the user namespace that owns the UTS namespace), EINVAL
            (too long).

    See sethostname(2), uts_namespaces(7).
    """
    encoded = name.encode()
    _call("sethostname", encoded, len(encoded), shown=repr(name))


# ---- what a process may do --------------------------------------------------------------------


class Capabilities(NamedTuple):
    """The three sets of a process: capabilities(7)."""

    effective: frozenset[int]
    permitted: frozenset[int]
    inheritable: frozenset[int]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


_CAPABILITY_VERSION_3: Final = 0x20080522
_SETS: Final = ctypes.c_uint32 * 6
"""Effective, permitted, inheritable of capabilities 0 to 31, then of 32 to 63."""


def _members(low: int, high: int) -> frozenset[int]:
    word = low | high << 32
    known = {int(capability): capability for capability in Capability}
    return frozenset(known.get(number, number) for number in range(64) if word >> number & 1)


def capget(pid: int = 0) -> Capabilities:
    """The capabilities of a process.

    Args:
        pid: whose; 0 for the caller's own.

    Raises:
        LinuxError: ESRCH (no such process).

    See capget(2), capabilities(7).
    """
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, pid), _SETS()
    _call("capget", ctypes.byref(header), sets, shown=f"pid={pid}")
    return Capabilities(*(_members(sets[n], sets[n + 3]) for n in range(3)))


def capset(effective: Iterable[int], permitted: Iterable[int], inheritable: Iterable[int] = ()) -> None:
    """Set the caller's capabilities; what is dropped from ``permitted`` is gone for good.

    Raises:
        LinuxError: EPERM (more than is permitted).

    See capset(2), capabilities(7).
    """
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), _SETS()
    words = [sum(1 << number for number in set(wanted)) for wanted in (effective, permitted, inheritable)]
    for index, word in enumerate(words):
        sets[index], sets[index + 3] = word & 0xFFFFFFFF, word >> 32
    names = zip(("effective", "permitted", "inheritable"), words, strict=True)
    shown = ", ".join(f"{name}={word:#x}" for name, word in names)
    _call("capset", ctypes.byref(header), sets, shown=shown)


def _effective() -> int:
    """The caller's effective capabilities, one bit each; not from /proc, which may be out of sight."""
    error = ctypes.get_errno()
    header, sets = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), _SETS()
    failed = _syscall()(_number("capget"), ctypes.byref(header), sets)
    ctypes.set_errno(error)
    return 0 if failed else int(sets[0] | sets[3] << 32)


def prctl(option: int, arg2: int | str = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Ask or set one of many attributes of this process.

    Args:
        option: ``PR_SET_NO_NEW_PRIVS``, ``PR_CAPBSET_DROP`` …
        arg2: as the option takes it; a text for ``PR_SET_NAME``.
        arg3: likewise.
        arg4: likewise.
        arg5: likewise.

    Returns:
        what was asked for; 0 where something was set.

    Raises:
        LinuxError: EINVAL (unknown option or value), EPERM (no CAP_SETPCAP).

    See prctl(2), and PR_SET_NO_NEW_PRIVS(2const) and its like.
    """
    known = {int(each): each.name for each in Prctl}
    values = (known.get(option, option), arg2, arg3, arg4, arg5)
    shown = ", ".join(value.name if isinstance(value, IntEnum) else str(value) for value in values)
    word = _path(arg2) if isinstance(arg2, str) else arg2
    return _call("prctl", option, word, arg3, arg4, arg5, shown=shown)


class Instruction(NamedTuple):
    """One instruction of classic BPF, ``struct sock_filter``: seccomp(2).

    Attributes:
        code: ``BPF_LD_W_ABS``, ``BPF_JMP_JEQ_K``, ``BPF_RET_K`` …
        k: its number: where to load from, what to compare with, what to answer.
        jt: how many instructions to skip if the comparison holds.
        jf: how many if it does not.
    """

    code: int
    k: int
    jt: int = 0
    jf: int = 0


class _SockFilter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_SockFilter))]


def seccomp(operation: int, flags: int = 0, program: Sequence[Instruction] = ()) -> None:
    """Filter this process' system calls from now on; no filter can be taken back.

    Args:
        operation: ``SECCOMP_SET_MODE_FILTER``; or ``SECCOMP_SET_MODE_STRICT``, which leaves read, write,
            _exit and sigreturn, and so ends a Python at once.
        flags: ``SECCOMP_FILTER_FLAG_…``.
        program: the filter.

    Raises:
        LinuxError: EACCES (neither PR_SET_NO_NEW_PRIVS nor CAP_SYS_ADMIN), EINVAL (not a program).

    See seccomp(2).
    """
    known = {int(each): each.name for each in Seccomp}
    shown = f"{known.get(operation, operation)}, {_names(SeccompFlag, flags)}, {len(program)} instructions"
    array = _SockFilter * max(len(program), 1)
    code = array(*(_SockFilter(each.code, each.jt, each.jf, each.k) for each in program))
    filters = ctypes.byref(_SockFprog(len(program), code)) if program else None
    _call("seccomp", operation, flags, filters, shown=shown)
