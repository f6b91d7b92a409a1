"""What this host can do, and how to mend what it cannot: the doctor.

``examine`` tries everything out in throwaway containers and says what it found; ``remedy_for`` says what to do
about a step of building a container that failed.  What is read of the host's settings is read when it is
asked for, and only to choose the words: whether a thing works is found by doing it (see ``probes``).

``container`` asks this module for remedies, so it knows neither ``container`` nor what is above it.
See user_namespaces(7), namespaces(7), cgroups(7) and Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno as e
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.result import Step

Status = Literal["works", "weaker", "missing"]

_READ_BYTES: Final = 1 << 20
_MOUNTS_SHOWN: Final = 3
_CAP_SYS_ADMIN: Final = 21
_ALL_IDS: Final = (1 << 32) - 1
_REFUSED: Final = (e.EPERM, e.EACCES)

_DOCTOR: Final = "Run `nsmagic doctor` to see what this host can do."
_NAMESPACE_FILES: Final = {
    "CLONE_NEWUSER": "user", "CLONE_NEWPID": "pid", "CLONE_NEWNS": "mnt", "CLONE_NEWNET": "net",
    "CLONE_NEWUTS": "uts", "CLONE_NEWIPC": "ipc", "CLONE_NEWCGROUP": "cgroup", "CLONE_NEWTIME": "time",
}  # fmt: skip
"""By flag, the name that /proc/self/ns and /proc/sys/user use."""

_DOCKER: Final = (
    "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)
_KUBERNETES: Final = (
    "In the pod's spec set hostUsers: false, and in the container's securityContext procMount: Unmasked with "
    "seccompProfile and appArmorProfile of type Unconfined."
)
_TOO_OLD: Final = {
    "openat2": ("5.6", "openat2(2)"),
    "close_range": ("5.9", "close_range(2)"),
    "mount_setattr": ("5.12", "mount_setattr(2)"),
    "open_tree": ("5.2", "open_tree(2)"),
    "move_mount": ("5.2", "move_mount(2)"),
    "fsopen": ("5.2", "fsopen(2)"),
}


class Finding(NamedTuple):
    """One row of the doctor's table.

    Attributes:
        feature: what was tried, in the words of the options: ``--mem``, ``pid namespace``.
        status: ``works``; ``weaker``, it works with less than one would expect; ``missing``, asking for it fails.
        detail: what was seen.  Of an option it begins with what enforces it, up to the first colon.
        remedy: what to do about it; empty where nothing is to be done.
    """

    feature: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> tuple[Finding, ...]:
    """Try out everything that containers need, each for real; takes one to three seconds.

    It never raises: what fails is a row.  A system without namespaces gives one row that says so.
    """
    from nsmagic import probes  # noqa: PLC0415 - probes build containers, which ask this module for remedies

    return probes.examine()


def remedy_for(step: Step, before: Sequence[Step] = ()) -> str:
    """What to do about a step that failed: one or two sentences.  It never raises.

    Args:
        step: the call that failed.
        before: the journal so far, if it is there: it names the folder that a mount was made of.
    """
    try:
        return _remedy(step, before) or _DOCTOR
    except Exception:  # noqa: BLE001 - an error on the way to an error's remedy must not hide the error
        return _DOCTOR


def _remedy(step: Step, before: Sequence[Step]) -> str:
    call = step.call.partition("(")[0]
    # What any call may answer comes first; then each subject has its own words.
    if step.errno in {e.EMFILE, e.ENFILE}:
        return "Allow more open files (ulimit -n 4096), or bind fewer files and folders."
    if call in _TOO_OLD and step.errno == e.ENOSYS:
        version, manual = _TOO_OLD[call]
        return f"{_hidden_call(manual)}Use Linux {version} or newer; this is {os.uname().release}."
    if step.step == "cgroup" and call == "write":
        return _group(step.errno)
    if call in {"clone3", "clone", "unshare"}:
        return _clone(step)
    if call == "fork":
        return _processes() if step.errno == e.EAGAIN else _memory(step.errno)
    if step.errno == e.ENOMEM:
        return _memory(step.errno)
    if step.step in {"sources", "mount"}:
        return _mount(step, call, before)
    if call == "chdir":
        return _workdir(step)
    if call == "setrlimit":
        return _rlimit(step.call)
    if step.step == "seccomp" and step.errno in {e.EINVAL, e.ENOSYS}:
        return "Use a kernel that was built with CONFIG_SECCOMP_FILTER."
    if "_map" in step.call and step.errno in _REFUSED:
        return _maps()
    if step.step == "userns" and step.errno == e.ENOENT:
        return "Mount the /proc of this process' own PID namespace: mount -t proc proc /proc."
    return _refused() if step.errno in {*_REFUSED, e.EINVAL} else ""


# ---- What is known about the host, read when it is needed -----------------------------------------


def _read(path: str) -> str:
    """The text of a small file of the kernel's; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path of /proc
            return file.read(_READ_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _status(field: str) -> str:
    """One field of /proc/self/status, see proc_pid_status(5)."""
    found = re.search(rf"^{field}:\s*(\S+)", _read("/proc/self/status"), re.MULTILINE)
    return found[1] if found else ""


def _is_root() -> bool:
    return os.geteuid() == 0


def _may_mount() -> bool:
    return bool(int(_status("CapEff") or "0", 16) >> _CAP_SYS_ADMIN & 1)


def _mapped_ids() -> int:
    """How many uids this process' own user namespace has; all of them on the host itself."""
    return sum(int(line.split()[2]) for line in _read("/proc/self/uid_map").splitlines())


def _around() -> str:
    """What runs around this process: ``docker``, ``kubernetes`` or nothing that we know."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    inside = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    return "docker" if inside else ""


def _chrooted() -> bool:
    """Whether our root is no mount of its own: then the kernel makes no user namespace for us."""
    points = [line.split(" ")[4] for line in _read("/proc/self/mountinfo").splitlines()]
    return bool(points) and "/" not in points


def _mounts_below(folder: str) -> list[str]:
    """Mount points below a folder, from proc_pid_mountinfo(5)."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        escaped = line.split(" ")[4]
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped)
        if point.startswith(folder.rstrip("/") + "/"):
            found.append(point)
    return sorted(set(found))


