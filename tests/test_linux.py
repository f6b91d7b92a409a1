"""Each system call for students, made for real in a process of its own; each hint, provoked for real.

Every test starts a Python that does it and says what came of it: as root and as an ordinary user, whose rights come
from a user namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import linux, linux_constants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PRELUDE = """
import errno, json, os, signal, socket, sys, threading
from nsmagic.linux import *

UID, GID = os.getuid(), os.getgid()

def refused(call, *arguments, **named):
    "How a call failed."
    try:
        call(*arguments, **named)
    except OSError as error:
        assert isinstance(error, LinuxError), error
        is_a = [each.__name__ for each in type(error).__mro__]
        return {"errno": errno.errorcode[error.errno], "hint": error.hint, "text": str(error), "is_a": is_a}
    return None

def become_root(flags=0):
    "Root of a user namespace of our own."
    unshare(CLONE_NEWUSER | flags)
    deny_setgroups("self")
    write_id_map("self", "uid", [(0, UID, 1)])
    write_id_map("self", "gid", [(0, GID, 1)])

def in_child(function):
    "What a function gives in a forked child."
    out, into = os.pipe()
    pid = fork()
    if pid == 0:
        os.write(into, json.dumps(function()).encode())
        os._exit(0)
    os.close(into)
    with open(out) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)

def is_mount(path):
    return any(line.split()[4] == path for line in open("/proc/self/mountinfo"))
"""

Child = Any


@pytest.fixture
def child(tmp_path: Path) -> Callable[[str], Any]:
    """Run code in a process of its own; what it calls ``answer`` comes back, as JSON carries it."""

    def run(code: str) -> Any:
        whole = f"{PRELUDE}\n{textwrap.dedent(code)}\nprint(json.dumps(answer), flush=True)"
        done = subprocess.run(
            [sys.executable, "-c", whole],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def failed(found: dict[str, Any] | None, error: str, *words: str) -> None:
    """Check an errno, and what the hint says."""
    assert found is not None, "the call was not refused"
    assert found["errno"] == error, found
    for word in words:
        assert word in found["hint"], found
    assert found["hint"] in found["text"]


# ---- constants ------------------------------------------------------------------------------

HEADERS = """
#include <stdio.h>
#include <sys/syscall.h>
#include <linux/sched.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <linux/audit.h>
#include <stddef.h>
#define MNT_FORCE 1
#define MNT_DETACH 2
#define MNT_EXPIRE 4
#define UMOUNT_NOFOLLOW 8
#define SECCOMP_DATA_NR offsetof(struct seccomp_data, nr)
#define SECCOMP_DATA_ARCH offsetof(struct seccomp_data, arch)
#define SECCOMP_DATA_ARGS offsetof(struct seccomp_data, args)
#define BPF_RET_K (BPF_RET | BPF_K)
#define BPF_JMP_JA (BPF_JMP | BPF_JA)
#define BPF_JMP_JEQ_K (BPF_JMP | BPF_JEQ | BPF_K)
#define BPF_JMP_JGT_K (BPF_JMP | BPF_JGT | BPF_K)
#define BPF_JMP_JGE_K (BPF_JMP | BPF_JGE | BPF_K)
#define BPF_JMP_JSET_K (BPF_JMP | BPF_JSET | BPF_K)
#define BPF_LD_W_ABS (BPF_LD | BPF_W | BPF_ABS)
#define BPF_ALU_AND_K (BPF_ALU | BPF_AND | BPF_K)
"""


def members() -> dict[str, int]:
    kinds = [kind for kind in vars(linux_constants).values() if hasattr(kind, "__members__")]
    return {name: int(member) for kind in kinds for name, member in kind.__members__.items()}


def test_bare_names_are_the_members() -> None:
    found = members()
    assert len(found) > 100
    for name, value in found.items():
        assert getattr(linux, name) == value
        assert getattr(linux, name).name == name


def test_constants_and_numbers_are_the_kernels(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("host: no program cc")
    numbers = {f"SYS_{name}": value for name, value in linux._NUMBERS[os.uname().machine].items()}
    expected = {**members(), **numbers}
    body = "".join(f'printf("{name} %llu\\n", (unsigned long long)({name}) & ~0ULL);' for name in expected)
    (tmp_path / "all.c").write_text(f"{HEADERS}\nint main(void) {{ {body} return 0; }}")
    subprocess.run(["cc", "-w", "-o", tmp_path / "all", tmp_path / "all.c"], check=True)
    text = subprocess.run([tmp_path / "all"], capture_output=True, text=True, check=True).stdout
    assert {name: int(value) for name, value in map(str.split, text.splitlines())} == expected


# ---- each call, for real ------------------------------------------------------------------------


def test_unshare_and_sethostname(child: Child) -> None:
    here = os.uname().nodename
    answer = child(
        """
        before = getns()
        become_root(CLONE_NEWUTS)
        sethostname("box")
        answer = [socket.gethostname(), [kind for kind, inode in getns().items() if before[kind] != inode]]
        """
    )
    assert answer == ["box", ["user", "uts"]]
    assert os.uname().nodename == here


def test_getns_tells_who_shares_what(child: Child) -> None:
    assert child("answer = getns()") == linux.getns() == linux.getns(os.getpid())
    with pytest.raises(FileNotFoundError):
        linux.getns(2**22 + 1)


def test_id_maps_make_the_caller_root_inside(child: Child) -> None:
    answer = child(
        "become_root()\nanswer = [os.getuid(), os.getgid(), open('/proc/self/uid_map').read().split()]"
    )
    assert answer == [0, 0, ["0", str(os.getuid()), "1"]]


def test_an_id_map_is_written_from_outside(child: Child) -> None:
    answer = child(
        """
        ready, go = os.pipe(), os.pipe()
        pid = fork()
        if pid == 0:
            unshare(CLONE_NEWUSER)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(os.getuid())
        os.read(ready[0], 1)
        deny_setgroups(pid)
        write_id_map(pid, "uid", [(7, UID, 1)])
        write_id_map(pid, "gid", [(7, GID, 1)])
        os.write(go[1], b"x")
        answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """
    )
    assert answer == 7


def test_setns_enters_and_comes_back(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWUTS)
        sethostname("first")
        first = os.open("/proc/self/ns/uts", os.O_RDONLY)
        unshare(CLONE_NEWUTS)
        sethostname("second")
        answer = [socket.gethostname()]
        setns(first, CLONE_NEWUTS)
        answer.append(socket.gethostname())
        """
    )
    assert answer == ["second", "first"]


