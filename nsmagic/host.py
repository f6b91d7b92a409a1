"""What this host can do, and how to mend what it cannot: the doctor.

``examine`` tries everything out in throwaway containers and says what it found; ``remedy_for`` says what to
do about a step of building a container that failed.  The host's settings are read when they are asked for,
and only to choose the words: whether a thing works is found by doing it (see ``probes``).

``container`` asks this module for remedies, so it knows neither ``container`` nor what is above it.
See user_namespaces(7), namespaces(7), cgroups(7) and Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno as e
import functools
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from nsmagic.result import Step

Status = Literal["works", "weaker", "missing"]

_READ_BYTES: Final = 1 << 20
_MOUNTS_SHOWN: Final = 3
CAP_SYS_ADMIN: Final = 21
_ALL_IDS: Final = (1 << 32) - 1

_DOCTOR: Final = "Run `nsmagic doctor` to see what this host can do."
_DOCKER: Final = (
    "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)
_PODMAN: Final = (
    "podman run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt unmask=ALL"
)
_KUBERNETES: Final = (
    "In the pod's spec set hostUsers: false, and in the container's securityContext procMount: Unmasked with "
    "seccompProfile and appArmorProfile of type Unconfined; the kubelet's feature gates "
    "UserNamespacesSupport and ProcMountType must be on, as they are since Kubernetes 1.33."
)
_DELEGATE: Final = "in a unit that is handed over to it: systemd-run --user --scope -p Delegate=yes …"

_SINCE: Final = {
    "open_tree": "5.2", "move_mount": "5.2", "fsopen": "5.2", "openat2": "5.6", "close_range": "5.9",
    "mount_setattr": "5.12",
}  # fmt: skip
"""Calls that have no older one to fall back on, and the kernel that brought them."""

_KINDS: Final = {
    "CLONE_NEWUSER": "user", "CLONE_NEWPID": "pid", "CLONE_NEWNS": "mnt", "CLONE_NEWNET": "net",
    "CLONE_NEWUTS": "uts", "CLONE_NEWIPC": "ipc", "CLONE_NEWCGROUP": "cgroup", "CLONE_NEWTIME": "time",
}  # fmt: skip
"""By flag, the name that /proc/self/ns and /proc/sys/user use."""


class Finding(NamedTuple):
    """One row of the doctor's table.

    Attributes:
        feature: what was tried, in the words of the options: ``--mem``, ``pid namespace``.
        status: ``works``; ``weaker``, it is granted but is less than its name says; ``missing``, asking for
            it is refused.
        detail: what was seen.  Of a limit it begins with what enforces it, up to the first colon.
        remedy: what to do about it; empty where nothing is to be done.
    """

    feature: str
    status: Status
    detail: str
    remedy: str = ""


def examine(only: Collection[str] | None = None) -> tuple[Finding, ...]:
    """Try out everything that containers need, each for real; takes one to three seconds.

    It never raises: what fails is a row.  A system without namespaces gives one row that says so.

    Args:
        only: the features to try, such as ``--mem``; the kernel and the launcher are looked at all the same.
    """
    from nsmagic import probes  # noqa: PLC0415 - probes build containers, which ask us for remedies

    return probes.examine(only)


def render_text(findings: Sequence[Finding]) -> str:
    """The findings as a table for a terminal, with what to do and what the options will use."""
    from nsmagic import doctor  # noqa: PLC0415 - a remedy takes none of it

    return doctor.render_text(findings)


def render_html(findings: Sequence[Finding]) -> str:
    """The same for a notebook: inline styles only, every text escaped."""
    from nsmagic import doctor  # noqa: PLC0415 - likewise

    return doctor.render_html(findings)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as data: ``{"findings": [{feature, status, detail, remedy}], "uses": {"--mem": ...}}``."""
    from nsmagic import doctor  # noqa: PLC0415 - likewise

    return doctor.to_json(findings)


def remedy_for(step: Step, before: Sequence[Step] = ()) -> str:
    """What to do about a step that failed: one or two sentences.  It never raises.

    Args:
        step: the call that failed.
        before: the journal so far, if it is there: it names the folder that an overlay was made of.
    """
    try:
        call = step.call.partition("(")[0]
        quoted = re.search(r'"([^"]*)"', step.call)
        case = _Case(call, step.call, step.errno, quoted[1] if quoted else "", before)
        if step.errno == e.ENOSYS and call in _SINCE:
            return _too_old(call)
        subject = _SUBJECTS.get(call) or _SUBJECTS.get(step.step, _refused)
        return _ANYWHERE.get(step.errno) or subject(case) or _DOCTOR
    except Exception:  # noqa: BLE001 - an error on the way to a remedy must not hide the error itself
        return _DOCTOR


