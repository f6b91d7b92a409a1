"""Why the kernel said no: from a failed system call and its errno to a sentence that helps.

One errno has several causes.  Where /proc can tell which it is, the hint says that one; where it cannot
(behind a chroot there may be no /proc), the hint names the likely ones.  A hint never fails, and changes
nothing. For ``nsmagic.linux``; knows the constants only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.linux_constants import Capability, Clone, Mount

if sys.platform == "linux":  # this module imports everywhere, and must import nothing later: behind a chroot
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable

_NS_GET_USERNS: Final = 0xB701
_HOSTNAME_MOST: Final = 64
_OWN_USERNS: Final = "an ordinary user gets it in a user namespace: unshare(CLONE_NEWUSER | …)"
_LIMITS: Final = {
    Clone.CLONE_NEWUSER: "user", Clone.CLONE_NEWNS: "mnt", Clone.CLONE_NEWPID: "pid",
    Clone.CLONE_NEWNET: "net", Clone.CLONE_NEWUTS: "uts", Clone.CLONE_NEWIPC: "ipc",
    Clone.CLONE_NEWCGROUP: "cgroup", Clone.CLONE_NEWTIME: "time",
}  # fmt: skip
"""The files in /proc/sys/user that limit how many there may be; see namespaces(7)."""


@dataclass(frozen=True)
class Failure:
    """A system call that failed.

    Attributes:
        call: its name.
        error: the kernel's answer, from ``errno``.
        flags: those that it was given.
        paths: those that it was given, in order.
        effective: the caller's effective capabilities, one bit each.
        kind: type of a file system, or ``uid`` or ``gid`` of a map.
        pid: whose map it is.
    """

    call: str
    error: int
    flags: int = 0
    paths: tuple[bytes, ...] = ()
    effective: int = 0
    kind: str = ""
    pid: str = "self"

    def has(self, capability: Capability) -> bool:
        """Whether the caller has the capability in its own user namespace."""
        return bool(self.effective >> capability & 1)


def hint(failure: Failure) -> str:
    """A sentence or two without a full stop at the end; empty where there is nothing to say."""
    say = _CALLS.get(failure.call)
    with contextlib.suppress(Exception):  # the kernel's own answer must not be lost over it
        return say(failure) if say else ""
    return ""


# ---- what /proc knows -------------------------------------------------------------------


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - no path to speak of
            return int(file.read())
    except (OSError, ValueError):
        return None


def _threads() -> int:
    """How many this process has; 1 where /proc is not there to say."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count
    except OSError:
        return 1


def _inode(kind: str) -> int | None:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino  # noqa: PTH116 - no path to speak of
    except OSError:
        return None


def _is_owned(kind: str) -> bool | None:
    """Whether our namespace of this kind belongs to our user namespace: ioctl_nsfs(2); None for unknown."""
    try:
        namespace = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    except PermissionError:  # the owner is further out than we may look
        return False
    except OSError:
        return None
    finally:
        os.close(namespace)
    try:
        return os.fstat(owner).st_ino == _inode("user")
    finally:
        os.close(owner)


@dataclass(frozen=True)
class _Place:
    """Where a path leads: the mount that it is on, and whether it is that mount's own root."""

    mount: int
    is_mount_point: bool | None
    shared: bool | None
    parent_shared: bool | None


