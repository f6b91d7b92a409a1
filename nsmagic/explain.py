"""``--explain``: the journal of a real run as a table and a time line.

Every system call that built a container stands in its journal, with its arguments by name, its result and its
time.  Here like calls become one row, each row gets a sentence that says why the call is made, and its manual
page.  The calls are the run's own: nothing is run again, and nothing is traced.  Pure.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nsmagic.result import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.result import Step

LANES: Final = ("launcher", "joiner", "init", "network", "payload")
"""Who makes the calls: the launcher outside; where namespaces are joined, the process that enters them; init
(PID 1 of a PID namespace of its own); where there is more network than a loopback, who builds it from
outside; and the process that will run the code."""

_LAUNCHER_STEPS: Final = frozenset({"spawn", "sources", "clone"})
_PAYLOAD_STEPS: Final = frozenset({"descriptors", "session", "limits", "payload"})
_SHARED_STEPS: Final = frozenset({"capabilities", "seccomp", "userns", "cgroup", "late", "go", "landlock"})
_JOIN_LANES: Final = {"clone3": "launcher", "clone": "launcher", "mmap": "launcher", "waitpid": "launcher",
                      "readlink": "init"}  # fmt: skip
"""Of the step "join", the calls that are not the joiner's."""

_WHY: Final[dict[str, tuple[str, str]]] = {
    "spawn pipe2": ("A gate at which init waits until its user ids are mapped.", "pipe(2)"),
    "spawn socketpair": ("A way to tell init the rest of the plan.", "socketpair(2)"),
    "sources open_tree": (
        "Take a detached copy of each mount that is to be shown; from here on nobody can swap the path.",
        "open_tree(2)",
    ),
    "sources mount_setattr MOUNT_ATTR_IDMAP": (
        "Show the owner's files as the payload's own: an idmapped mount.",
        "mount_setattr(2)",
    ),
    "sources mount_setattr": (
        "Make each copy read-only, without set-uid programs or devices, and deaf to mounts of the host.",
        "mount_setattr(2)",
    ),
    "join clone3": (
        "Make a process that enters what is joined: out of a user namespace nobody comes back.",
        "clone(2)",
    ),
    "join clone": (
        "Make a process that enters what is joined, the older way: clone3 is refused here.",
        "clone(2)",
    ),
    "join setns CLONE_NEWUSER": (
        "Enter its user namespace: there we may do with the others what is its own affair.",
        "setns(2), user_namespaces(7)",
    ),
    "join setns CLONE_NEWPID": (
        "Have its PID namespace for our children: they see its processes, and end with its PID 1.",
        "setns(2), pid_namespaces(7)",
    ),
    "join setns CLONE_NEWNS": (
        "Enter its mounts: from here on its files are ours.",
        "setns(2), mount_namespaces(7)",
    ),
    "join setns CLONE_NEWNET": (
        "Enter its network: the same devices, ports and abstract sockets.",
        "setns(2), network_namespaces(7)",
    ),
    "join setns CLONE_NEWUTS": ("Share its host name.", "setns(2), uts_namespaces(7)"),
    "join setns CLONE_NEWIPC": (
        "Share its System V objects and message queues.",
        "setns(2), ipc_namespaces(7)",
    ),
    "join setns CLONE_NEWCGROUP": (
        "See its group as the root of all groups.",
        "setns(2), cgroup_namespaces(7)",
    ),
    "join setns CLONE_NEWTIME": ("Share its clocks.", "setns(2), time_namespaces(7)"),
    "join setresgid": ("Be a group that is known in there.", "setresgid(2)"),
    "join setresuid": (
        "Be a user who is known in there: nobody else may make a user namespace.",
        "setresuid(2)",
    ),
    "join prctl": (
        "A change of user made our /proc files root's; take them back.",
        "PR_SET_DUMPABLE(2const)",
    ),
    "join open_tree": (
        "Take a copy of its /proc: a new one takes rights over its PID namespace.",
        "open_tree(2)",
    ),
    "join readlink": (
        "Is this the /proc of our PID namespace? Our descendants are looked for in it.",
        "proc(5)",
    ),
    "offer open": ("Open a namespace, so that others can join it later.", "namespaces(7)"),
    "offer sendmsg": ("Hand them to the owner: nobody will have to look them up by a process id.", "unix(7)"),
    "clone clone3 CLONE_PARENT": (
        "Make init from in here, as a child of the launcher: it is born in what was joined, the rest is new.",
        "clone(2), namespaces(7)",
    ),
    "clone clone CLONE_PARENT": (
        "Make init from in here, as a child of the launcher, the older way: clone3 is refused here.",
        "clone(2), namespaces(7)",
    ),
    "clone clone3": (
        "Make init, in one step, in new namespaces and in its cgroup.",
        "clone(2), namespaces(7)",
    ),
    "clone clone": (
        "Make init in new namespaces, the older way: clone3 is refused here.",
        "clone(2), namespaces(7)",
    ),
    "userns open": ("Open the map of user ids; it can be written once, from outside.", "user_namespaces(7)"),
    "userns write": ("Say which user inside is which user outside: nobody special.", "user_namespaces(7)"),
    "userns setresgid": ("Become that group.", "setresgid(2)"),
    "userns setresuid": (
        "Become that user; in its own user namespace it may do all that is still to do.",
        "setresuid(2)",
    ),
    "userns prctl": (
        "A change of user made our /proc files root's; take them back.",
        "PR_SET_DUMPABLE(2const)",
    ),
    "gate read": ("Wait at the gate: before its ids are mapped, init is nobody.", "user_namespaces(7)"),
    "cgroup write": ("Join the groups that limit memory, processes and processor time.", "cgroups(7)"),
    "cgroup unshare": ("See the own group as the root of all groups.", "cgroup_namespaces(7)"),
    "uts sethostname": ("Give the container a name; the host keeps its own.", "uts_namespaces(7)"),
    "net socket": ("Any socket does to speak to the new network stack.", "netdevice(7)"),
    "net ioctl": ("Bring up the loopback device: the only one there is.", "network_namespaces(7)"),
    "net open": (
        "Find the setting that says which ports are root's; each network namespace has its own.",
        "network_namespaces(7)",
    ),
    "net write": ("Let everybody in here serve on any port: nobody in here is root.", "ip(7)"),
    "net send": ("Tell those who build the network from outside that its namespace is there.", "unix(7)"),
    "net recv": ("Wait until they have built it; the payload waits for us.", "unix(7)"),
    "network pidfd_open": ("Hold on to init: the kernel will tell when it has ended.", "pidfd_open(2)"),
    "network open": ("Open the container's network namespace.", "namespaces(7)"),
    "network RTM_NEWLINK": (
        "Lay a cable: what goes into one end comes out of the other, and that is plugged into the bridge.",
        "veth(4), rtnetlink(7)",
    ),
    "network RTM_SETLINK state=up": ("Switch the device on.", "rtnetlink(7)"),
    "network RTM_SETLINK addr_gen_mode": (
        "No address that the kernel makes up: one that the lab gives, and no other.",
        "rtnetlink(7)",
    ),
    "network setns user": (
        "Enter the container's user namespace: the rights over its network belong to it.",
        "setns(2), user_namespaces(7)",
    ),
    "network setns": (
        "Enter the container's network namespace: a socket made in there speaks to its devices.",
        "setns(2)",
    ),
    "network RTM_NEWADDR": ("Give the container's end its address.", "rtnetlink(7)"),
    "network rename": ("Replace the members' /etc/hosts at once: the others know the newcomer.", "hosts(5)"),
    "network execve": (
        "Start pasta: it turns packets of the container into connections of ordinary sockets of the host.",
        "pasta(1)",
    ),
    "network if_nametoindex": ("Find the device that pasta has made.", "if_nametoindex(3)"),
    "network RTM_NEWROUTE": (
        "Make what must not be reached (the host's loopback, clouds' metadata) the container's own.",
        "rtnetlink(7), ip-route(8)",
    ),
    "time unshare": (
        "New clocks, for the children: the time namespace of a process itself never changes.",
        "time_namespaces(7)",
    ),
    "time open": ("Open the offsets of the new clocks, while nobody is in there yet.", "time_namespaces(7)"),
    "time write": ("Let the container's uptime begin at zero.", "time_namespaces(7)"),
    "mount mount MS_PRIVATE": (
        "Cut the ties: what is mounted from here on stays in this namespace.",
        "mount_namespaces(7)",
    ),
    "mount mount": ("One tmpfs holds all that may be written, so that one size limits it all.", "tmpfs(5)"),
    "mount mkdir": ("A place to mount on, or a layer to write into.", "mkdir(2)"),
    "mount open": ("Keep a descriptor of it, for the owner.", "open(2)"),
    "mount sendmsg": ("Hand it to the owner: that is where the list of changes is read from.", "unix(7)"),
    "mount open_tree": ("Take a piece of the scratch file system as a mount of its own.", "open_tree(2)"),
    "mount openat2": ("Find the place in the new root, without leaving it by a link.", "openat2(2)"),
    "mount move_mount": ("Hang the copy in there.", "move_mount(2)"),
    "mount symlink": ("Links as a system has them.", "symlink(2)"),
    "mount write": ("A few files of /etc, made for this container.", "passwd(5), hosts(5)"),
    "mount fsopen": ("Begin a new file system.", "fsopen(2)"),
    "mount fsconfig": ("Set it up.", "fsconfig(2)"),
    "mount fsconfig overlay": (
        "Copy-on-write: the host's folder below, a layer of the container's own above.",
        "overlayfs (kernel documentation)",
    ),
    "mount fsmount": ("Make it a mount.", "fsmount(2)"),
    "mount mount_setattr": ("Make it read-only.", "mount_setattr(2)"),
    "mount fchdir": ("Go to the new root.", "chdir(2)"),
    "mount pivot_root": ("Make it the root, and put the old one on top of it for a moment.", "pivot_root(2)"),
    "mount umount2": ("Let the old root go: from here on the host's files are out of reach.", "umount(2)"),
    "mount chroot": ("Make it the root where pivot_root is refused.", "chroot(2)"),
    "workdir chdir": ("Go to the working directory.", "chdir(2)"),
    "fork fork": ("Make the payload; it is the first in the new clocks.", "fork(2)"),
    "init prctl": ("Nobody in here may look into init.", "PR_SET_DUMPABLE(2const)"),
    "init close_range": ("Keep nothing open but the lifeline, the report and two clocks.", "close_range(2)"),
    "go socketpair": ("A way to tell the payload that its root is there.", "socketpair(2)"),
    "go chroot": ("Make it the root where pivot_root did not take the payload along.", "chroot(2)"),
    "go sendmsg": ("Tell the payload that its root is there.", "unix(7)"),
    "go recvmsg": ("Wait until the root is there; Python warms itself meanwhile.", "unix(7)"),
    "go fchdir": ("Go to the working directory.", "chdir(2)"),
    "late sendmsg": ("Send a container that waited the rest of its plan.", "unix(7)"),
    "late recvmsg": ("Wait for the rest of the plan.", "unix(7)"),
    "capabilities capget": ("Which capabilities are there?", "capabilities(7)"),
    "capabilities prctl PR_CAPBSET_DROP": (
        "Drop each from the bounding set: no program can bring it back.",
        "capabilities(7)",
    ),
    "capabilities prctl PR_CAP_AMBIENT": ("None is inherited by programs.", "capabilities(7)"),
    "capabilities capset": ("Drop all that are held.", "capabilities(7)"),
    "capabilities prctl PR_SET_NO_NEW_PRIVS": (
        "No set-uid program gives any from here on.",
        "PR_SET_NO_NEW_PRIVS(2const)",
    ),
    "seccomp prctl": (
        "Refuse the system calls that nobody in here needs; last, for it would refuse much of the above.",
        "seccomp(2)",
    ),
    "descriptors fcntl": ("Put the payload's descriptors out of each other's way.", "fcntl(2)"),
    "descriptors dup2": ("Standard input, output, error, and the control channel.", "dup(2)"),
    "descriptors close_range": ("Nothing else that the launcher had open goes in.", "close_range(2)"),
    "session setsid": ("A session of its own: no terminal to push keys into.", "setsid(2), TIOCSTI(2const)"),
    "session keyctl": ("A keyring of its own: none of the user's keys.", "session-keyring(7)"),
    "limits setrlimit": ("Limits that the kernel keeps for each process.", "getrlimit(2)"),
    "payload prctl 0)": ("Nobody may look into it until the filter is in force.", "PR_SET_DUMPABLE(2const)"),
    "payload prctl 1)": ("The payload may look into itself.", "PR_SET_DUMPABLE(2const)"),
    "payload sigprocmask": ("No signal is held back.", "sigprocmask(2)"),
}
_BARS: Final = 24
_COLOURS: Final = {
    "launcher": "#5e81ac",
    "joiner": "#b48ead",
    "init": "#a3be8c",
    "network": "#ebcb8b",
    "payload": "#d08770",
}
_WIDTH, _ROW, _LEFT = 760, 18, 130