class _Case(NamedTuple):
    """A failed step, taken apart: the call's name, all of it, the first text in quotes in it."""

    call: str
    text: str
    errno: int
    path: str
    before: Sequence[Step]


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


@functools.cache
def may(*capabilities: int) -> bool:
    """Whether this process has these capabilities; in a container of others root may lack some."""
    effective = int(_status("CapEff") or "0", 16)
    return all(effective >> capability & 1 for capability in capabilities)


def _mounts() -> list[tuple[str, str]]:
    """Mount points and their file systems' types, from proc_pid_mountinfo(5)."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        found.append((point, after.split(" ")[0]))
    return found


def _kind_of(folder: str) -> str:
    """The type of the file system that a folder lies on, such as ``vfat``."""
    inside = f"{folder}/".startswith
    above = [(len(point), kind) for point, kind in _mounts() if inside(point.rstrip("/") + "/")]
    return max(above)[1] if above else "an unknown file system"


# ---- Refusals that have one cause for many calls ---------------------------------------------------


def _surroundings() -> str:
    """How to start the container around us so that it lets us make containers; empty where none is seen."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _KUBERNETES
    docker, podman = Path("/.dockerenv").exists(), Path("/run/.containerenv").exists()
    # Virtual machines are made from such images too, mark and all; but they mount no /etc/hosts.
    if (docker or podman) and "/etc/hosts" in dict(_mounts()):
        return f"Start the surrounding container so: {_DOCKER if docker else _PODMAN} …"
    return ""


def _refused(case: _Case) -> str:
    """EPERM or EACCES where a container's init should have had the right."""
    if case.errno not in {e.EPERM, e.EACCES, e.EINVAL, e.ENOSYS}:
        return ""
    may_mount, around = may(CAP_SYS_ADMIN), _surroundings()
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" and not may_mount:
        profile = Path(__file__).with_name("apparmor.profile")
        return (
            "AppArmor takes the rights from user namespaces of programs that have no profile. Load ours for "
            f"this Python: sed 's|PYTHON|{os.path.realpath(sys.executable)}|' {profile} | "
            "sudo tee /etc/apparmor.d/nsmagic | sudo apparmor_parser --replace"
        )
    if around or (os.geteuid() == 0 and not may_mount):
        return around or "This process is root without CAP_SYS_ADMIN: give it that, or be an ordinary user."
    if _status("Seccomp") == "2":
        return (
            "A system-call filter around this process may have refused it: run outside of that sandbox; "
            f"where it is Docker or Podman, start it so: {_DOCKER} …"
        )
    enforcing = _read("/sys/fs/selinux/enforce") == "1"
    return "SELinux may have refused it: ausearch -m avc shows what to allow." if enforcing else ""


def _too_old(call: str) -> str:
    filtered = _status("Seccomp") == "2"
    hidden = f", or if a filter around this process hides it, start that so: {_DOCKER} …" if filtered else "."
    return f"{call}(2) needs Linux {_SINCE[call]}, and this is {os.uname().release}: use a newer one{hidden}"


def _processes() -> str:
    """EAGAIN: a limit on processes, of the user or of the group that we live in."""
    import resource  # noqa: PLC0415 - not on every system, and this module must import everywhere

    from nsmagic.cgroups import own_groups  # noqa: PLC0415 - for words only

    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    groups = own_groups()
    own = groups.get("pids") or groups.get("")
    most = _read(f"{own.directory}/pids.max") if own else ""
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    group = f", or pids.max of its control group (now {most})" if most else ""
    return f"Too many processes: end some, or raise this user's ulimit -u (now {limit}){group}."


# ---- Namespaces ------------------------------------------------------------------------------------


def _clone(case: _Case) -> str:
    kinds = [kind for flag, kind in _KINDS.items() if re.search(rf"\b{flag}\b", case.text)]
    if case.errno == e.ENOSPC:
        return _too_many(kinds or ["user"])
    if case.errno == e.EAGAIN:
        return _processes()
    if case.errno in {e.EBUSY, e.EOPNOTSUPP}:
        return _group(case)
    if case.errno == e.EINVAL:
        lacking = [kind for kind in kinds if not Path(f"/proc/self/ns/{kind}").exists()]
        left = "-".join(lacking).replace("mnt", "mount")
        words = f"This kernel has no {' and no '.join(lacking)} namespace: leave it out with --ns all-{left}."
        return words if lacking else _refused(case)
    return _switched_off(case) or _refused(case)


