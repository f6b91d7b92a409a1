"""The system-call filter: each row of its table in a BPF machine of the test's own, and real calls inside."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from nsmagic.native import _runtime  # type: ignore[attr-defined]  # built, not written

if TYPE_CHECKING:
    from collections.abc import Callable

X86_64, AARCH64, I386, ARM, PPC = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028, 0xC0000015
X32_BIT = 0x40000000
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NATIVE = {"x86_64": X86_64, "aarch64": AARCH64}.get(os.uname().machine, 0)


class Row(NamedTuple):
    number: int
    error: int
    name: str
    reason: str


def table() -> list[Row]:
    ffi, lib = _runtime.ffi, _runtime.lib
    count = ffi.new("size_t *")
    rows = lib.nsm_seccomp_table(count)
    return [
        Row(
            rows[i].number,
            rows[i].error,
            ffi.string(rows[i].name).decode(),
            ffi.string(rows[i].reason).decode(),
        )
        for i in range(count[0])
    ]


def program() -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, constant), see struct sock_filter."""
    words = _runtime.ffi.new("uint64_t[]", 1024)
    length = _runtime.lib.nsm_seccomp_program(words, 1024)
    return [struct.unpack("=HBBI", struct.pack("=Q", words[i])) for i in range(length)]


PROGRAM = program()
ROWS = table()