@dataclass
class Row:
    """One kind of call in one step.

    Attributes:
        lane: who makes it; see ``LANES``.
        step: its subject.
        call: the first such call, with its arguments.
        count: how many there are.
        took: seconds, all together.
        began: seconds since the first call of all.
        result: of the last one.
        failure: the errno of the last one in words; empty where it went well.
        why: one sentence.
        page: the manual page.
    """

    lane: str
    step: str
    call: str
    count: int
    took: float
    began: float
    result: int
    failure: str
    why: str
    page: str

    @property
    def shown(self) -> str:
        """The call, and how many others like it there are."""
        return self.call if self.count == 1 else f"{self.call} and {self.count - 1} more"


def _time_text(seconds: float) -> str:
    """As people write so short a time."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else seconds_text(seconds)  # noqa: PLR2004 - a millisecond


def why(step: Step) -> tuple[str, str]:
    """Why a call is made, and its manual page; empty texts where we have nothing to say."""
    name, _, arguments = step.call.partition("(")
    best = ("", "")
    for key, text in _WHY.items():
        wanted_step, wanted_name, *marks = key.split()
        if (wanted_step, wanted_name) == (step.step, name) and all(mark in arguments for mark in marks):
            if marks:
                return text
            best = text
    return best


def rows(journal: Sequence[Step]) -> list[Row]:
    """The journal with like calls in one row, in the order of their first."""
    found: list[Row] = []
    start = min((step.began for step in journal), default=0.0)
    for step, lane in zip(journal, _lanes(journal), strict=True):
        text, page = why(step)
        same = next((row for row in found if _alike(row, lane, step, text)), None)
        if same is not None:
            same.count += 1
            same.took += step.took
            same.result = step.result
            continue
        began = step.began - start
        found.append(
            Row(lane, step.step, step.call, 1, step.took, began, step.result, step.failure, text, page)
        )
    return found


def _alike(row: Row, lane: str, step: Step, why_text: str) -> bool:
    """Whether a call is one more of a row's."""
    place = (row.lane, row.step, row.why, _name(row.call)) == (lane, step.step, why_text, _name(step.call))
    return place and bool(why_text) and not row.failure and not step.errno