def test_clone3_makes_a_child_in_new_namespaces(child: Child) -> None:
    answer = child(
        """
        out, into = os.pipe()
        pid = clone3(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWUTS)
        if pid == 0:
            sethostname("inner")
            import threading
            thread = threading.Thread(target=lambda: os.write(into, b"thread,"))
            thread.start(); thread.join()
            grandchild = fork()
            if grandchild == 0:
                os._exit(3)
            status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
            os.write(into, f"{os.getpid()},{grandchild},{status},{socket.gethostname()}".encode())
            os._exit(0)
        os.close(into)
        answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open(out).read(), socket.gethostname()]
        """
    )
    assert answer == [0, "thread,1,3,3,inner", os.uname().nodename]


def test_clone3_refuses_what_no_python_survives(child: Child) -> None:
    answer = child(
        """
        answer = []
        for flag in (CLONE_FILES, 0x100, 0x10000):
            try:
                clone3(flag)
            except ValueError as error:
                answer.append(str(error))
        """
    )
    assert [text.split()[-1] for text in answer] == ["CLONE_FILES", "0x100", "0x10000"]


def test_clone3_into_a_cgroup_takes_a_descriptor_of_one(child: Child) -> None:
    found = child("answer = refused(clone3, cgroup=os.open('.', os.O_RDONLY))")
    assert found["errno"] == "EBADF"
    assert "CLONE_INTO_CGROUP" in found["text"]