def _quoted(call: str) -> str:
    """The first text in quotes: the path that a call was about."""
    found = re.search(r'"([^"]*)"', call)
    return found[1] if found else ""


# ---- Refusals that have one cause for many calls ---------------------------------------------------


def _surroundings() -> str:
    """How to start the container around us so that it lets us make containers; empty where none is seen."""
    match _around():
        case "kubernetes":
            return _KUBERNETES
        case "docker":
            admin = " --cap-add SYS_ADMIN" if _is_root() else ""
            return f"Start the surrounding container so: {_DOCKER}{admin} …"
    return ""


def _refused() -> str:
    """EPERM or EACCES where a container's init should have had the right."""
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and not _may_mount():
        return (
            "AppArmor takes the rights from user namespaces here: sudo sysctl -w "
            "kernel.apparmor_restrict_unprivileged_userns=0, or load an AppArmor profile with the line "
            "'userns,' for this Python."
        )
    if _is_root() and not _may_mount():
        around = _surroundings()
        return around or "This process is root without CAP_SYS_ADMIN: give it that, or run it as an ordinary user."
    if around := _surroundings():
        return around
    if _status("Seccomp") == "2":
        return (
            "A system-call filter around this process refuses it; run outside of that sandbox, or, where it is "
            f"Docker or Podman, with: {_DOCKER} …"
        )
    if _read("/sys/fs/selinux/enforce") == "1":
        return "SELinux may refuse it: look with ausearch -m avc, and allow this domain user_namespace { create }."
    return ""