def _place(path: bytes) -> _Place | None:
    """Look a path up in /proc/self/mountinfo, see proc(5); None where that cannot be done."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as file:  # noqa: PTH123
            number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id"))
        with open("/proc/self/mountinfo", "rb") as file:  # noqa: PTH123
            mounts = {int(line.split()[0]): line.split() for line in file}
    except (OSError, StopIteration):
        return None
    finally:
        os.close(descriptor)
    fields = mounts.get(number)
    if fields is None:
        return _Place(number, None, None, None)
    parent = mounts.get(int(fields[1]))
    point = fields[4].replace(rb"\040", b" ")
    return _Place(
        number,
        os.path.realpath(path) == point,
        _is_shared(fields),
        None if parent is None else _is_shared(parent),
    )


def _is_shared(fields: list[bytes]) -> bool:
    return any(field.startswith(b"shared:") for field in fields[6 : fields.index(b"-")])


# ---- what several calls have in common ------------------------------------------------------


def _no_right(failure: Failure, kind: str, capability: Capability = Capability.CAP_SYS_ADMIN) -> str:
    """EPERM: the capability is missing, or it is one over other namespaces; empty where it is neither."""
    if not failure.has(capability):
        restricted = _number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        if restricted:
            return (
                f"it takes {capability.name}, which this process has not; on this host AppArmor takes the "
                "capabilities of user namespaces away: sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0, as root, lets them be"
            )
        return f"it takes {capability.name}, which this process has not; {_OWN_USERNS}"
    if kind and _is_owned(kind) is False:
        flag = {"mnt": "CLONE_NEWNS", "uts": "CLONE_NEWUTS"}[kind]
        return (
            f"{capability.name} counts in the user namespace that owns the {kind} namespace, and ours "
            f"belongs to an outer one; make one that is yours: unshare({flag})"
        )
    return ""


def _no_path(failure: Failure) -> str:
    missing = [path for path in failure.paths if not os.path.exists(path)]  # noqa: PTH110
    if missing:
        return f"there is no {os.fsdecode(missing[0])!r} here; a path counts from this process' own root"
    return ""


def _first(*sentences: str) -> str:
    return next((sentence for sentence in sentences if sentence), "")


# ---- call by call ------------------------------------------------------------------------


def _unshare(failure: Failure) -> str:
    match failure.error:
        case errno.EINVAL:
            return _not_unshared(failure)
        case errno.EPERM:
            return _first(_no_namespace(failure), _surrounding_filter(failure))
        case errno.ENOSPC:
            kinds = [name for flag, name in _LIMITS.items() if failure.flags & flag]
            full = [kind for kind in kinds if _number(f"/proc/sys/user/max_{kind}_namespaces") == 0]
            files = ", ".join(f"user.max_{kind}_namespaces" for kind in full or kinds)
            zero = " (it is 0)" if full else ""
            return f"there may be no more of them: see sysctl {files}{zero}; nesting ends at 32 levels"
        case errno.ENOSYS:
            return (
                "the kernel has no such call, or a filter of system calls hides it, as Docker's does with "
                "clone3; unshare() and fork() do the same in two steps"
            )
    return fork_hint(failure.error)


def _not_unshared(failure: Failure) -> str:
    """EINVAL of unshare and clone3."""
    threads = _threads()
    if threads > 1 and failure.flags & Clone.CLONE_NEWUSER and failure.call == "unshare":
        return (
            f"this process has {threads} threads, and only one that has a single thread may move into a new "
            "user namespace; a notebook's kernel has many: use a scratch process (%%scratch), or fork first"
        )
    if failure.flags & Clone.CLONE_NEWPID and _inode("pid") != _inode("pid_for_children"):
        return (
            "the children of this process are to live in another PID namespace already, and that can be "
            "said once only; fork, and let the child go on"
        )
    return "an unknown flag, or two that exclude each other; or this kernel was built without it"


def _no_namespace(failure: Failure) -> str:
    """EPERM of unshare and clone3."""
    if not failure.flags & Clone.CLONE_NEWUSER:
        if failure.has(Capability.CAP_SYS_ADMIN):
            return ""
        return (
            "it takes CAP_SYS_ADMIN, which this process has not; add CLONE_NEWUSER, which takes no right "
            "and gives all of them inside"
        )
    if _number("/proc/sys/kernel/unprivileged_userns_clone") == 0:
        return (
            "this host forbids user namespaces to ordinary users: sysctl -w "
            "kernel.unprivileged_userns_clone=1, as root"
        )
    place = _place(b"/")
    if place is None or place.is_mount_point is not True:
        return (
            "a process behind chroot may not make a user namespace: its root must be its mount namespace's "
            "root"
        )
    return (
        "the caller's own user and group must be mapped in its user namespace: write its uid_map and gid_map"
    )


def _surrounding_filter(failure: Failure) -> str:
    return (
        f"a filter of system calls or a security module around this process forbids {failure.call}; "
        "a Docker container needs --privileged, or --security-opt seccomp=unconfined --cap-add SYS_ADMIN"
    )


def _setns(failure: Failure) -> str:
    match failure.error:
        case errno.EINVAL:
            threads = _threads()
            if threads > 1:
                return (
                    f"this process has {threads} threads; user, mount and time namespaces are entered by a "
                    "process that has one: use a scratch process (%%scratch)"
                )
            return (
                "the descriptor is of another kind than the flag says, or of our own user namespace, which "
                "nobody enters twice, or of a PID namespace that is not below ours"
            )
        case errno.EUSERS:
            return "a time namespace is entered by a process with a single thread"
        case errno.EPERM:
            return (
                "it takes CAP_SYS_ADMIN in the user namespace that owns the target, so enter that user "
                "namespace first; for a mount namespace CAP_SYS_CHROOT too"
            )
        case errno.EBADF:
            return "the descriptor is closed; open one with os.open('/proc/PID/ns/KIND', os.O_RDONLY)"
        case errno.ESRCH:
            return "the process of this pidfd has ended"
    return ""


def _mount(failure: Failure) -> str:
    match failure.error:
        case errno.EPERM:
            return _first(_no_right(failure, "mnt"), _not_in_userns(failure))
        case errno.EACCES:
            return (
                "a security module (AppArmor) forbids mounts in user namespaces here, a folder on the way "
                "may not be passed, or the device is read-only; on Ubuntu: sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0"
            )
        case errno.EINVAL:
            return _bad_mount(failure)
        case errno.ENODEV:
            return f"the kernel knows no file system {failure.kind!r}: see /proc/filesystems"
        case errno.EBUSY:
            return (
                "it is mounted there already, or files on it are open for writing, so it cannot become "
                "read-only"
            )
        case errno.ENOENT | errno.ENOTDIR:
            return _first(_no_path(failure), "a folder is mounted on a folder, a file on a file")
        case errno.ENOTBLK:
            return f"{failure.kind} lives on a block device, and the source is none"
    return ""


def _not_in_userns(failure: Failure) -> str:
    """EPERM of a mount though the capability is there."""
    if failure.kind == "proc":
        return (
            "a new /proc needs a PID namespace of the same user namespace (unshare(CLONE_NEWPID), then "
            "fork), and a /proc outside that nothing is mounted over"
        )
    if failure.kind == "sysfs":
        return "a new /sys needs a network namespace of the same user namespace: unshare(CLONE_NEWNET)"
    if failure.flags & Mount.MS_REMOUNT:
        return (
            "a mount that came from an outer mount namespace keeps its flags (nosuid, nodev, noexec, ro, "
            "atime): name them again, as /proc/self/mountinfo shows them"
        )
    return (
        "in a user namespace only some file systems may be mounted (tmpfs, proc, sysfs, overlay, fuse, and "
        "bind mounts of anything), none that needs a disk"
    )


def _bad_mount(failure: Failure) -> str:
    """EINVAL of a mount."""
    propagation = Mount.MS_SHARED | Mount.MS_PRIVATE | Mount.MS_SLAVE | Mount.MS_UNBINDABLE
    if failure.flags & propagation:
        if failure.flags & ~(propagation | Mount.MS_REC | Mount.MS_SILENT):
            return "a change of propagation goes alone: no other flag but MS_REC with it"
        return "the target is not a mount point; bind it on itself first: mount(PATH, PATH, None, MS_BIND)"
    if failure.flags & (Mount.MS_REMOUNT | Mount.MS_MOVE):
        return (
            "what is remounted or moved must be a mount point, and its parent must not be shared (MS_PRIVATE)"
        )
    if failure.flags & Mount.MS_BIND:
        return (
            "in a mount namespace of a less privileged owner a tree is bound whole: add MS_REC; and neither "
            "an unbindable mount nor one of another mount namespace can be bound"
        )
    return (
        f"an option that {failure.kind or 'this file system'} does not take, or a superblock that is not one"
    )


def _umount2(failure: Failure) -> str:
    match failure.error:
        case errno.EINVAL:
            place = _place(failure.paths[0])
            if place is not None and place.is_mount_point:
                return (
                    "it came from an outer mount namespace and is locked: what it hides must stay hidden; "
                    "unmount the whole tree, or what is mounted above it"
                )
            return "it is not a mount point of this mount namespace"
        case errno.EBUSY:
            return (
                "something uses it: an open file, a working directory, a mount below it; MNT_DETACH takes it "
                "out of sight now and lets it go when it is free"
            )
        case errno.EAGAIN:
            return "MNT_EXPIRE has marked it now; a second call unmounts it, if nothing used it meanwhile"
        case errno.EPERM:
            return _no_right(failure, "mnt")
        case errno.ENOENT:
            return _no_path(failure)
    return ""


def _pivot_root(failure: Failure) -> str:
    match failure.error:
        case errno.EBUSY:
            return _busy_root(failure)
        case errno.EINVAL:
            return _bad_root(failure)
        case errno.EPERM:
            return _first(_no_right(failure, "mnt"), _surrounding_filter(failure))
        case errno.ENOENT | errno.ENOTDIR:
            return _first(_no_path(failure), "both must be folders")
    return ""


def _busy_root(failure: Failure) -> str:
    new, root = _place(failure.paths[0]), _place(b"/")
    remedy = "make it a mount of its own: mount(NEW, NEW, None, MS_BIND | MS_REC)"
    if new is None or root is None:
        return f"the new root, or the place for the old one, is on the current root's mount; {remedy}"
    if new.mount == root.mount and not new.is_mount_point:
        return f"the new root is not a mount point but a folder on the current root's mount; {remedy}"
    if new.mount == root.mount:
        return "the new root is the current root already"
    return (
        "the place for the old root is on the current root's mount; it must be in the new root, as NEW/old is"
    )


def _bad_root(failure: Failure) -> str:
    new, old, root = (_place(path) for path in (*failure.paths[:2], b"/"))
    if new and old and root:
        if new.parent_shared or root.parent_shared or old.shared:
            return (
                "a mount that takes part is shared, so the change would reach other mount namespaces; "
                "first mount('none', '/', None, MS_REC | MS_PRIVATE)"
            )
        if not root.is_mount_point:
            return "the current root is not a mount point: this process is behind chroot"
        if not new.is_mount_point:
            return "the new root is not a mount point; bind it: mount(NEW, NEW, None, MS_BIND | MS_REC)"
        if new.mount == root.mount:
            return "the new root is the current root already"
        top, place = (os.path.realpath(path) for path in failure.paths[:2])
        if not (place + b"/").startswith(top.rstrip(b"/") + b"/"):
            return "the place for the old root must be the new root or below it, as NEW/old is"
        return (
            "the current root is the boot's own (rootfs), or the new root came locked from an outer mount "
            "namespace"
        )
    return (
        "the new root is not a mount point, the place for the old one is not below it, a mount that takes "
        "part is shared, or this process is behind chroot"
    )


def _chroot(failure: Failure) -> str:
    match failure.error:
        case errno.EPERM:
            return _first(_no_right(failure, "", Capability.CAP_SYS_CHROOT), _surrounding_filter(failure))
        case errno.ENOENT:
            return _no_path(failure)
        case errno.EACCES:
            return "a folder on the way may not be passed"
    return ""


def _sethostname(failure: Failure) -> str:
    match failure.error:
        case errno.EPERM:
            return _first(_no_right(failure, "uts"), _surrounding_filter(failure))
        case errno.EINVAL:
            return f"a host name has at most {_HOSTNAME_MOST} bytes"
    return ""


def _capset(failure: Failure) -> str:
    if failure.error == errno.EPERM:
        return (
            "what was dropped from the permitted set never comes back, effective must be within permitted, "
            "and only what is permitted (or, with CAP_SETPCAP, in the bounding set) may be made inheritable"
        )
    return "there is no process with this pid" if failure.error == errno.ESRCH else ""


def _prctl(failure: Failure) -> str:
    if failure.error == errno.EPERM:
        return (
            "PR_CAPBSET_DROP and PR_SET_SECUREBITS take CAP_SETPCAP; an ambient capability must be "
            "permitted and inheritable first"
        )
    return "an unknown operation, or a value that it does not take" if failure.error == errno.EINVAL else ""


def _seccomp(failure: Failure) -> str:
    match failure.error:
        case errno.EACCES:
            return (
                "a filter must not trick a setuid program: promise first never to gain rights, "
                "prctl(PR_SET_NO_NEW_PRIVS, 1), or have CAP_SYS_ADMIN"
            )
        case errno.EINVAL:
            return (
                "the program is not one that the kernel takes: it must end in BPF_RET_K on every way, jump "
                "only forwards and within itself, and load whole words within struct seccomp_data; or it is "
                "too long"
            )
    return ""


def _id_map(failure: Failure) -> str:
    """Of /proc/PID/uid_map and gid_map: user_namespaces(7), "Defining user and group ID mappings"."""
    match failure.error:
        case errno.EPERM:
            return _forbidden_map(failure)
        case errno.EACCES:
            return (
                "its owner is another user: /proc shows a process that is not dumpable as root's, so write "
                "the map before it changes its rights; or AppArmor forbids it (Ubuntu): sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0"
            )
        case errno.EINVAL:
            return "a line is INSIDE OUTSIDE COUNT: no overlaps, a count above 0, at most 340 lines"
        case errno.ENOENT:
            return "there is no such process (any more)"
    return ""


def _forbidden_map(failure: Failure) -> str:
    folder = f"/proc/{failure.pid}"
    with open(f"{folder}/{failure.kind}_map", encoding="utf-8") as file:  # noqa: PTH123
        if file.read().strip():
            return "it was written already, and that can be done once only"
    if failure.kind == "gid":
        with open(f"{folder}/setgroups", encoding="utf-8") as file:  # noqa: PTH123
            if file.read().strip() == "allow":
                return (
                    "without CAP_SETGID outside, the process must first give up setgroups(2): "
                    "deny_setgroups(PID)"
                )
    capability = "CAP_SETUID" if failure.kind == "uid" else "CAP_SETGID"
    return (
        f"without {capability} outside, it may have one line that maps the writer's own {failure.kind} and "
        "no other, and the writer must be the process itself or the one that made the namespace; "
        "newuidmap(1) writes more"
    )


def _setgroups(failure: Failure) -> str:
    if failure.error == errno.EPERM:
        return (
            "once gid_map is written, setgroups stays as it is; it takes CAP_SYS_ADMIN in the process' "
            "user namespace"
        )
    return ""


def fork_hint(error: int) -> str:
    """Why fork(2) or clone3(2) failed, for whoever calls ``os.fork`` too."""
    if error == errno.ENOMEM and _inode("pid") != _inode("pid_for_children"):
        return (
            "PID 1 of the PID namespace where children of this process are born has ended, and with it the "
            "namespace: nobody is born there any more (pid_namespaces(7)); start over in a new process"
        )
    if error == errno.EAGAIN:
        return "a limit of processes is reached: pids.max of a cgroup, RLIMIT_NPROC, or kernel.pid_max"
    return ""


_CALLS: Final[dict[str, Callable[[Failure], str]]] = {
    "unshare": _unshare,
    "clone3": _unshare,
    "fork": lambda failure: fork_hint(failure.error),
    "setns": _setns,
    "mount": _mount,
    "umount2": _umount2,
    "pivot_root": _pivot_root,
    "chroot": _chroot,
    "sethostname": _sethostname,
    "capset": _capset,
    "capget": _capset,
    "prctl": _prctl,
    "seccomp": _seccomp,
    "write_id_map": _id_map,
    "deny_setgroups": _setgroups,
}