def _name(call: str) -> str:
    return call.partition("(")[0]


def _lanes(journal: Sequence[Step]) -> list[str]:
    """Who made each call."""
    found: list[str] = []
    lane = "launcher"
    for step in journal:
        lane = _lane(step, lane)
        if lane == "joiner":
            # It joined the groups first.
            for number in range(len(found) - 1, -1, -1):
                if journal[number].step != "cgroup":
                    break
                found[number] = lane
        found.append(lane)
    return found


def _lane(step: Step, before: str) -> str:
    """Who made a call.  A step that several have belongs to whoever made the call before it."""
    if step.step == "join":
        return _JOIN_LANES.get(_name(step.call), "joiner")
    if step.step == "userns" and _name(step.call) in {"open", "write"}:
        return "joiner" if before == "joiner" else "launcher"
    if step.step in _LAUNCHER_STEPS:
        return "joiner" if "CLONE_PARENT" in step.call else "launcher"
    if step.step == "late":
        return "launcher" if _name(step.call) == "sendmsg" else "init"
    if step.step == "go":
        return "init" if _name(step.call) in {"socketpair", "sendmsg"} else "payload"
    if step.step in _PAYLOAD_STEPS | {"network"}:
        return "network" if step.step == "network" else "payload"
    if step.step in _SHARED_STEPS and before in {"init", "payload"}:
        return before
    return "init"


