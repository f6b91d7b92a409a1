"""``--explain`` of a run that fails: each step is made to fail for real, and then step, call, errno and remedy are told.

A refusal by a system-call filter is the kernel's own answer too: that is how containers around us, and the
sandboxes of services, refuse.  Where a cause can be had without a filter, it is that cause.
"""

from __future__ import annotations

import errno as e
import json
import os
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from refusals import FILTER, HOME, NUMBERS, refused

from nsmagic.result import Step

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.container, pytest.mark.xdist_group("explain failures")]

# Both ways in one process: the command line, then the magic in an IPython.
SHOW = """
import atexit, contextlib, io, json, os, sys
from nsmagic.launcher import client

def from_now_on(action):
    "Have something done after all checks, before each container is built, or a blank becomes one."
    from nsmagic.container import Container
    def doing_it_first(name):
        method = getattr(Container, name)
        def after(self, *words, **given):
            action()
            return method(self, *words, **given)
        setattr(Container, name, after)
    doing_it_first("start")
    doing_it_first("become")

def launcher():
    "The launcher's process id, once it is ready."
    client.expect("programs")
    started = client.start()
    started.wait_ready()
    return started.pid

def show(options):
    from nsmagic import cli
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        status = cli.main(["run", "--explain", *options, "-c", "print(1)"])
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    config = Config()
    config.HistoryManager.enabled = False
    shell, shown = InteractiveShell.instance(config=config), []
    shell.display_pub.publish = lambda data, *rest, **named: shown.append(data)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shell.run_cell("%load_ext nsmagic").raise_error()
        import shlex
        line = shlex.join(["%%contain", "--explain", *options]).replace("'%%contain'", "%%contain")
        result = shell.run_cell(line + "\\nprint(1)", store_history=False)
        error = result.error_in_exec
        shell.run_cell("%unload_ext nsmagic")
    print(json.dumps([status, said.getvalue(), repr(error), shown]))
"""


class Told(NamedTuple):
    """What somebody was shown: in a shell, and in a notebook."""

    status: int
    shell: str
    error: str
    displays: list[dict[str, str]]


def told(
    before: str, options: list[str], rules: list[tuple[Any, ...]], folder: Path, wrapped: Sequence[str] = ()
) -> Told:
    """Run both ways.

    Args:
        before: code that is run first.
        options: of both.
        rules: calls that are refused; see ``refusals.refused``.
        folder: where to run.
        wrapped: words to put before the command.
    """
    code = f"{SHOW}\n{textwrap.dedent(before)}\nshow({options!r})\n"
    words = []
    if rules:
        code = FILTER + code
        words = [json.dumps([(NUMBERS[call], *rest) for call, *rest in rules])]
    command = [*wrapped, sys.executable, "-c", code, *words]
    environment = {**os.environ, "PYTHONPATH": HOME}
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, cwd=folder, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    return Told(*json.loads(ran.stdout.splitlines()[-1]))