def test_mount_bind_remount_and_umount2(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        for name in ("a", "b"):
            os.mkdir(name)
        here = os.getcwd()
        mount("none", "a", "tmpfs", MS_NOSUID, "size=1M")
        open("a/file", "w").write("x")
        mount("a", "b", None, MS_BIND)
        answer = [os.listdir("b"), is_mount(here + "/b")]
        mount(None, "b", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
        try:
            open("b/other", "w")
        except OSError as error:
            answer.append(errno.errorcode[error.errno])
        umount2("b")
        used = open("a/file")
        answer.append(refused(umount2, "a"))
        umount2("a", MNT_DETACH)
        answer += [os.listdir("a"), used.read()]
        """
    )
    busy = answer.pop(3)
    assert answer == [["file"], True, "EROFS", [], "x"]
    failed(busy, "EBUSY", "MNT_DETACH")


def test_a_path_is_taken_whole_or_not_at_all(child: Child) -> None:
    with pytest.raises(ValueError, match="zero byte"):
        linux.umount2("/tmp\0/x")


NEW_ROOT = """
become_root(CLONE_NEWNS)
mount("none", "/", None, MS_REC | MS_PRIVATE)
os.makedirs("new")
mount("none", "new", "tmpfs")
os.mkdir("new/old")
"""


def test_pivot_root_leaves_no_way_back(child: Child) -> None:
    answer = child(
        f"""
        {textwrap.indent(NEW_ROOT, " " * 8).strip()}
        pivot_root("new", "new/old")
        os.chdir("/")
        answer = [os.listdir("/"), "proc" in os.listdir("/old")]
        umount2("/old", MNT_DETACH)
        for _ in range(3):  # the classic way out of a chroot
            os.makedirs("x", exist_ok=True)
            chroot("x")
            for _ in range(20):
                os.chdir("..")
            chroot(".")
        answer.append(sorted(os.listdir("/")))
        """
    )
    assert answer == [["old"], True, ["old", "x"]]


def test_chroot_and_the_way_out(child: Child) -> None:
    answer = child(
        """
        become_root()
        os.makedirs("jail/below")
        here = os.getcwd()
        chroot("jail")
        os.chdir("/")
        answer = [os.listdir("/"), os.path.exists(here)]
        chroot("below")
        for _ in range(20):
            os.chdir("..")
        chroot(".")
        answer.append(os.path.exists(here))
        """
    )
    assert answer == [["below"], False, True]


def test_capabilities_go_and_do_not_come_back(child: Child) -> None:
    answer = child(
        """
        become_root()
        whole = capget()
        fewer = whole.permitted - {CAP_CHOWN}
        capset(fewer, fewer)
        now = capget()
        capset(set(), fewer)
        answer = [
            CAP_CHOWN in whole.effective, CAP_CHOWN in now.permitted, len(whole.permitted - now.permitted),
            sorted(capget().effective), capget(os.getpid()) == capget(), repr(max(capget().permitted)),
            refused(capset, whole.effective, whole.permitted),
        ]
        """
    )
    assert answer[:5] == [True, False, 1, [], True]
    assert answer[5].startswith("<Capability.CAP_")
    failed(answer[6], "EPERM", "never comes back")


def test_prctl(child: Child) -> None:
    answer = child(
        """
        become_root()
        answer = [prctl(PR_GET_NO_NEW_PRIVS), prctl(PR_SET_NO_NEW_PRIVS, 1), prctl(PR_GET_NO_NEW_PRIVS)]
        prctl(PR_SET_NAME, "renamed")
        answer.append(open("/proc/self/comm").read())
        answer.append(prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN))
        prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN)
        answer.append(prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN))
        capset([], [])
        answer += [refused(prctl, PR_CAPBSET_DROP, CAP_CHOWN), refused(prctl, 99999)]
        """
    )
    assert answer[:6] == [0, 0, 1, "renamed\n", 1, 0]
    failed(answer[6], "EPERM", "CAP_SETPCAP")
    failed(answer[7], "EINVAL", "unknown operation")
    assert answer[6]["text"].startswith("prctl(PR_CAPBSET_DROP, CAP_CHOWN, 0, 0, 0): EPERM")


FILTER = """
def answers(number, value):
    "A filter that gives one system call an answer of its own."
    seccomp(SECCOMP_SET_MODE_FILTER, 0, [
        Instruction(BPF_LD_W_ABS, SECCOMP_DATA_NR),
        Instruction(BPF_JMP_JEQ_K, number, jt=0, jf=1),
        Instruction(BPF_RET_K, value),
        Instruction(BPF_RET_K, SECCOMP_RET_ALLOW),
    ])