def _hidden_call(manual: str) -> str:
    """Where a filter is around us, ENOSYS may be its word and not the kernel's."""
    filtered = _status("Seccomp") == "2"
    return f"If a filter around this process hides {manual}, start it with {_DOCKER} …; else: " if filtered else ""


def _memory(number: int) -> str:
    if number != e.ENOMEM:
        return ""
    return "The kernel had no memory left for it: end something, or raise the memory limit of this process' own group."


def _processes() -> str:
    """EAGAIN: a limit on processes, of the user or of the group that we live in."""
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    from nsmagic.cgroups import own_groups  # noqa: PLC0415 - for words only

    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    groups = own_groups()
    own = groups.get("pids") or groups.get("")
    most = _read(f"{own.directory}/pids.max") if own else ""
    group = f" or its group's pids.max (now {most})" if most else ""
    return f"Too many processes: end some, or raise this user's ulimit -u (now {limit}){group}."


# ---- Namespaces ------------------------------------------------------------------------------------


def _clone(step: Step) -> str:
    flags = [flag for flag in _NAMESPACE_FILES if re.search(rf"\b{flag}\b", step.call)]
    match step.errno:
        case e.ENOSPC:
            return _too_many(flags)
        case e.EAGAIN:
            return _processes()
        case e.ENOMEM:
            return _memory(step.errno)
        case e.EINVAL | e.ENOSYS:
            lacking = [_NAMESPACE_FILES[flag] for flag in flags if not _has(_NAMESPACE_FILES[flag])]
            if not lacking:
                return _refused()
            leave = "-".join("mount" if name == "mnt" else name for name in lacking)
            return f"This kernel has no {' and no '.join(lacking)} namespace: leave it out with --ns all-{leave}."
        case e.EBUSY | e.EOPNOTSUPP:
            return _group(step.errno)
    return _user_namespaces() if step.errno in _REFUSED else ""


def _has(name: str) -> bool:
    return Path(f"/proc/self/ns/{name}").exists()


def _too_many(flags: Sequence[str]) -> str:
    """ENOSPC: user.max_…_namespaces, here or in a namespace around us, whose value cannot be seen here."""
    names = [f"user.max_{_NAMESPACE_FILES[flag]}_namespaces" for flag in flags] or ["user.max_user_namespaces"]
    values = {name: _read(f"/proc/sys/{name.replace('.', '/')}") for name in names}
    zero = [name for name, value in values.items() if value == "0"]
    if zero:
        settings = " ".join(f"{name}=10000" for name in zero)
        return f"The host allows none of them: sudo sysctl -w {settings}."
    shown = ", ".join(f"{name} (here {value or 'unknown'})" for name, value in values.items())
    return f"A limit on namespaces is reached: raise {shown}, here or in the container around this process."


def _user_namespaces() -> str:
    """Clone was refused."""
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "User namespaces are switched off for ordinary users: sudo sysctl -w kernel.unprivileged_userns_clone=1."
    if _chrooted():
        return "This process lives in a chroot, where the kernel makes no user namespace: use pivot_root instead of chroot."
    return _refused()


def _maps() -> str:
    """A write to uid_map or gid_map was refused: which ids may it map?"""
    if _is_root() and _mapped_ids() < _ALL_IDS:
        return (
            "This root is root of a user namespace only, and its map (/proc/self/uid_map) lacks the uid that "
            "containers run under: run it as an ordinary user instead."
        )
    return _refused()


# ---- Files ------------------------------------------------------------------------------------------


