"""The kernel's constants for ``nsmagic.linux``, by the kernel's own names, as flags and enumerations.

Each is there twice: as a member (``Clone.CLONE_NEWUTS``), which prints by name, and by its bare name, as
manual pages write it.  Pure: no I/O.  The values are those of x86_64 and aarch64, which agree in all of
these. See linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h, linux/seccomp.h,
linux/bpf_common.h.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Clone(IntFlag):
    """What a process shares, or has of its own: clone(2), unshare(2), setns(2), namespaces(7)."""

    CLONE_NEWTIME = 0x80
    CLONE_FS = 0x200
    CLONE_FILES = 0x400
    CLONE_NEWNS = 0x20000
    CLONE_SYSVSEM = 0x40000
    CLONE_NEWCGROUP = 0x2000000
    CLONE_NEWUTS = 0x4000000
    CLONE_NEWIPC = 0x8000000
    CLONE_NEWUSER = 0x10000000
    CLONE_NEWPID = 0x20000000
    CLONE_NEWNET = 0x40000000
    CLONE_INTO_CGROUP = 0x200000000


class Mount(IntFlag):
    """What mount(2) shall do, and how the mount shall behave; mount_namespaces(7)."""

    MS_RDONLY = 0x1
    MS_NOSUID = 0x2
    MS_NODEV = 0x4
    MS_NOEXEC = 0x8
    MS_SYNCHRONOUS = 0x10
    MS_REMOUNT = 0x20
    MS_DIRSYNC = 0x80
    MS_NOSYMFOLLOW = 0x100
    MS_NOATIME = 0x400
    MS_NODIRATIME = 0x800
    MS_BIND = 0x1000
    MS_MOVE = 0x2000
    MS_REC = 0x4000
    MS_SILENT = 0x8000
    MS_UNBINDABLE = 0x20000
    MS_PRIVATE = 0x40000
    MS_SLAVE = 0x80000
    MS_SHARED = 0x100000
    MS_RELATIME = 0x200000
    MS_STRICTATIME = 0x1000000
    MS_LAZYTIME = 0x2000000


class Unmount(IntFlag):
    """How to unmount: umount2(2)."""

    MNT_FORCE = 0x1
    MNT_DETACH = 0x2
    MNT_EXPIRE = 0x4
    UMOUNT_NOFOLLOW = 0x8


class Prctl(IntEnum):
    """Operations of prctl(2) that take and give numbers (and one that takes a name)."""

    PR_SET_PDEATHSIG = 1
    PR_GET_DUMPABLE = 3
    PR_SET_DUMPABLE = 4
    PR_GET_KEEPCAPS = 7
    PR_SET_KEEPCAPS = 8
    PR_SET_NAME = 15
    PR_GET_SECCOMP = 21
    PR_CAPBSET_READ = 23
    PR_CAPBSET_DROP = 24
    PR_GET_SECUREBITS = 27
    PR_SET_SECUREBITS = 28
    PR_SET_CHILD_SUBREAPER = 36
    PR_SET_NO_NEW_PRIVS = 38
    PR_GET_NO_NEW_PRIVS = 39
    PR_CAP_AMBIENT = 47


class Ambient(IntEnum):
    """Second argument of ``PR_CAP_AMBIENT``: prctl(2), capabilities(7)."""

    PR_CAP_AMBIENT_IS_SET = 1
    PR_CAP_AMBIENT_RAISE = 2
    PR_CAP_AMBIENT_LOWER = 3
    PR_CAP_AMBIENT_CLEAR_ALL = 4


class Capability(IntEnum):
    """Numbers of capabilities: capabilities(7)."""

    CAP_CHOWN = 0
    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_FOWNER = 3
    CAP_FSETID = 4
    CAP_KILL = 5
    CAP_SETGID = 6
    CAP_SETUID = 7
    CAP_SETPCAP = 8
    CAP_LINUX_IMMUTABLE = 9
    CAP_NET_BIND_SERVICE = 10
    CAP_NET_BROADCAST = 11
    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13
    CAP_IPC_LOCK = 14
    CAP_IPC_OWNER = 15
    CAP_SYS_MODULE = 16
    CAP_SYS_RAWIO = 17
    CAP_SYS_CHROOT = 18
    CAP_SYS_PTRACE = 19
    CAP_SYS_PACCT = 20
    CAP_SYS_ADMIN = 21
    CAP_SYS_BOOT = 22
    CAP_SYS_NICE = 23
    CAP_SYS_RESOURCE = 24
    CAP_SYS_TIME = 25
    CAP_SYS_TTY_CONFIG = 26
    CAP_MKNOD = 27
    CAP_LEASE = 28
    CAP_AUDIT_WRITE = 29
    CAP_AUDIT_CONTROL = 30
    CAP_SETFCAP = 31
    CAP_MAC_OVERRIDE = 32
    CAP_MAC_ADMIN = 33
    CAP_SYSLOG = 34
    CAP_WAKE_ALARM = 35
    CAP_BLOCK_SUSPEND = 36
    CAP_AUDIT_READ = 37
    CAP_PERFMON = 38
    CAP_BPF = 39
    CAP_CHECKPOINT_RESTORE = 40


class Seccomp(IntEnum):
    """Operations of seccomp(2)."""

    SECCOMP_SET_MODE_STRICT = 0
    SECCOMP_SET_MODE_FILTER = 1


class SeccompFlag(IntFlag):
    """Flags of ``SECCOMP_SET_MODE_FILTER``: seccomp(2)."""

    SECCOMP_FILTER_FLAG_TSYNC = 0x1
    SECCOMP_FILTER_FLAG_LOG = 0x2
    SECCOMP_FILTER_FLAG_SPEC_ALLOW = 0x4


class SeccompReturn(IntEnum):
    """What a filter may answer; ``SECCOMP_RET_ERRNO`` is added to the errno: seccomp(2)."""

    SECCOMP_RET_KILL_THREAD = 0
    SECCOMP_RET_TRAP = 0x30000
    SECCOMP_RET_ERRNO = 0x50000
    SECCOMP_RET_LOG = 0x7FFC0000
    SECCOMP_RET_ALLOW = 0x7FFF0000
    SECCOMP_RET_KILL_PROCESS = 0x80000000


class SeccompData(IntEnum):
    """Offsets in ``struct seccomp_data``, which a filter loads from, in bytes: seccomp(2)."""

    SECCOMP_DATA_NR = 0
    SECCOMP_DATA_ARCH = 4
    SECCOMP_DATA_ARGS = 16


class Audit(IntEnum):
    """What stands at ``SECCOMP_DATA_ARCH``: linux/audit.h."""

    AUDIT_ARCH_X86_64 = 0xC000003E
    AUDIT_ARCH_AARCH64 = 0xC00000B7


class Bpf(IntEnum):
    """Whole instruction codes of classic BPF, as many as a filter of system calls needs: seccomp(2)."""

    BPF_RET_K = 0x06
    BPF_JMP_JA = 0x05
    BPF_JMP_JEQ_K = 0x15
    BPF_LD_W_ABS = 0x20
    BPF_JMP_JGT_K = 0x25
    BPF_JMP_JGE_K = 0x35
    BPF_JMP_JSET_K = 0x45
    BPF_ALU_AND_K = 0x54


(
    CLONE_NEWTIME, CLONE_FS, CLONE_FILES, CLONE_NEWNS, CLONE_SYSVSEM, CLONE_NEWCGROUP, CLONE_NEWUTS,
    CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_INTO_CGROUP,
) = Clone  # fmt: skip
(
    MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT, MS_DIRSYNC, MS_NOSYMFOLLOW,
    MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC, MS_SILENT, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE,
    MS_SHARED, MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME,
) = Mount  # fmt: skip
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = Unmount
(
    PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_SET_NAME,
    PR_GET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS,
    PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT,
) = Prctl  # fmt: skip
PR_CAP_AMBIENT_IS_SET, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_LOWER, PR_CAP_AMBIENT_CLEAR_ALL = Ambient
(
    CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_KILL, CAP_SETGID,
    CAP_SETUID, CAP_SETPCAP, CAP_LINUX_IMMUTABLE, CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN,
    CAP_NET_RAW, CAP_IPC_LOCK, CAP_IPC_OWNER, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_CHROOT, CAP_SYS_PTRACE,
    CAP_SYS_PACCT, CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_SYS_TIME,
    CAP_SYS_TTY_CONFIG, CAP_MKNOD, CAP_LEASE, CAP_AUDIT_WRITE, CAP_AUDIT_CONTROL, CAP_SETFCAP,
    CAP_MAC_OVERRIDE, CAP_MAC_ADMIN, CAP_SYSLOG, CAP_WAKE_ALARM, CAP_BLOCK_SUSPEND, CAP_AUDIT_READ,
    CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE,
) = Capability  # fmt: skip
SECCOMP_SET_MODE_STRICT, SECCOMP_SET_MODE_FILTER = Seccomp
SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW = SeccompFlag
(
    SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO, SECCOMP_RET_LOG, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS,
) = SeccompReturn  # fmt: skip
SECCOMP_DATA_NR, SECCOMP_DATA_ARCH, SECCOMP_DATA_ARGS = SeccompData
AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 = Audit
(
    BPF_RET_K, BPF_JMP_JA, BPF_JMP_JEQ_K, BPF_LD_W_ABS, BPF_JMP_JGT_K, BPF_JMP_JGE_K, BPF_JMP_JSET_K,
    BPF_ALU_AND_K,
) = Bpf  # fmt: skip

__all__ = [name for name in globals() if name[0] != "_" and name not in {"annotations", "IntEnum", "IntFlag"}]