def _switched_off(case: _Case) -> str:
    """EPERM of the kernel itself, no matter what else is around us."""
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        return "They are switched off for ordinary users: sudo sysctl -w kernel.unprivileged_userns_clone=1."
    # A chroot's root is no mount, and the kernel makes no user namespace there, lest it be a way out.
    if case.errno == e.EPERM and _mounts() and "/" not in dict(_mounts()):
        return "This process lives in a chroot, which has no user namespaces: use pivot_root, not chroot."
    return ""


def _too_many(kinds: Sequence[str]) -> str:
    """ENOSPC: user.max_…_namespaces, here or in a namespace around us, whose value cannot be seen here."""
    values = {f"user.max_{kind}_namespaces": _read(f"/proc/sys/user/max_{kind}_namespaces") for kind in kinds}
    if none := [f"{name}=10000" for name, value in values.items() if value == "0"]:
        return f"The host allows none of them: sudo sysctl -w {' '.join(none)}."
    shown = ", ".join(f"{name} (here {value or 'unknown'})" for name, value in values.items())
    return f"A limit on namespaces is reached: raise {shown}, here or in the container around this process."


def _root_of_little() -> bool:
    """Whether this is root of a user namespace that maps few uids: it lacks what root has."""
    ids = sum(int(line.split()[2]) for line in _read("/proc/self/uid_map").splitlines())
    return os.geteuid() == 0 and ids < _ALL_IDS


def _maps(case: _Case) -> str:
    """A write to uid_map or gid_map was refused, or the file was not there."""
    if case.errno == e.ENOENT:
        return "Mount the /proc of this process' own PID namespace: mount -t proc proc /proc."
    if _root_of_little():
        return (
            "This root is root of a user namespace only, and its map (/proc/self/uid_map) lacks the uid that "
            "containers run under: run it as an ordinary user instead."
        )
    return _refused(case)


# ---- Files ------------------------------------------------------------------------------------------


def _mount(case: _Case) -> str:
    path = case.path
    if case.errno == e.ENOSPC and case.call == "move_mount":
        return "There are too many mounts: raise fs.mount-max, or bind fewer folders that have mounts below."
    if case.errno in {e.ENOSPC, e.EDQUOT}:
        return "The container's own files do not fit: give more with --disk."
    if case.errno == e.EROFS:
        return f"{path} would lie in a folder that is read-only inside: take another place, such as /mnt/…."
    misplaced = {e.ENOTDIR, e.EISDIR, e.ENOENT, e.ELOOP, e.ENAMETOOLONG, e.EXDEV, e.EEXIST}
    if case.errno in misplaced or (case.call == "move_mount" and case.errno == e.EINVAL):
        return f"{path} is no place for it (a file goes on a file, a folder on a folder): take another."
    return _refused(case)


def _source(case: _Case) -> str:
    """A folder or file of the host could not be taken."""
    path = case.path
    if case.errno == e.EINVAL:
        points = sorted({point for point, _ in _mounts() if point.startswith(path.rstrip("/") + "/")})
        names = ", ".join(points[:_MOUNTS_SHOWN]) + (" and more" if len(points) > _MOUNTS_SHOWN else "")
        below = f"{path} has mounts below it{f' ({names})' if names else ''}"
        return f"{below}, which copy-on-write does not reach: take another folder with -w, or bind it :ro."
    if case.errno == e.ENOENT:
        return f"{path} is not there any more: bind something else, or take another folder with -w."
    if case.errno == e.EACCES:
        return f"You may not reach {path}: take another, or have chmod o+x done on the folders above it."
    if case.errno == e.ENOSPC:
        return _too_many(["mnt"])
    if case.errno == e.EPERM and _root_of_little() and _status("Seccomp") == "0":
        return (
            "This root is root of a user namespace that its mount namespace does not belong to: begin with "
            "one that does (unshare --user --map-root-user --mount …), or run it as an ordinary user."
        )
    return _mount(case)


def _file_system(case: _Case) -> str:
    """A fresh proc, devpts or overlay could not be made."""
    if case.errno == e.ENODEV:
        return f"This kernel has no {case.path}: sudo modprobe {case.path}, or leave out what needs it."
    if case.path == "proc" and case.errno in {e.EPERM, e.EACCES}:
        around = _surroundings() or f"Start the container around this process so: {_DOCKER} …"
        return f"Parts of /proc are covered here, and then the kernel gives no fresh one. {around}"
    if case.path == "overlay" and case.call != "fsopen" and case.errno in {e.EPERM, e.EINVAL, e.EOPNOTSUPP}:
        trees = [step.call for step in case.before if step.call.startswith('move_mount(tree of "')]
        folder = trees[-1].split('"')[1] if trees else ""
        where = f"{folder} (on {_kind_of(folder)})" if folder else "The working directory or a :cow folder"
        return f"{where} cannot lie under copy-on-write: take another folder with -w, or bind it :ro."
    return _mount(case)