import platform
from nsmagic import linux
NUMBERS = linux._NUMBERS[platform.machine()]
"""


def test_seccomp_takes_a_call_away(child: Child) -> None:
    answer = child(
        f"""
        {textwrap.indent(FILTER, " " * 8).strip()}
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        answers(NUMBERS["setns"], SECCOMP_RET_ERRNO | errno.EXDEV)
        answer = [refused(setns, 0)["errno"], prctl(PR_GET_SECCOMP)]
        pid = fork()
        if pid == 0:
            answers(NUMBERS["setns"], SECCOMP_RET_KILL_PROCESS)
            setns(0)
        answer.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert answer == ["EXDEV", 2, -31]


# ---- errors, and why ------------------------------------------------------------------------------


def test_an_error_is_of_pythons_class_too(child: Child) -> None:
    answer = child("answer = [refused(chroot, '/no/such'), refused(umount2, '/dev/null')]\n")
    kinds = {"EPERM": "PermissionError", "ENOENT": "FileNotFoundError"}
    assert kinds[answer[0]["errno"]] in answer[0]["is_a"]
    assert "LinuxError" in answer[0]["is_a"]
    assert answer[1]["text"].startswith("umount2(/dev/null, 0): E")


def test_unshare_with_threads(child: Child) -> None:
    answer = child(
        """
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        answer = refused(unshare, CLONE_NEWUSER | CLONE_NEWUTS)
        stop.set()
        """
    )
    failed(answer, "EINVAL", "2 threads", "%%scratch")
    assert answer["text"].startswith("unshare(CLONE_NEWUTS|CLONE_NEWUSER): EINVAL (")


def test_unshare_of_a_second_pid_namespace(child: Child) -> None:
    found = child("become_root(CLONE_NEWPID)\nanswer = refused(unshare, CLONE_NEWPID)")
    failed(found, "EINVAL", "once only")


def test_unshare_without_the_right(child: Child) -> None:
    found = child("capset([], [])\nanswer = refused(unshare, CLONE_NEWUTS)")
    failed(found, "EPERM", "CAP_SYS_ADMIN", "CLONE_NEWUSER")
    assert "PermissionError" in found["is_a"]


def test_unshare_behind_a_chroot(child: Child) -> None:
    found = child("become_root()\nos.mkdir('jail')\nchroot('jail')\nanswer = refused(unshare, CLONE_NEWUSER)")
    failed(found, "EPERM", "behind chroot")


def test_unshare_without_ids_of_its_own(child: Child) -> None:
    found = child("unshare(CLONE_NEWUSER)\nanswer = refused(unshare, CLONE_NEWUSER)")
    failed(found, "EPERM", "uid_map")


def test_the_limit_of_namespaces(child: Child) -> None:
    found = child(
        """
        become_root()
        open("/proc/sys/user/max_uts_namespaces", "w").write("0")
        answer = refused(unshare, CLONE_NEWUTS)
        """
    )
    failed(found, "ENOSPC", "user.max_uts_namespaces", "it is 0")