def point(text: str, name: str) -> str:
    """One line of what is told first."""
    found = re.search(rf"^  {re.escape(name)}: +(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def check(found: Told, step: str, call: str | tuple[str, ...], errno: int, remedy: str) -> None:
    """Step, call, errno by name and in words, and remedy are in the text, and in the picture's words too."""
    assert found.status == 125, found.shell
    (display,) = found.displays
    answer = f"{e.errorcode[errno]}, {os.strerror(errno)}"
    for text in (found.shell, display["text/plain"]):
        assert re.fullmatch(step, point(text, "step")), text
        assert point(text, "call").startswith(call), text
        assert point(text, "the kernel's answer") == answer
        assert point(text, "made by") in {"launcher", "init", "payload"}
        assert point(text, "what it is for"), "each call has a reason"
        assert point(text, "manual page")
        assert remedy in point(text, "what to do")
        assert f"FAILED: {answer}" in text, "and it is marked in the table"
        assert text.count("FAILED") == 1
        assert re.search(r"^\w+ +\S+ *\|.*X", text, re.MULTILINE), "and in the time line"
    for words in (point(display["text/plain"], "step"), answer):
        assert words.replace("'", "&#x27;") in display["text/html"]
    assert "StartError" in found.error
    assert remedy in found.error


# ---- Calls that something around us refuses -------------------------------------------------------------

FILTERED = "A system-call filter around this process may have refused it"
NAMESPACES_ONLY = ["--ns", "user,pid,uts", "-w", "/"]
NEWCGROUP, NEWTIME, CHILD_SETTID, NEWUSER = 0x02000000, 0x80, 0x01000000, 0x10000000
DUPFD_CLOEXEC, NOSIGNAL, CMSG_CLOEXEC, SIFFLAGS = 1030, 0x4000, 0x40000000, 0x8914
SET_DUMPABLE, SET_SECCOMP, CAPBSET_DROP, NO_NEW_PRIVS, CAP_AMBIENT = 4, 22, 24, 38, 47

REFUSED: dict[str, tuple[list[tuple[Any, ...]], list[str], str, str, int, str]] = {
    # Which calls are refused; options; then step, call, errno and remedy that must be told.
    # Threads are made by clone3 too, so that only the older call can be refused for containers alone.
    "clone": (
        [("clone3", e.ENOSYS, 0), ("clone", e.EPERM, NEWUSER)], [], "clone", "clone(flags=", e.EPERM, FILTERED,
    ),
    "clone too deep": (
        [("clone3", e.ENOSYS, 0), ("clone", e.EUSERS, NEWUSER)],
        [], "clone", "clone(flags=", e.EUSERS, "fewer containers in containers",
    ),
    "clone without memory": (
        [("clone3", e.ENOSYS, 0), ("clone", e.ENOMEM, NEWUSER)],
        [], "clone", "clone(flags=", e.ENOMEM, "end something",
    ),
    "cgroup namespace": ([("unshare", e.EPERM, NEWCGROUP)], [], "cgroup", "unshare(", e.EPERM, FILTERED),
    "time namespace": ([("unshare", e.EPERM, NEWTIME)], [], "time", "unshare(", e.EPERM, FILTERED),
    "sources": ([("open_tree", e.EPERM, 0)], [], "sources", 'open_tree("/', e.EPERM, FILTERED),
    "sources out of reach": ([("open_tree", e.EACCES, 0)], [], "sources", 'open_tree("/', e.EACCES, "chmod o+x"),
    "sources, old": ([("open_tree", e.ENOSYS, 0)], [], "sources", 'open_tree("/', e.ENOSYS, "needs Linux 5.2"),
    "sources read-only": ([("mount_setattr", e.EPERM, 0)], [], "sources", "mount_setattr(", e.EPERM, FILTERED),
    "group": ([("setresgid", e.EPERM, 0)], [], "userns", "setresgid(", e.EPERM, FILTERED),
    "user": ([("setresuid", e.EAGAIN, 0)], [], "userns", "setresuid(", e.EAGAIN, "Too many processes"),
    "dumpable": (
        [("prctl", e.EPERM, 0, [0, SET_DUMPABLE])], [], "userns", "prctl(PR_SET_DUMPABLE", e.EPERM, FILTERED,
    ),
    "fork": ([("clone", e.EAGAIN, CHILD_SETTID)], [], "fork", "fork()", e.EAGAIN, "Too many processes"),
    "net socket": ([("socket", e.EPERM, 0, [0, 2])], [], "net", "socket(AF_INET", e.EPERM, FILTERED),
    "net up": ([("ioctl", e.EPERM, 0, [1, SIFFLAGS])], [], "net", "ioctl(SIOCSIFFLAGS", e.EPERM, FILTERED),
    "host name": ([("sethostname", e.EPERM, 0)], ["--hostname", "x"], "uts", "sethostname(", e.EPERM, FILTERED),
    "mount": ([("mount", e.EACCES, 0)], [], "mount", 'mount("/", ', e.EACCES, FILTERED),
    "mkdir": ([("mkdir", e.ENOSPC, 0), ("mkdirat", e.ENOSPC, 0)], [], "mount", "mkdir(", e.ENOSPC, "--disk"),
    "scratch told": (
        [("sendmsg", e.ETOOMANYREFS, 0, [2, NOSIGNAL])],
        [], "mount|late", "sendmsg(", e.ETOOMANYREFS, "ulimit -n",  # a blank is sent the rest of its plan first
    ),
    "move_mount": ([("move_mount", e.EPERM, 0)], [], "mount", "move_mount(", e.EPERM, FILTERED),
    "openat2": ([("openat2", e.ENOSYS, 0)], [], "mount", "openat2(root", e.ENOSYS, "needs Linux 5.6"),
    "links": ([("symlinkat", e.EPERM, 0)], [], "mount", "symlink(", e.EPERM, FILTERED),
    "no such file system": ([("fsopen", e.ENODEV, 0)], [], "mount", "fsopen(", e.ENODEV, "This kernel has no"),
    "fsconfig": ([("fsconfig", e.EPERM, 0, [1, 0])], [], "mount", "fsconfig(", e.EPERM, FILTERED),
    "fsmount": ([("fsmount", e.EPERM, 0)], [], "mount", "fsmount(", e.EPERM, FILTERED),
    "new root": ([("fchdir", e.EACCES, 0)], [], "mount", "fchdir(new root)", e.EACCES, FILTERED),
    "pivot_root": ([("pivot_root", e.EBUSY, 0)], [], "mount", "pivot_root(", e.EBUSY, "nsmagic doctor"),
    "old root": ([("umount2", e.EPERM, 0)], [], "mount", "umount2(old root", e.EPERM, FILTERED),
    "init's descriptors": (
        [("close_range", e.ENOSYS, 0, [0, 7])],
        [], "init|late", "close_range(", e.ENOSYS, "needs Linux 5.9",  # a blank's may stand there earlier
    ),
    "payload's descriptors": (
        [("fcntl", e.EMFILE, 0, [1, DUPFD_CLOEXEC], [2, 6])],
        [], "descriptors", "fcntl(F_DUPFD_CLOEXEC)", e.EMFILE, "ulimit -n",
    ),
    "streams": (  # init and the payload put theirs in place at the same time: one of them fails first
        [("dup2", e.EMFILE, 0, [1, 5])],
        [], "descriptors|init", ("dup2(5)", "close_range(7"), e.EMFILE, "ulimit -n",
    ),
    "others' descriptors": (
        [("close_range", e.ENOSYS, 0, [0, 6])], [], "descriptors", "close_range(6", e.ENOSYS, "Linux 5.9",
    ),
    "word to go on": (
        [("sendmsg", e.ETOOMANYREFS, 0, [2, NOSIGNAL])],
        NAMESPACES_ONLY, "go", "sendmsg(payload", e.ETOOMANYREFS, "ulimit -n",
    ),
    "word that is heard": (
        [("recvmsg", e.EPERM, 0, [2, CMSG_CLOEXEC])], [], "go", "recvmsg(go)", e.EPERM, FILTERED,
    ),
    "payload's root": ([("chroot", e.EPERM, 0)], [], "go", 'chroot(".")', e.EPERM, FILTERED),
    "keyring": ([("keyctl", e.EACCES, 0)], [], "session", "keyctl(", e.EACCES, FILTERED),
    "which capabilities": ([("capget", e.EPERM, 0)], [], "capabilities", "capget()", e.EPERM, FILTERED),
    "bounding set": (
        [("prctl", e.EPERM, 0, [0, CAPBSET_DROP])],
        [], "capabilities", "prctl(PR_CAPBSET_DROP, capability=0)", e.EPERM, FILTERED,
    ),
    "ambient set": (
        [("prctl", e.EPERM, 0, [0, CAP_AMBIENT])], [], "capabilities", "prctl(PR_CAP_AMBIENT", e.EPERM, FILTERED,
    ),
    "no capabilities": ([("capset", e.EPERM, 0)], [], "capabilities", "capset(", e.EPERM, FILTERED),
    "no new privileges": (
        [("prctl", e.EPERM, 0, [0, NO_NEW_PRIVS])],
        [], "capabilities", "prctl(PR_SET_NO_NEW_PRIVS", e.EPERM, FILTERED,
    ),
    "seccomp": (
        [("prctl", e.EACCES, 0, [0, SET_SECCOMP])], [], "seccomp", "prctl(PR_SET_SECCOMP", e.EACCES, FILTERED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_is_refused(name: str, quiet: Path) -> None:
    rules, options, *wanted = REFUSED[name]
    check(told("", options, rules, quiet), *wanted)


def test_without_any_namespace_landlock_fails(quiet: Path) -> None:
    no_namespaces = [
        ("clone", e.EPERM, NEWUSER), ("clone3", e.ENOSYS, 0), ("unshare", e.EPERM, 0), ("mount", e.EPERM, 0),
    ]  # fmt: skip
    for call in ("landlock_add_rule", "landlock_restrict_self"):
        rules = [*no_namespaces, (call, e.EPERM, 0)]
        found = told("", ["--best-effort"], rules, quiet)
        check(found, "landlock", call, e.EPERM, FILTERED)


# ---- Causes that are there without any filter -----------------------------------------------------------

# An ordinary user of a user namespace in which there may be no more namespaces of one kind.
NO_MORE = """
test -w /proc/sys/user/max_{kind}_namespaces && echo 0 > /proc/sys/user/max_{kind}_namespaces &&
exec setpriv --inh-caps=-all --ambient-caps=-all "$@"
"""
NO_ROOT = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


@pytest.mark.parametrize(
    ("kind", "step", "call"),
    [
        ("user", "clone", "clone3("),
        ("net", "clone", "clone3("),
        ("uts", "clone", "clone3("),
        ("cgroup", "cgroup", "unshare(CLONE_NEWCGROUP)"),
        ("time", "time", "unshare(CLONE_NEWTIME)"),
    ],
)
def test_no_more_namespaces(kind: str, step: str, call: str, quiet: Path) -> None:
    wrapped = [*NO_ROOT, "--keep-caps", "sh", "-c", NO_MORE.format(kind=kind), "sh"]
    remedy = f"sudo sysctl -w user.max_{kind}_namespaces=10000"
    check(told("", [], [], quiet, wrapped), step, call, e.ENOSPC, remedy)


def test_a_root_without_a_mount_namespace(quiet: Path) -> None:
    found = told("", [], [], quiet, ["unshare", "--user", "--map-root-user"])
    check(found, "sources", "open_tree(", e.EPERM, "(unshare --user --map-root-user --mount …)")


def test_a_place_that_is_read_only_inside(quiet: Path) -> None:
    options = ["--bind", "/usr/share:/usr/no-such/x"]
    check(told("", options, [], quiet), "mount", "openat2(", e.EROFS, "take another place, such as /mnt/")


def test_a_folder_on_a_file(quiet: Path) -> None:
    options = ["--bind", "/usr/share:/etc/passwd"]
    check(told("", options, [], quiet), "mount", "move_mount(", e.EINVAL, "a folder on a folder")


def test_a_bind_that_vanishes_between_the_check_and_the_start(quiet: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    before = f"""
    os.makedirs({str(gone)!r}, exist_ok=True)
    import threading
    def vanish():
        if threading.current_thread() is threading.main_thread():  # another one prepares a blank meanwhile
            os.rmdir({str(gone)!r})
    from_now_on(vanish)
    from nsmagic import filesystem
    resolve = filesystem.resolve_bind
    filesystem.resolve_bind = lambda *given: (os.makedirs({str(gone)!r}, exist_ok=True), resolve(*given))[1]
    """
    found = told(before, ["--bind", f"{gone}:/mnt/x"], [], quiet)
    check(found, "sources", f'open_tree("{gone}"', e.ENOENT, "is not there any more")


def test_a_working_directory_that_cannot_be_copied_on_write(quiet: Path) -> None:
    found = told("", ["-w", "/proc"], [], quiet)
    # Where something is mounted below /proc, it is refused sooner.
    step = point(found.shell, "step")
    call = 'open_tree("/proc"' if step == "sources" else 'fsconfig("overlay"'
    assert step in {"sources", "mount"}
    check(found, step, call, e.EINVAL, "take another folder with -w")
    assert "--best-effort" not in found.shell, "no weaker container could either"


def test_a_full_disk(quiet: Path) -> None:
    found = told("", ["--disk", "8K"], [], quiet)
    check(found, "mount", "", e.ENOSPC, "give more with --disk")
    assert "--best-effort" not in found.shell, "a weaker container would have no more room"


def test_the_launcher_has_too_few_descriptors(quiet: Path) -> None:
    before = """
    import resource
    resource.prlimit(launcher(), resource.RLIMIT_NOFILE, (24, 24))
    """
    # Whichever comes first to the end of them: the sources, or the payload, which puts its own aside.
    check(told(before, [], [], quiet), "sources|descriptors", "", e.EMFILE, "ulimit -n")


def test_the_owner_has_too_few_descriptors(quiet: Path) -> None:
    before = """
    import resource
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)
    from nsmagic import channels
    make = channels.make
    def with_few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, soft[1]))
        try:
            return make()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, soft)
    channels.make = with_few
    """
    found = told(before, [], [], quiet)
    assert found.status == 125
    for text in (found.shell, found.displays[0]["text/plain"]):
        assert point(text, "step") == "channels"
        assert point(text, "the kernel's answer") == f"EMFILE, {os.strerror(e.EMFILE)}"
        assert "ulimit -n" in point(text, "what to do")
        assert "nothing was built" in text


@pytest.mark.ordinary_user
def test_too_many_processes_of_the_user(quiet: Path) -> None:
    before = """
    import resource
    resource.prlimit(launcher(), resource.RLIMIT_NPROC, (1, 1))
    """
    check(told(before, [], [], quiet), "clone", "clone3(", e.EAGAIN, "ulimit -u")


@pytest.mark.root
@pytest.mark.cgroup_v1
def test_too_many_processes_of_the_group(quiet: Path) -> None:
    before = """
    from nsmagic import cgroups
    group = cgroups.own_groups()["pids"].directory + f"/nsmagic-test-{os.getpid()}"
    os.mkdir(group)
    open(group + "/cgroup.procs", "w").write(str(launcher()))
    from_now_on(lambda: open(group + "/pids.max", "w").write("0"))
    def remove():
        client.stop()
        for _ in range(200):
            try:
                return os.rmdir(group)
            except OSError:
                import select
                select.poll().poll(10)
    atexit.register(remove)
    """
    check(told(before, [], [], quiet), "clone", "clone3(", e.EAGAIN, "Too many processes")


@pytest.mark.limits
def test_the_group_is_removed_under_us(quiet: Path) -> None:
    before = """
    from nsmagic.cgroups import directories
    open_joins, open_directory = directories.DirectoryGroup.open_joins, directories.DirectoryGroup.open_directory
    def joins(self):
        opened = open_joins(self)
        if opened:
            directories.rmdir(self.places["memory"])
        return opened
    def directory(self):
        opened = open_directory(self)
        if self.mechanism.interface == "cgroup v2":
            self.remove()
        return opened
    directories.DirectoryGroup.open_joins, directories.DirectoryGroup.open_directory = joins, directory
    """
    found = told(before, ["--mem", "100M"], [], quiet)
    step = point(found.shell, "step")
    assert step in {"cgroup", "clone"}
    answer = e.ENODEV if "ENODEV" in point(found.shell, "the kernel's answer") else e.ENOENT
    check(found, step, "write(tasks" if step == "cgroup" else "clone3(", answer, "run it again")


@pytest.mark.limits
def test_the_group_is_removed_before_anybody_could_join(quiet: Path) -> None:
    before = """
    from nsmagic.cgroups import directories
    open_joins = directories.DirectoryGroup.open_joins
    def remove_first(self):
        self.remove()
        return open_joins(self)
    directories.DirectoryGroup.open_joins = remove_first
    """
    found = told(before, ["--mem", "100M"], [], quiet)
    for text in (found.shell, found.displays[0]["text/plain"]):
        assert point(text, "step") == "cgroup"
        assert point(text, "call").startswith('open("/')
        assert point(text, "the kernel's answer") == f"ENOENT, {os.strerror(e.ENOENT)}"
        assert "run it again" in point(text, "what to do")


def _mechanism() -> str:
    from nsmagic import cgroups

    return cgroups.mechanisms()[0].name


@pytest.mark.ordinary_user
def test_a_limit_above_the_launchers_own(quiet: Path) -> None:
    before = """
    import resource
    resource.prlimit(launcher(), resource.RLIMIT_NPROC, (900, 900))
    """
    if "rlimits" not in _mechanism():
        pytest.skip("host: processes are limited by a group")
    found = told(before, ["--pids", "1000"], [], quiet)
    check(found, "limits", "setrlimit(RLIMIT_NPROC", e.EPERM, "ask for fewer with --pids")


# ---- What could be done another way is no failure ------------------------------------------------------------


def test_a_refusal_that_has_another_way_round_is_not_called_a_failure(quiet: Path) -> None:
    found = told("", [], [("clone3", e.ENOSYS, 0), ("pivot_root", e.EPERM, 0)], quiet)
    assert found.status == 0
    for text in (found.shell, found.displays[-1]["text/plain"]):
        assert "FAILED" not in text
        assert f"refused: ENOSYS, {os.strerror(e.ENOSYS)}; it went on without" in text
        assert f"refused: EPERM, {os.strerror(e.EPERM)}; it went on without" in text


def test_every_call_has_a_reason_where_there_are_no_namespaces(quiet: Path) -> None:
    from nsmagic import reasons

    no_namespaces = [("clone", e.EPERM, NEWUSER), ("clone3", e.ENOSYS, 0), ("unshare", e.EPERM, 0)]
    code = (
        "import json, nsmagic\njournal = nsmagic.run('pass', best_effort=True).check().journal\n"
        "print(json.dumps([list(step) for step in journal]))"
    )
    journal = [Step(*fields) for fields in refused(no_namespaces, code)]
    assert any(step.step == "landlock" for step in journal)
    without = {f"{step.step} {step.call}" for step in journal if not all(reasons.why(step))}
    assert not without


def test_a_bind_that_is_not_there_starts_nothing(quiet: Path) -> None:
    found = told("", ["--bind", "/no/such/folder:/mnt/x"], [], quiet)
    assert found.status == 2
    assert "/no/such/folder" in found.shell
    assert "SpecError" in found.error
    assert not found.displays