def spans(journal: Sequence[Step]) -> list[tuple[str, str, float, float]]:
    """For each lane and step, when it began and ended: seconds since the first call of all."""
    start = min((step.began for step in journal), default=0.0)
    found: list[tuple[str, str, float, float]] = []
    for step, lane in zip(journal, _lanes(journal), strict=True):
        began, ended = step.began - start, step.began - start + step.took
        if found and found[-1][:2] == (lane, step.step):
            found[-1] = (lane, step.step, found[-1][2], max(found[-1][3], ended))
        else:
            found.append((lane, step.step, began, ended))
    return sorted(found, key=lambda span: span[2])


def text(journal: Sequence[Step]) -> str:
    """The table and the time line for a terminal."""
    if not journal:
        return "there is no journal: nothing was built"
    lines = [_timeline_text(journal), ""]
    lane = ""
    for row in rows(journal):
        if row.lane != lane:
            lane = row.lane
            lines.append(f"--- {lane}")
        outcome = f"= {row.result}" if not row.failure else f"FAILED: {row.failure}"
        lines.append(f"{row.step:<13}{row.shown}  {outcome}  [{_time_text(row.took)}]")
        if row.why:
            lines.append(f"{'':<13}{row.why}  ({row.page})")
    return "\n".join(lines)