def test_nobody_is_born_after_pid_1_has_ended(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWPID)
        pid = fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        answer = [refused(fork), refused(clone3)]
        """
    )
    for found in answer:
        failed(found, "ENOMEM", "PID 1", "has ended")


@pytest.mark.ordinary_user  # RLIMIT_NPROC does not bind root
def test_the_limit_of_processes(child: Child) -> None:
    found = child(
        """
        import resource
        become_root()
        capset([], [])
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        answer = refused(fork)
        """
    )
    failed(found, "EAGAIN", "pids.max", "RLIMIT_NPROC")


def test_a_filter_around_us(child: Child) -> None:
    answer = child(
        f"""
        {textwrap.indent(FILTER, " " * 8).strip()}
        become_root()
        answers(NUMBERS["clone3"], SECCOMP_RET_ERRNO | errno.ENOSYS)
        answers(NUMBERS["unshare"], SECCOMP_RET_ERRNO | errno.EPERM)
        answer = [refused(clone3, CLONE_NEWUTS), refused(unshare, CLONE_NEWUTS)]
        """
    )
    failed(answer[0], "ENOSYS", "fork()")
    failed(answer[1], "EPERM", "Docker", "unshare")


def test_setns_says_what_is_wrong_with_the_descriptor(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWUTS)
        user, uts = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("user", "uts"))
        answer = [refused(setns, user), refused(setns, uts, CLONE_NEWNET), refused(setns, 999)]
        capset([], [])
        answer.append(refused(setns, uts))
        """
    )
    failed(answer[0], "EINVAL", "nobody enters twice")
    failed(answer[1], "EINVAL", "another kind")
    failed(answer[2], "EBADF", "/proc/PID/ns/KIND")
    failed(answer[3], "EPERM", "CAP_SYS_ADMIN")


def test_setns_with_threads(child: Child) -> None:
    found = child(
        """
        become_root()
        stop = threading.Event()
        threading.Thread(target=stop.wait).start()
        answer = refused(setns, os.open("/proc/self/ns/user", os.O_RDONLY))
        stop.set()
        """
    )
    failed(found, "EINVAL", "2 threads", "%%scratch")


def test_mount_without_the_right(child: Child) -> None:
    answer = child(
        """
        become_root()
        answer = [refused(mount, "none", ".", "tmpfs")]
        capset([], [])
        answer.append(refused(mount, "none", ".", "tmpfs"))
        """
    )
    failed(answer[0], "EPERM", "mnt namespace", "unshare(CLONE_NEWNS)")
    failed(answer[1], "EPERM", "CAP_SYS_ADMIN", "CLONE_NEWUSER")


def test_mounts_that_a_user_namespace_may_not_make(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWNS)
        answer = [refused(mount, "none", ".", each) for each in ("proc", "sysfs", "debugfs", "nosuchfs", "ext4")]
        """
    )
    failed(answer[0], "EPERM", "CLONE_NEWPID")
    failed(answer[1], "EPERM", "CLONE_NEWNET")
    failed(answer[3], "ENODEV", "nosuchfs", "/proc/filesystems")
    for found in (answer[2], answer[4]):
        assert found["errno"] in {"EPERM", "ENODEV", "ENOTBLK", "ENOENT"}
        assert found["hint"]


def test_what_mount_says_of_paths_and_flags(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        os.mkdir("a"); open("file", "w")
        answer = [
            refused(mount, "none", "/no/such", "tmpfs"),
            refused(mount, "file", "a", None, MS_BIND),
            refused(mount, "none", "a", None, MS_PRIVATE),
            refused(mount, "none", "a", None, MS_PRIVATE | MS_RDONLY),
            refused(mount, "none", "a", None, MS_REMOUNT | MS_RDONLY),
            refused(mount, "none", "a", "tmpfs", 0, "nosuchoption=1"),
        ]
        """
    )
    failed(answer[0], "ENOENT", "/no/such")
    failed(answer[1], "ENOTDIR", "a file on a file")
    failed(answer[2], "EINVAL", "not a mount point", "MS_BIND")
    failed(answer[3], "EINVAL", "goes alone")
    failed(answer[4], "EINVAL", "must be a mount point")
    failed(answer[5], "EINVAL", "option that tmpfs does not take")