def _workdir(case: _Case) -> str:
    if case.errno == e.EACCES:
        return f"Its user may not enter {case.path}: take another folder with -w, or add mount to --ns."
    return f"{case.path} is not there inside: take another folder with -w."


# ---- Limits -----------------------------------------------------------------------------------------


def _fork(case: _Case) -> str:
    return _processes() if case.errno == e.EAGAIN else _refused(case)


def _group(case: _Case) -> str:
    """A process could not be put into its control group."""
    match case.errno:
        case e.EAGAIN:
            return _processes()
        case e.EBUSY | e.EOPNOTSUPP:
            return f"Its group has processes of its own, or is no plain domain: run this process {_DELEGATE}"
        case e.ENOSPC:
            return "Its cpuset is empty: write CPUs to cpuset.cpus and a node to cpuset.mems above it."
        case e.ENOENT | e.ENODEV:
            return "Somebody removed the container's group: run it again."
        case e.EINVAL:
            return "No real-time process goes into a group for CPU time: start this process without chrt."
    return f"Run this process as root, or {_DELEGATE}"


def _identity(case: _Case) -> str:
    """A change of user or group was refused."""
    return _processes() if case.errno == e.EAGAIN else _maps(case)


def _filter(case: _Case) -> str:
    """The payload's own filter of system calls, or no_new_privs before it, was refused."""
    if case.errno in {e.EINVAL, e.ENOSYS} and _status("Seccomp") == "0":
        return "This kernel was built without CONFIG_SECCOMP_FILTER, which containers need: use another one."
    return _refused(case)


def _landlock(case: _Case) -> str:
    if case.errno in {e.ENOSYS, e.EOPNOTSUPP}:
        return "This kernel has no Landlock, or it is switched off: boot with lsm=landlock,… (Linux 5.13)."
    return _refused(case)


def _rlimit(case: _Case) -> str:
    if "RLIMIT_NPROC," in case.text:
        return "It is above this process' own hard limit: ask for fewer with --pids, or raise ulimit -Hu."
    return "It is above this process' own hard limit: raise that (ulimit -H), or ask for less."


def _join(case: _Case) -> str:
    if case.call == "readlink":
        return (
            "What a job leaves behind in a container that is kept is looked for in its /proc, and here that "
            "shows no processes: run each cell in a container of its own, or see `nsmagic doctor`."
        )
    if case.call == "waitpid":
        return "Most likely there was no memory left in the container that was joined: see its limit (--mem)."
    return _refused(case)


# ---- Networks --------------------------------------------------------------------------------------


def _network(case: _Case) -> str:
    """What is built from outside: a lab's cable, or pasta's device."""
    if case.errno in {e.ECONNRESET, e.EPIPE}:
        return "The lab's holder, or pasta's guard, died: create the network again, or run it again."
    if case.errno in {e.EOPNOTSUPP, e.ENODEV} and case.call != "execve":
        return "This kernel has no bridges or no veth devices: sudo modprobe --all bridge veth."
    if case.call == "execve" and case.errno == e.EADDRINUSE:
        return "Publish another port, or end what listens on that one: ss -tulnp shows it."
    if case.call == "execve" and "interface" in case.text:
        return "Pasta needs a default route on the host: ip route show default says whether there is one."
    return _refused(case)


_ANYWHERE: Final = {
    e.EMFILE: "Allow more open files (ulimit -n 4096), or bind fewer files and folders.",
    e.ENFILE: "The host has too many open files: end something, or raise fs.file-max.",
    e.ETOOMANYREFS: "Too many descriptors of this user are on their way between processes: raise ulimit -n.",
    e.EUSERS: "There are too many user namespaces inside each other: start fewer containers in containers.",
    e.ENOMEM: "The kernel had no memory for it: end something, or raise the limit of your own group.",
}
_SUBJECTS: Final[dict[str, Callable[[_Case], str]]] = {
    "clone3": _clone, "clone": _clone, "unshare": _clone, "fork": _fork, "open_tree": _source,
    "fsopen": _file_system, "fsconfig": _file_system, "fsmount": _file_system, "chdir": _workdir,
    "setrlimit": _rlimit, "setresuid": _identity, "setresgid": _identity,
    # By step, where the call does not tell:
    "cgroup": _group, "userns": _maps, "sources": _mount, "mount": _mount, "seccomp": _filter,
    "landlock": _landlock, "join": _join, "net": _network, "network": _network,
}  # fmt: skip