def _timeline_text(journal: Sequence[Step]) -> str:
    all_spans = spans(journal)
    total = max(ended for _, _, _, ended in all_spans) or 1e-9
    lines = [f"built in {_time_text(total)}"]
    for lane, step, began, ended in all_spans:
        first = int(began / total * _BARS)
        length = max(1, round((ended - began) / total * _BARS))
        bar = (" " * first + "#" * length)[:_BARS].ljust(_BARS)
        lines.append(f"{lane:<9}{step:<13}|{bar}| {_time_text(ended - began)}")
    return "\n".join(lines)


def timeline_svg(journal: Sequence[Step]) -> str:
    """The time line as an SVG picture; every text in it is escaped."""
    all_spans = spans(journal)
    total = max((ended for _, _, _, ended in all_spans), default=0.0) or 1e-9
    height = _ROW * (len(all_spans) + 2)
    parts = []
    for number, (lane, step, began, ended) in enumerate(all_spans):
        y = _ROW * (number + 1)
        x = _LEFT + began / total * (_WIDTH - _LEFT - 90)
        width = max(2.0, (ended - began) / total * (_WIDTH - _LEFT - 90))
        parts.append(f'<text x="4" y="{y + 12}">{html.escape(step)}</text>')
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="12" fill="{_COLOURS[lane]}"/>'
        )
        parts.append(
            f'<text x="{x + width + 4:.1f}" y="{y + 12}" fill="#666">{_time_text(ended - began)}</text>'
        )
    legend = "".join(
        f'<rect x="{_LEFT + 110 * i}" y="3" width="10" height="10" fill="{_COLOURS[lane]}"/>'
        f'<text x="{_LEFT + 110 * i + 14}" y="12">{lane}</text>'
        for i, lane in enumerate(each for each in LANES if each in {span[0] for span in all_spans})
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f"{legend}{''.join(parts)}</svg>"
    )


def bundle(journal: Sequence[Step]) -> dict[str, str]:
    """For ``display``: text, and HTML with the picture and the table."""
    if not journal:
        return {"text/plain": text(journal), "text/html": f"<p>{html.escape(text(journal))}</p>"}
    picture = base64.b64encode(timeline_svg(journal).encode()).decode()
    cell = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
    lines = []
    for row in rows(journal):
        outcome = str(row.result) if not row.failure else f"<b>{html.escape(row.failure)}</b>"
        lines.append(
            f'<tr><td style="{cell};border-left:6px solid {_COLOURS[row.lane]};padding-left:6px">'
            f"{html.escape(row.step)}</td>"
            f'<td style="{cell};font-family:monospace;overflow-wrap:anywhere">{html.escape(row.shown)}</td>'
            f'<td style="{cell}">{outcome}</td>'
            f'<td style="{cell};white-space:nowrap">{_time_text(row.took)}</td>'
            f'<td style="{cell}">{html.escape(row.why)} <i>{html.escape(row.page)}</i></td></tr>'
        )
    head = "".join(
        f'<td style="{cell};font-weight:bold">{name}</td>'
        for name in ("step", "call", "result", "time", "why")
    )
    table = f'<table style="border-collapse:collapse;font-size:90%"><tr>{head}</tr>{"".join(lines)}</table>'
    image = f'<img alt="when each step ran" src="data:image/svg+xml;base64,{picture}"/>'
    return {"text/plain": text(journal), "text/html": image + table}