def test_mounts_from_an_outer_namespace_are_locked(child: Child) -> None:
    answer = child(
        """
        become_root(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        os.mkdir("a"); os.mkdir("c")
        mount("none", "a", "tmpfs", MS_NOSUID)
        os.mkdir("a/b")
        mount("none", "a/b", "tmpfs")
        UID = GID = 0
        become_root(CLONE_NEWNS)
        answer = [
            refused(mount, None, "a", None, MS_REMOUNT | MS_BIND),
            refused(umount2, "a/b"),
            refused(mount, "a", "c", None, MS_BIND),
            refused(umount2, "c"),
        ]
        """
    )
    failed(answer[0], "EPERM", "keeps its flags")
    failed(answer[1], "EINVAL", "locked")
    failed(answer[2], "EINVAL", "MS_REC")
    failed(answer[3], "EINVAL", "not a mount point")


def test_pivot_root_is_busy(child: Child) -> None:
    found = child(
        f"""
        {textwrap.indent(NEW_ROOT, " " * 8).strip()}
        os.mkdir("plain")
        answer = refused(pivot_root, "new", "plain")
        """
    )
    failed(found, "EBUSY", "old root is on the current root's mount", "NEW/old")


@pytest.mark.root
def test_pivot_root_is_busy_on_the_roots_own_mount(child: Child) -> None:
    answer = child(
        """
        unshare(CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        os.makedirs("plain/old")
        answer = [refused(pivot_root, "plain", "plain/old"), refused(pivot_root, "/", "/")]
        """
    )
    failed(answer[0], "EBUSY", "not a mount point but a folder", "MS_BIND | MS_REC")
    failed(answer[1], "EBUSY", "the current root already")


def test_pivot_root_is_invalid(child: Child) -> None:
    answer = child(
        f"""
        {textwrap.indent(NEW_ROOT, " " * 8).strip()}
        os.mkdir("other")
        mount("none", "other", "tmpfs")
        os.makedirs("plain/old"); os.makedirs("new/sub/old")
        answer = [
            refused(pivot_root, "plain", "plain/old"), refused(pivot_root, "/", "/"),
            refused(pivot_root, "new/sub", "new/sub/old"), refused(pivot_root, "new", "other"),
        ]
        mount("none", "new", None, MS_SHARED)
        mount("none", "new/sub", "tmpfs")
        os.mkdir("new/sub/old")
        answer.append(refused(pivot_root, "new/sub", "new/sub/old"))
        """
    )
    # In a user namespace the current root's mount is locked, and that is looked at before all else.
    failed(answer[0], "EINVAL", "not a mount point", "MS_BIND | MS_REC")
    failed(answer[1], "EINVAL", "the current root already")
    failed(answer[2], "EINVAL", "not a mount point")
    failed(answer[3], "EINVAL", "the new root or below it")
    failed(answer[4], "EINVAL", "shared", "MS_REC | MS_PRIVATE")


def test_pivot_root_behind_a_chroot(child: Child) -> None:
    answer = child(
        f"""
        {textwrap.indent(NEW_ROOT, " " * 8).strip()}
        os.makedirs("new/sub/proc"); os.makedirs("new/sub/inner")
        mount("/proc", "new/sub/proc", None, MS_BIND | MS_REC)
        mount("none", "new/sub/inner", "tmpfs")
        os.mkdir("new/sub/inner/old")
        chroot("new/sub")
        os.chdir("/")
        answer = [refused(pivot_root, "inner", "inner/old")]
        umount2("/proc", MNT_DETACH)
        answer.append(refused(pivot_root, "inner", "inner/old"))
        """
    )
    failed(answer[0], "EINVAL", "current root is not a mount point", "behind chroot")
    # Where there is no /proc to look at, all causes are named.
    failed(answer[1], "EINVAL", "behind chroot", "shared", "not below it")


def test_pivot_root_without_the_right(child: Child) -> None:
    found = child("capset([], [])\nos.makedirs('a/b')\nanswer = refused(pivot_root, 'a', 'a/b')")
    failed(found, "EPERM", "CAP_SYS_ADMIN")