def _mount(step: Step, call: str, before: Sequence[Step]) -> str:
    path = _quoted(step.call)
    if step.errno in {e.ENOSPC, e.EDQUOT}:
        return "The container's own files do not fit: give more with --disk."
    if call in {"fsopen", "fsconfig", "fsmount"}:
        return _file_system(step, path, before)
    if call == "open_tree":
        return _source(step.errno, path)
    if step.errno == e.EROFS:
        return f"{path} would lie in a folder that is read-only inside: bind to another place, such as one in /mnt."
    if step.errno in {e.ENOTDIR, e.ENOENT, e.ELOOP, e.ENAMETOOLONG, e.EXDEV, e.EEXIST} or (
        call == "move_mount" and step.errno == e.EINVAL
    ):
        return f"{path} is no place for it inside (a file goes on a file, a folder on a folder): bind to another place."
    return _refused() if step.errno in {*_REFUSED, e.EINVAL} else ""


def _source(number: int, path: str) -> str:
    """A folder or file of the host could not be taken."""
    if number == e.EINVAL:
        points = _mounts_below(path)
        more = " and more" if len(points) > _MOUNTS_SHOWN else ""
        names = ", ".join(points[:_MOUNTS_SHOWN]) + more
        below = f"{path} has mounts below it ({names}), " if points else f"{path} has mounts below it, "
        return f"{below}which copy-on-write does not reach: choose another folder with -w, or bind it :ro."
    if number == e.ENOENT:
        return f"{path} is not there any more: bind something else, or choose another folder with -w."
    if number == e.EACCES:
        return f"You may not reach {path}: choose another, or ask its owner for chmod o+x on the folders above it."
    return _refused() if number == e.EPERM else ""


def _file_system(step: Step, kind: str, before: Sequence[Step]) -> str:
    if step.errno == e.ENODEV:
        return f"This kernel has no {kind} file system: sudo modprobe {kind}, or leave out what needs it (-w, :cow)."
    if kind == "proc" and step.errno in _REFUSED:
        around = _surroundings() or f"Start the container around this process so: {_DOCKER} …"
        return f"Parts of /proc are covered here, and then the kernel gives no fresh one. {around}"
    if kind != "overlay" or step.errno not in {*_REFUSED, e.EINVAL, e.EOPNOTSUPP}:
        return _refused()
    folders = [_quoted(each.call) for each in before if each.call.startswith("move_mount(tree of ")]
    where = f"{folders[-1]} (on {_kind_of(folders[-1])})" if folders else "The working directory or a :cow folder"
    return (
        f"{where} lies on a file system that copy-on-write cannot build on: choose another folder with -w, "
        "or bind it :ro."
    )


def _kind_of(folder: str) -> str:
    """The type of the file system that a folder lies on, such as ``vfat``."""
    best, kind = "", "an unknown file system"
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4]
        if f"{folder}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind


def _workdir(step: Step) -> str:
    path = _quoted(step.call)
    if step.errno == e.EACCES:
        return f"The container's user may not enter {path}: choose another folder with -w, or add mount to --ns."
    return f"{path} is not there inside: choose another folder with -w."


# ---- Limits -----------------------------------------------------------------------------------------


def _group(number: int) -> str:
    """A process could not be put into its control group."""
    match number:
        case e.EBUSY | e.EOPNOTSUPP:
            return (
                "The group has processes of its own or is not a plain domain: run this process in a unit that is "
                "handed over to it: systemd-run --user --scope -p Delegate=yes …"
            )
        case e.EAGAIN:
            return _processes()
        case e.ENOSPC:
            return "The group's cpuset is empty: write CPUs to cpuset.cpus and a node to cpuset.mems of the group above."
        case e.ENOENT | e.ENODEV:
            return "Somebody removed the container's group; run it again."
        case e.EINVAL:
            return "The kernel moves no real-time process into a group for CPU time: start this process without chrt."
    return "Run as root, or in a unit that is handed over to you: systemd-run --user --scope -p Delegate=yes …"


def _rlimit(call: str) -> str:
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    found = re.search(r"resource=(\d+)", call)
    if found and int(found[1]) == resource.RLIMIT_NPROC:
        return "It is above the hard limit of this process: ask for fewer with --pids, or raise ulimit -Hu."
    return "It is above the hard limit of this process: raise that (ulimit -H), or ask for less."
