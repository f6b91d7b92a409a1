"""Why each system call that builds a container is made, and its manual page: one sentence each.  Pure.

The keys are a step, a call's name, and where one call has several uses a mark that its arguments hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nsmagic.result import Step

WHY: Final[dict[str, tuple[str, str]]] = {
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
    "cgroup openat": ("Open the list of the group's processes.", "cgroups(7)"),
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
    "mount mount MS_MOVE": (
        "Where pivot_root is refused: move the new root on top of the old one.",
        "mount(2), pivot_root(2)",
    ),
    "mount stat": ("Look whether there is a way back to the old root: there must be none.", "chroot(2)"),
    "mount mount overlay": (
        "The image's layers, one over the other, and an empty one on top that takes what is written.",
        "overlayfs (kernel documentation)",
    ),
    "mount mount": ("One tmpfs holds all that may be written, so that one size limits it all.", "tmpfs(5)"),
    "mount mkdir": ("A place to mount on, or a layer to write into.", "mkdir(2)"),
    "mount open O_PATH": ("Hold on to the new root.", "open(2)"),
    "mount unlinkat": (
        "What the image has in the place of our own file must not be written through; it may be a link.",
        "unlink(2)",
    ),
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
    "init prctl PR_SET_CHILD_SUBREAPER": (
        "Without a PID namespace: orphans in here become init's children, so that it can end them.",
        "PR_SET_CHILD_SUBREAPER(2const)",
    ),
    "init prctl": ("Nobody in here may look into init.", "PR_SET_DUMPABLE(2const)"),
    "init close_range": ("Keep nothing open but the lifeline, the report and two clocks.", "close_range(2)"),
    "go socketpair": ("A way to tell the payload that its root is there.", "socketpair(2)"),
    "go chroot": ("Make it the root where pivot_root did not take the payload along.", "chroot(2)"),
    "go sendmsg": ("Tell the payload that its root is there.", "unix(7)"),
    "go recvmsg": ("Wait until the root is there; Python warms itself meanwhile.", "unix(7)"),
    "go fchdir": ("Go to the working directory.", "chdir(2)"),
    "late sendmsg": ("Send a container that waited the rest of its plan.", "unix(7)"),
    "late close_range": (
        "Keep nothing open that others wait to see closed; this may take long.",
        "close_range(2)",
    ),
    "late recvmsg": ("Wait for the rest of the plan.", "unix(7)"),
    "identity setgroups": ("Leave root's groups.", "setgroups(2)"),
    "identity setresgid": ("Become a group that is nobody's.", "setresgid(2)"),
    "identity setresuid": (
        "Become a user who is nobody; there is no user namespace to do it in.",
        "setresuid(2)",
    ),
    "landlock landlock_create_ruleset VERSION": ("Which Landlock does this kernel have?", "landlock(7)"),
    "landlock landlock_create_ruleset": (
        "Without namespaces: forbid what Landlock can forbid, files first of all.",
        "landlock_create_ruleset(2)",
    ),
    "landlock open": ("Find a file or folder that may be used all the same.", "open(2)"),
    "landlock landlock_add_rule": ("Allow it, and what lies below it.", "landlock_add_rule(2)"),
    "landlock landlock_restrict_self": (
        "Put it in force for this process and all that it starts, for good.",
        "landlock_restrict_self(2)",
    ),
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
WAITS: Final = frozenset({("gate", "read"), ("late", "recvmsg"), ("go", "recvmsg"), ("net", "recv")})
"""Step and name of the calls that only wait for another process."""


def why(step: Step) -> tuple[str, str]:
    """Why a call is made, and its manual page; empty texts where we have nothing to say."""
    name, _, arguments = step.call.partition("(")
    best = ("", "")
    for key, text in WHY.items():
        wanted_step, wanted_name, *marks = key.split()
        if (wanted_step, wanted_name) == (step.step, name) and all(mark in arguments for mark in marks):
            if marks:
                return text
            best = text
    return best


def waits(step: Step) -> bool:
    """Whether a call only waits for another process."""
    return (step.step, step.call.partition("(")[0]) in WAITS