def test_chroot_and_sethostname_without_the_right(child: Child) -> None:
    answer = child(
        """
        become_root()
        answer = [refused(sethostname, "x"), refused(sethostname, "x" * 65)]
        unshare(CLONE_NEWUTS)
        answer.append(refused(sethostname, "x" * 65))
        answer.append(refused(chroot, "/no/such"))
        capset([], [])
        answer += [refused(sethostname, "x"), refused(chroot, ".")]
        """
    )
    failed(answer[0], "EPERM", "uts namespace", "unshare(CLONE_NEWUTS)")
    failed(answer[2], "EINVAL", "64")
    failed(answer[3], "ENOENT", "/no/such")
    failed(answer[4], "EPERM", "CAP_SYS_ADMIN")
    failed(answer[5], "EPERM", "CAP_SYS_CHROOT")


def test_why_an_id_map_is_refused(child: Child) -> None:
    answer = child(
        """
        unshare(CLONE_NEWUSER)
        answer = [
            refused(write_id_map, "self", "gid", [(0, GID, 1)]),
            refused(write_id_map, "self", "uid", [(0, UID + 1, 1)]),
            refused(write_id_map, "self", "uid", [(0, UID, 0)]),
        ]
        deny_setgroups("self")
        write_id_map("self", "gid", [(0, GID, 1)])
        write_id_map("self", "uid", [(0, UID, 1)])
        answer.append(refused(write_id_map, "self", "uid", [(0, UID, 1)]))
        answer.append(refused(write_id_map, 2**22 + 1, "uid", [(0, 0, 1)]))
        """
    )
    failed(answer[0], "EPERM", "deny_setgroups(PID)")
    failed(answer[1], "EPERM", "CAP_SETUID", "the writer's own uid")
    failed(answer[2], "EINVAL", "INSIDE OUTSIDE COUNT")
    failed(answer[3], "EPERM", "written already")
    failed(answer[4], "ENOENT", "no such process")


def test_setgroups_stays_as_it_is_once_groups_are_mapped(child: Child) -> None:
    found = child(
        """
        ready, go = os.pipe(), os.pipe()
        pid = fork()
        if pid == 0:
            become_root()
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        capset([], [])
        answer = refused(write_id_map, pid, "gid", [(0, GID, 1)])
        os.write(go[1], b"x")
        """
    )
    failed(found, "EPERM", "written already")


@pytest.mark.ordinary_user
def test_the_map_of_a_process_that_is_not_dumpable(child: Child) -> None:
    found = child(
        """
        unshare(CLONE_NEWUSER)
        prctl(PR_SET_DUMPABLE, 0)
        answer = refused(write_id_map, "self", "uid", [(0, UID, 1)])
        """
    )
    failed(found, "EACCES", "not dumpable")


def test_why_a_filter_is_refused(child: Child) -> None:
    answer = child(
        """
        capset([], [])
        allow = [Instruction(BPF_RET_K, SECCOMP_RET_ALLOW)]
        answer = [refused(seccomp, SECCOMP_SET_MODE_FILTER, 0, allow)]
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        answer.append(refused(seccomp, SECCOMP_SET_MODE_FILTER, 0, [Instruction(BPF_LD_W_ABS, 0)]))
        seccomp(SECCOMP_SET_MODE_FILTER, 0, allow)
        """
    )
    failed(answer[0], "EACCES", "PR_SET_NO_NEW_PRIVS")
    failed(answer[1], "EINVAL", "must end in BPF_RET_K")
    assert answer[0]["text"].startswith("seccomp(SECCOMP_SET_MODE_FILTER, 0, 1 instructions): EACCES")


def test_capget_of_nobody(child: Child) -> None:
    failed(child("answer = refused(capget, 2**22 + 1)"), "ESRCH", "no process")


def test_on_another_machine_it_imports_and_says_so() -> None:
    code = """
import ctypes
assert ctypes.CDLL(None).personality(8) >= 0  # PER_LINUX32: uname(2) shows a machine of 32 bits, personality(2)
from nsmagic import linux
from nsmagic.errors import NsmagicError
for call in (linux.capget, linux.clone3, lambda: linux.unshare(linux.CLONE_NEWUTS)):
    try:
        call()
    except NsmagicError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert "x86_64 or aarch64" in lines[0]