def evaluate(number: int, *arguments: int, arch: int = NATIVE) -> int:
    """What the filter returns for a call, by the rules of classic BPF: an instruction that is unknown is an error."""
    mask = (1 << 64) - 1
    padded = [argument & mask for argument in (*arguments, *[0] * 6)][:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0x1000, *padded)
    accumulator = at = steps = 0
    while True:
        steps += 1
        assert steps <= len(PROGRAM), "the program runs in circles"
        code, yes, no, constant = PROGRAM[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert constant % 4 == 0
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= constant
        elif code == 0x06:  # BPF_RET | BPF_K
            return constant
        elif code in (0x15, 0x35, 0x45):  # BPF_JMP | BPF_JEQ, BPF_JGE, BPF_JSET
            true = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[code]
            at += yes if true else no
        else:
            pytest.fail(f"unknown instruction {code:#x} at {at - 1}")


def number_of(name: str, arch: int = NATIVE) -> int:
    """The call's number by libseccomp, which is not the header that the table was made with."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("host: libseccomp.so.2 is not installed")
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    number: int = library.seccomp_syscall_resolve_name_arch(arch, name.encode())
    return number


def fails(error: int) -> int:
    return ERRNO | error


def test_the_program_is_well_formed() -> None:
    assert 0 < len(PROGRAM) < 512  # ROOM in seccomp.c: at that length it would have been cut off
    assert PROGRAM[-1][0] == 0x06
    for at, (code, yes, no, _) in enumerate(PROGRAM):
        if code & 0x07 == 0x05:
            assert at + 1 + max(yes, no) < len(PROGRAM)


def test_the_architecture_is_this_machines() -> None:
    assert _runtime.lib.nsm_seccomp_arch() == NATIVE


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_row(row: Row) -> None:
    assert evaluate(row.number) == fails(row.error)
    assert evaluate(row.number, *[2**64 - 1] * 6) == fails(row.error)
    assert row.error == (errno.ENOSYS if row.name in {"clone3", "openat2"} else errno.EPERM)
    assert row.reason


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_rows_number_by_libseccomp(row: Row) -> None:
    number = number_of(row.name)
    if number == -1:  # __NR_SCMP_ERROR: a name that this libseccomp does not know
        assert row.number > 450, f"{row.name} is old enough to be known"
        return
    assert number == row.number


def test_no_call_stands_twice() -> None:
    assert len({row.number for row in ROWS}) == len(ROWS)


def test_what_must_be_denied_is() -> None:
    wanted = {
        "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "unshare", "setns", "clone3", "mount",
        "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick",
        "mount_setattr", "open_by_handle_at", "name_to_handle_at", "add_key", "request_key", "keyctl", "bpf",
        "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "init_module",
        "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct",
        "syslog", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "quotactl", "fanotify_init",
    }  # fmt: skip
    if NATIVE == X86_64:
        wanted |= {"iopl", "ioperm", "modify_ldt"}
    assert wanted <= {row.name for row in ROWS}


@pytest.mark.parametrize(
    "name",
    [
        "read", "write", "openat", "close", "mmap", "mprotect", "munmap", "futex", "execve", "exit_group", "wait4", "kill",
        "socketpair", "connect", "epoll_create1", "clock_gettime", "getrandom", "memfd_create", "prctl", "seccomp",
        "rt_sigaction", "sched_setaffinity", "inotify_init1", "statx", "pidfd_open", "pidfd_send_signal", "close_range", "landlock_create_ruleset", "rseq", "copy_file_range", "setrlimit", "prlimit64",
    ],
)  # fmt: skip
def test_what_programs_need_is_allowed(name: str) -> None:
    arguments = (1, 1) if name == "socketpair" else ()
    assert evaluate(number_of(name), *arguments) == ALLOW


@pytest.mark.parametrize("arch", [I386, ARM, PPC, 0, NATIVE ^ 1], ids=hex)
@pytest.mark.parametrize("number", [0, 1, 2, 120, 165, 321, 435, 2**31, 2**32 - 1])
def test_every_foreign_architecture_is_denied(arch: int, number: int) -> None:
    assert evaluate(number, arch=arch) == fails(errno.EPERM)


@pytest.mark.skipif(NATIVE != X86_64, reason="host: x32 is of x86_64")
@pytest.mark.parametrize("number", [0, 1, 39, 165, 272, 435, 512, 520, 547, 0x3FFFFFF0])
def test_every_x32_call_is_denied(number: int) -> None:
    assert evaluate(X32_BIT | number) == fails(errno.EPERM)
    assert evaluate(X32_BIT | 0x80000000 | number) == fails(errno.EPERM)


def test_no_call_at_all_is_let_through() -> None:
    # A tracer skips a call by making its number -1; there is no such call, so the kernel answers ENOSYS.
    assert evaluate(2**32 - 1) == ALLOW


NAMESPACE_FLAGS = {
    "CLONE_NEWNS": 0x20000, "CLONE_NEWCGROUP": 0x2000000, "CLONE_NEWUTS": 0x4000000, "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000, "CLONE_NEWNET": 0x40000000,
}  # fmt: skip


@pytest.mark.parametrize("flag", NAMESPACE_FLAGS.values(), ids=NAMESPACE_FLAGS)
def test_clone_makes_no_namespace(flag: int) -> None:
    clone = number_of("clone")
    assert evaluate(clone, flag | 17) == fails(errno.EPERM)
    assert evaluate(clone, flag | 17 | 0xFFFFFFFF00000000) == fails(errno.EPERM)


def test_clone_makes_threads_and_processes() -> None:
    clone = number_of("clone")
    assert evaluate(clone, 17) == ALLOW
    assert evaluate(clone, 0x3D0F00) == ALLOW  # what pthread_create passes
    assert evaluate(clone, 0x1200011) == ALLOW  # what fork passes


@pytest.mark.parametrize("number", [0x5412, 0x541C, 0x5423])
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_terminal_calls_are_denied_whatever_their_high_bits(number: int, high: int) -> None:
    assert evaluate(number_of("ioctl"), 0, number | high) == fails(errno.EPERM)


@pytest.mark.parametrize("number", [0x5401, 0x5413, 0x541B, 0x5421, 0])
def test_other_ioctls_are_allowed(number: int) -> None:
    assert evaluate(number_of("ioctl"), 0, number) == ALLOW


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_socket_families(call: str) -> None:
    number = number_of(call)
    allowed = {family for family in range(64) if evaluate(number, family, 1) == ALLOW}
    assert allowed == {1, 2, 10, 16}  # UNIX, INET, INET6, NETLINK
    assert evaluate(number, 38, 1) == fails(errno.EPERM)  # ALG
    assert evaluate(number, 40, 1) == fails(errno.EPERM)  # VSOCK
    assert evaluate(number, 38 | 1 << 32, 1) == fails(errno.EPERM)


def test_real_time_scheduling() -> None:
    setscheduler = number_of("sched_setscheduler")
    assert [
        policy for policy in range(8) if evaluate(setscheduler, 0, policy) == ALLOW and policy in {1, 2, 6}
    ] in ([], [6])
    assert all(evaluate(setscheduler, 0, policy) == ALLOW for policy in (0, 3, 5))
    assert evaluate(setscheduler, 0, 1 | 0x40000000) == fails(errno.EPERM)  # SCHED_RESET_ON_FORK | SCHED_FIFO
    assert evaluate(number_of("sched_setattr")) == fails(errno.EPERM)


CREATE, TEMPORARY, READ = 0o100, 0o20000000, 0
SETS_MODE = {
    "fchmod": (1, -1), "fchmodat": (2, -1), "fchmodat2": (2, -1), "mknodat": (2, -1), "openat": (3, 2), "chmod": (1, -1),
    "mknod": (1, -1), "creat": (1, -1), "open": (2, 1),
}  # fmt: skip
"""Calls that give a file its mode: the place of the mode among the arguments, and of the flags that make it count."""


@pytest.mark.parametrize("name", SETS_MODE)
def test_no_file_becomes_setuid(name: str) -> None:
    """On a writable bind it would belong to the folder's owner, on the host."""
    number = 452 if name == "fchmodat2" else number_of(name)
    if number < 0:
        pytest.skip(f"host: {name} is not of this architecture")
    mode, flags = SETS_MODE[name]

    def answer(bits: int, with_flags: int) -> int:
        arguments = [0] * 6
        arguments[mode] = bits
        if flags >= 0:
            arguments[flags] = with_flags
        return evaluate(number, *arguments)

    for bits in (0o4755, 0o2755, 0o6000, 0o4000, 0o2000):
        for with_flags in (CREATE, CREATE | 0o2, TEMPORARY | 0o200000):
            assert answer(bits, with_flags) == fails(errno.EPERM)
            assert answer(bits | 1 << 32, with_flags | 1 << 40) == fails(errno.EPERM)
        # Where nothing is made, what stands in the mode's place is of no meaning.
        assert (answer(bits, READ) == ALLOW) is (flags >= 0)
    for bits in (0o755, 0o1777, 0):
        assert answer(bits, CREATE) == ALLOW


# ---- real calls --------------------------------------------------------------------

CALL = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(4096)
def call(number, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else 'done'
"""


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("unshare", "0x10000000", "EPERM"),
        ("mount", "b'none', b'/tmp', b'tmpfs', 0, 0", "EPERM"),
        ("umount2", "b'/tmp', 2", "EPERM"),
        ("chroot", "b'/tmp'", "EPERM"),
        ("keyctl", "0, -3, 0", "EPERM"),
        ("add_key", "b'user', b'x', b'y', 1, -3", "EPERM"),
        ("ptrace", "0, 0, 0, 0", "EPERM"),
        ("bpf", "0, buffer, 64", "EPERM"),
        ("io_uring_setup", "1, buffer", "EPERM"),
        ("userfaultfd", "0", "EPERM"),
        ("perf_event_open", "buffer, 0, -1, -1, 0", "EPERM"),
        ("clone", "0x10000011, 0, 0, 0, 0", "EPERM"),
        ("clone3", "buffer, 88", "ENOSYS"),
        ("setns", "3, 0", "EPERM"),
        ("fsopen", "b'tmpfs', 0", "EPERM"),
        ("open_tree", "-100, b'/', 1", "EPERM"),
        ("socket", "38, 5, 0", "EPERM"),
        ("socket", "40, 1, 0", "EPERM"),
        ("socket", "17, 3, 0", "EPERM"),
        ("ioctl", "0, 0x5412, b'x'", "EPERM"),
        ("ioctl", "0, 0x100005412, b'x'", "EPERM"),
        ("ioctl", "0, 0x541c, b'x'", "EPERM"),
        ("kcmp", "1, 2, 0, 0, 0", "EPERM"),
        ("process_vm_readv", "1, buffer, 1, buffer, 1, 0", "EPERM"),
        ("reboot", "0, 0, 0, 0", "EPERM"),
        ("settimeofday", "buffer, 0", "EPERM"),
        ("syslog", "3, buffer, 100", "EPERM"),
        ("sched_setscheduler", "0, 1, buffer", "EPERM"),
        ("modify_ldt", "0, buffer, 16", "EPERM"),
        ("pidfd_getfd", "0, 0, 0", "EPERM"),
        ("seccomp", "1, 0, 0", "EFAULT"),
    ],
)
@pytest.mark.parametrize("user", [None, "root"])
def test_real_calls(
    look: Callable[..., Any], name: str, arguments: str, answer: str, user: str | None
) -> None:
    number = number_of(name)
    if number < 0:
        pytest.skip(f"host: {name} is not of this architecture")
    assert look(f"call({number}, {arguments})", CALL, user=user) == answer


@pytest.mark.skipif(NATIVE != X86_64, reason="host: x32 is of x86_64")
def test_a_real_x32_call(look: Callable[..., Any]) -> None:
    assert look(f"call({X32_BIT | 39})", CALL) == "EPERM"


def test_a_real_i386_call(look: Callable[..., Any]) -> None:
    """``int 0x80`` with the number of getpid in the 32-bit table: the filter sees another architecture."""
    if NATIVE != X86_64:
        pytest.skip("host: i386 calls are of x86_64")
    # push rbx; mov eax, 20; int 0x80; pop rbx; ret
    setup = """
import mmap, ctypes
code = mmap.mmap(-1, 4096, prot=7)
code.write(b'\\x53\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\x5b\\xc3')
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
"""
    assert look("call()", setup) in {-errno.EPERM, -errno.ENOSYS}


def test_threads_and_subprocesses_work(look: Callable[..., Any]) -> None:
    setup = """
import subprocess, threading, concurrent.futures, multiprocessing, asyncio
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    threads = list(pool.map(abs, range(-4, 0)))
process = subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout
"""
    assert look("(threads, process)", setup) == ([4, 3, 2, 1], "hi\n")


def test_init_is_under_the_same_filter(keep: Any) -> None:
    from pathlib import Path

    container = keep()
    container.run("pass").check()
    for pid in (container.init_pid, *container.pids()):
        assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
