/*
 * seccomp.c - the system calls that the payload may not make.
 *
 * A deny-list: most programs run unchanged, and what is cut off is what has been used, again and again, to
 * leave a container or what reaches for the machine rather than for the program's own affairs.  A
 * denied call fails with an error and the program goes on; clone3 "does not exist" (ENOSYS), so that the C
 * library falls back to clone, whose flags a filter can read.
 *
 * The filter is a little program for the kernel's BPF machine, made here by hand from the table: load
 * a field of struct seccomp_data, compare, jump.  Its arguments are 64 bits wide but the machine 32, so
 * only the lower halves are compared: the kernel itself reads no more of the ones that matter here
 * (CVE-2019-10063 was a filter that compared all 64 bits of an ioctl number).
 * See seccomp(2), Documentation/userspace-api/seccomp_filter.rst.
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#define X32_BIT 0x40000000U /* the third ABI of x86-64: other numbers for the same calls */
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "nsmagic has system-call tables for x86_64 and aarch64 only"
#endif

/* Numbers are the same on all architectures since Linux 5.1; older C library headers lack the newest. */
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#define SYS_OPENAT2 437
#define SYS_PIDFD_GETFD 438
#define SYS_PROCESS_MADVISE 440
#define SYS_MOUNT_SETATTR 442
#define SYS_QUOTACTL_FD 443
#define SYS_FCHMODAT2 452
#define SYS_SETXATTRAT 463
#define SYS_REMOVEXATTRAT 466
#define SYS_OPEN_TREE_ATTR 467
#define SYS_FILE_SETATTR 469

#define DENY(call, why) {SYS_##call, EPERM, #call, why}

static const struct nsm_denied denied[] = {
    /* The kernel's doors to other processes. */
    DENY(ptrace, "reads and writes other processes"),
    DENY(process_vm_readv, "reads other processes' memory"),
    DENY(process_vm_writev, "writes other processes' memory"),
    {SYS_PIDFD_GETFD, EPERM, "pidfd_getfd", "takes other processes' descriptors"},
    {SYS_PROCESS_MADVISE, EPERM, "process_madvise", "changes other processes' memory"},
    DENY(kcmp, "compares other processes' kernel objects"),

    /* Namespaces and mounts: a nested user namespace gives back every capability to attack the kernel with. */
    DENY(unshare, "makes namespaces"),
    DENY(setns, "enters namespaces"),
    {SYS_OPENAT2, ENOSYS, "openat2", "makes files by a mode that a filter cannot read"},
    {SYS_clone3, ENOSYS, "clone3", "makes namespaces by flags that a filter cannot read"},
    DENY(mount, "mounts"),
    DENY(umount2, "uncovers what a mount hides"),
    DENY(pivot_root, "changes the root"),
    DENY(chroot, "changes the root"),
    DENY(open_tree, "mounts"),
    DENY(move_mount, "mounts"),
    DENY(fsopen, "mounts"),
    DENY(fsconfig, "mounts"),
    DENY(fsmount, "mounts"),
    DENY(fspick, "mounts"),
    {SYS_MOUNT_SETATTR, EPERM, "mount_setattr", "changes mounts"},
    {SYS_OPEN_TREE_ATTR, EPERM, "open_tree_attr", "mounts"},
    DENY(name_to_handle_at, "names files past the root"),
    DENY(open_by_handle_at, "opens files past the root"),

    /* Keys are not in any namespace: those of the user are shared by all his containers. */
    DENY(add_key, "reaches the user's keyrings"),
    DENY(request_key, "reaches the user's keyrings"),
    DENY(keyctl, "reaches the user's keyrings"),

    /* Large and young parts of the kernel, where most escapes of late began. */
    DENY(bpf, "runs programs in the kernel"),
    DENY(perf_event_open, "watches the machine"),
    DENY(userfaultfd, "stops the kernel in the middle of a copy"),
    DENY(io_uring_setup, "does I/O past this filter"),
    DENY(io_uring_enter, "does I/O past this filter"),
    DENY(io_uring_register, "does I/O past this filter"),

    /* The machine itself: modules, clocks, swap, reboot.  Denied by capabilities already; twice is cheap. */
    DENY(init_module, "loads kernel code"),
    DENY(finit_module, "loads kernel code"),
    DENY(delete_module, "unloads kernel code"),
    DENY(kexec_load, "replaces the kernel"),
#ifdef SYS_kexec_file_load
    DENY(kexec_file_load, "replaces the kernel"),
#endif
    DENY(reboot, "reboots"),
    DENY(swapon, "changes the machine's swap"),
    DENY(swapoff, "changes the machine's swap"),
    DENY(acct, "writes the machine's accounting"),
    DENY(quotactl, "changes quotas"),
    {SYS_QUOTACTL_FD, EPERM, "quotactl_fd", "changes quotas"},
    DENY(syslog, "reads the kernel's log"),
    DENY(settimeofday, "sets the clock"),
    DENY(clock_settime, "sets the clock"),
    DENY(clock_adjtime, "sets the clock"),
    DENY(adjtimex, "sets the clock"),
    DENY(vhangup, "hangs up terminals"),
    DENY(fanotify_init, "watches the machine's files"),
    DENY(lookup_dcookie, "for profilers of the kernel"),
    DENY(move_pages, "moves other processes' memory"),
    DENY(migrate_pages, "moves other processes' memory"),
#if defined(__x86_64__)
    DENY(modify_ldt, "16-bit segments"),
    DENY(iopl, "I/O ports"),
    DENY(ioperm, "I/O ports"),
    DENY(uselib, "obsolete"),
    DENY(ustat, "obsolete"),
    DENY(sysfs, "obsolete"),
    DENY(_sysctl, "obsolete"),
    DENY(create_module, "obsolete"),
    DENY(get_kernel_syms, "obsolete"),
    DENY(query_module, "obsolete"),
    DENY(nfsservctl, "obsolete"),
#endif
};

/* What a namespace would keep apart, where there is none (NSM_CONFINE_OTHERS). */
static const struct nsm_denied others[] = {
    DENY(shmget, "shares memory with the user's other processes"),
    DENY(shmat, "shares memory with the user's other processes"),
    DENY(shmctl, "shares memory with the user's other processes"),
    DENY(semget, "shares semaphores with the user's other processes"),
    DENY(semop, "shares semaphores with the user's other processes"),
    DENY(semtimedop, "shares semaphores with the user's other processes"),
    DENY(semctl, "shares semaphores with the user's other processes"),
    DENY(msgget, "shares queues with the user's other processes"),
    DENY(msgsnd, "shares queues with the user's other processes"),
    DENY(msgrcv, "shares queues with the user's other processes"),
    DENY(msgctl, "shares queues with the user's other processes"),
    DENY(mq_open, "shares queues with the user's other processes"),
    DENY(mq_unlink, "shares queues with the user's other processes"),
    DENY(setpriority, "slows the user's other processes"),
    DENY(ioprio_set, "slows the user's other processes"),
};

/* What Landlock has no names for, where files belong to the payload's own uid (NSM_CONFINE_METADATA). */
static const struct nsm_denied metadata[] = {
    DENY(fchmod, "changes a file's mode"),
    DENY(fchmodat, "changes a file's mode"),
    {SYS_FCHMODAT2, EPERM, "fchmodat2", "changes a file's mode"},
    DENY(fchown, "changes a file's owner"),
    DENY(fchownat, "changes a file's owner"),
    DENY(utimensat, "changes a file's times"),
    DENY(setxattr, "changes a file's attributes"),
    DENY(lsetxattr, "changes a file's attributes"),
    DENY(fsetxattr, "changes a file's attributes"),
    DENY(removexattr, "changes a file's attributes"),
    DENY(lremovexattr, "changes a file's attributes"),
    DENY(fremovexattr, "changes a file's attributes"),
    {SYS_SETXATTRAT, EPERM, "setxattrat", "changes a file's attributes"},
    {SYS_REMOVEXATTRAT, EPERM, "removexattrat", "changes a file's attributes"},
    {SYS_FILE_SETATTR, EPERM, "file_setattr", "changes a file's attributes"},
#if defined(__x86_64__)
    DENY(chmod, "changes a file's mode"),
    DENY(chown, "changes a file's owner"),
    DENY(lchown, "changes a file's owner"),
    DENY(utime, "changes a file's times"),
    DENY(utimes, "changes a file's times"),
    DENY(futimesat, "changes a file's times"),
#endif
};

const struct nsm_denied *nsm_seccomp_table(size_t *count)
{
    *count = sizeof denied / sizeof *denied;
    return denied;
}

unsigned nsm_seccomp_arch(void)
{
    return NATIVE_ARCH;
}

/* ---- The program --------------------------------------------------------- */

#define ROOM 512

struct program {
    struct sock_filter instructions[ROOM];
    unsigned short length;
};

static void add(struct program *program, struct sock_filter instruction)
{
    if (program->length < ROOM)
        program->instructions[program->length++] = instruction;
}

#define LOAD(field) \
    ((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, field)))
#define LOAD_ARGUMENT(n) LOAD(args[n]) /* both architectures are little-endian: the lower half comes first */
#define RETURN(action) ((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (action)))
#define FAIL_WITH(error) RETURN(SECCOMP_RET_ERRNO | ((error) & SECCOMP_RET_DATA))
/* If the loaded value is `value`, do the next instruction, else jump over `skip` of them. */
#define IF_EQUAL(value, skip) ((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip)))
#define IF_ANY_BIT(bits, skip) ((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), 0, (skip)))
#define IF_AT_LEAST(value, skip) ((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (value), 0, (skip)))

static void foreign_architectures(struct program *program)
{
    add(program, LOAD(arch));
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0));
    add(program, FAIL_WITH(EPERM));
    add(program, LOAD(nr));
#ifdef X32_BIT
    /* -1 is no call at all: a tracer uses it to skip one. */
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xffffffffU, 2, 0));
    add(program, IF_AT_LEAST(X32_BIT, 1));
    add(program, FAIL_WITH(EPERM));
#endif
}

/* clone() makes threads and processes, which is fine, and namespaces, which is not. */
static void clone_flags(struct program *program)
{
    const unsigned namespaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                                CLONE_NEWNET | CLONE_NEWCGROUP;
    add(program, IF_EQUAL(SYS_clone, 4));
    add(program, LOAD_ARGUMENT(0));
    add(program, IF_ANY_BIT(namespaces, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, RETURN(SECCOMP_RET_ALLOW));
}

/* ioctl() is a thousand calls in one; these put characters into a terminal as if typed there. */
static void terminal_ioctls(struct program *program)
{
    static const unsigned numbers[] = {0x5412 /* TIOCSTI */, 0x541C /* TIOCLINUX */, 0x5423 /* TIOCSETD */};
    const unsigned char count = sizeof numbers / sizeof *numbers;
    add(program, IF_EQUAL(SYS_ioctl, (unsigned char)(2 + 2 * count)));
    add(program, LOAD_ARGUMENT(1));
    for (unsigned char i = 0; i < count; i++) {
        add(program, IF_EQUAL(numbers[i], 1));
        add(program, FAIL_WITH(EPERM));
    }
    add(program, RETURN(SECCOMP_RET_ALLOW));
}

/*
 * A file that is setuid or setgid is harmless in here (no_new_privs), but not on the host, where it may lie
 * in a folder that is bound writable and belong to the folder's owner.  Where `creating` is not 0, the mode
 * counts only if one of those bits is set in the flags.
 */
static void setuid_bits(struct program *program, unsigned number, unsigned mode, unsigned flags, unsigned creating)
{
    add(program, IF_EQUAL(number, creating ? 6 : 4));
    if (creating) {
        add(program, LOAD_ARGUMENT(flags));
        add(program, IF_ANY_BIT(creating, 3));
    }
    add(program, LOAD_ARGUMENT(mode));
    add(program, IF_ANY_BIT(06000, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, RETURN(SECCOMP_RET_ALLOW));
}

static void setuid_files(struct program *program)
{
    const unsigned creating = O_CREAT | (O_TMPFILE & ~(unsigned)O_DIRECTORY);
    setuid_bits(program, SYS_fchmod, 1, 0, 0);
    setuid_bits(program, SYS_fchmodat, 2, 0, 0);
    setuid_bits(program, SYS_FCHMODAT2, 2, 0, 0);
    setuid_bits(program, SYS_mknodat, 2, 0, 0);
    setuid_bits(program, SYS_openat, 3, 2, creating);
#if defined(__x86_64__)
    setuid_bits(program, SYS_chmod, 1, 0, 0);
    setuid_bits(program, SYS_mknod, 1, 0, 0);
    setuid_bits(program, SYS_creat, 1, 0, 0);
    setuid_bits(program, SYS_open, 2, 1, creating);
#endif
}

/* Sockets of the families that programs use; the others (AF_ALG, AF_VSOCK, ...) are seldom looked after. */
static void socket_families(struct program *program, unsigned number)
{
    static const unsigned families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};
    const unsigned char count = sizeof families / sizeof *families;
    add(program, IF_EQUAL(number, (unsigned char)(2 + 2 * count)));
    add(program, LOAD_ARGUMENT(0));
    for (unsigned char i = 0; i < count; i++) {
        add(program, IF_EQUAL(families[i], 1));
        add(program, RETURN(SECCOMP_RET_ALLOW));
    }
    add(program, FAIL_WITH(EPERM));
}

/* A real-time process could starve the machine.  SCHED_OTHER, BATCH and IDLE may be set; the rest not. */
static void realtime_scheduling(struct program *program)
{
    add(program, IF_EQUAL(SYS_sched_setscheduler, 7));
    add(program, LOAD_ARGUMENT(1));
    add(program, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~(unsigned)SCHED_RESET_ON_FORK));
    add(program, IF_EQUAL(SCHED_FIFO, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, IF_EQUAL(SCHED_RR, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, RETURN(SECCOMP_RET_ALLOW));
    /* sched_setattr's policy lies in memory, where a filter cannot look. */
    add(program, IF_EQUAL(SYS_sched_setattr, 1));
    add(program, FAIL_WITH(EPERM));
}

/* ---- Where there are no namespaces ------------------------------------------------ */

/* A call about a process: only about the caller itself, which these calls name 0. */
static void only_oneself(struct program *program, unsigned number)
{
    add(program, IF_EQUAL(number, 4));
    add(program, LOAD_ARGUMENT(0));
    add(program, IF_EQUAL(0, 1));
    add(program, RETURN(SECCOMP_RET_ALLOW));
    add(program, FAIL_WITH(EPERM));
}

/* kill(-1) is "everybody that I may"; a Landlock of ABI 6 narrows it, an older one does not. */
static void signals_to_all(struct program *program)
{
    add(program, IF_EQUAL(SYS_kill, 4));
    add(program, LOAD_ARGUMENT(0));
    add(program, IF_EQUAL(0xffffffffU, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, RETURN(SECCOMP_RET_ALLOW));
}

/*
 * Without a network namespace no socket at all may be made: one of AF_UNIX leads to whatever daemon of the
 * user's listens on a path.  A connected pair leads nowhere; but a pair of datagrams can be sent elsewhere.
 */
static void only_pairs(struct program *program)
{
    add(program, IF_EQUAL(SYS_socket, 1));
    add(program, FAIL_WITH(EPERM));
    add(program, IF_EQUAL(SYS_socketpair, 8));
    add(program, LOAD_ARGUMENT(0));
    add(program, IF_EQUAL(AF_UNIX, 5));
    add(program, LOAD_ARGUMENT(1));
    add(program, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xfU)); /* without SOCK_CLOEXEC and so on */
    add(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOCK_STREAM, 1, 0));
    add(program, IF_EQUAL(SOCK_SEQPACKET, 1));
    add(program, RETURN(SECCOMP_RET_ALLOW));
    add(program, FAIL_WITH(EPERM));
}

/* A Landlock before ABI 3 lets a file be emptied that may not be written to. */
static void truncation(struct program *program)
{
    add(program, IF_EQUAL(SYS_truncate, 1));
    add(program, FAIL_WITH(EPERM));
    const struct {
        unsigned number, flags;
    } opens[] = {
        {SYS_openat, 2},
#if defined(__x86_64__)
        {SYS_open, 1},
#endif
    };
    for (size_t i = 0; i < sizeof opens / sizeof *opens; i++) {
        add(program, IF_EQUAL(opens[i].number, 5));
        add(program, LOAD_ARGUMENT(opens[i].flags));
        add(program, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, O_TRUNC | O_ACCMODE));
        add(program, IF_EQUAL(O_TRUNC | O_RDONLY, 1));
        add(program, FAIL_WITH(EPERM));
        add(program, LOAD(nr)); /* later rules look at the mode of what is made */
    }
}

static void deny(struct program *program, const struct nsm_denied *table, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        add(program, IF_EQUAL((unsigned)table[i].number, 1));
        add(program, FAIL_WITH((unsigned)table[i].error));
    }
}

static void build(struct program *program, unsigned confine)
{
    program->length = 0;
    foreign_architectures(program);
    deny(program, denied, sizeof denied / sizeof *denied);
    if (confine & NSM_CONFINE_OTHERS)
        deny(program, others, sizeof others / sizeof *others);
    if (confine & NSM_CONFINE_METADATA)
        deny(program, metadata, sizeof metadata / sizeof *metadata);
    /* Each of these ends the program if the call is its own, so that the number is still loaded for the next. */
    if (confine & NSM_CONFINE_OTHERS) {
        only_oneself(program, SYS_prlimit64);
        only_oneself(program, SYS_sched_setaffinity);
        only_oneself(program, SYS_sched_setparam);
        signals_to_all(program);
    }
    if (confine & NSM_CONFINE_NETWORK)
        only_pairs(program);
    if (confine & NSM_CONFINE_TRUNCATE)
        truncation(program);
    clone_flags(program);
    terminal_ioctls(program);
    socket_families(program, SYS_socket);
    socket_families(program, SYS_socketpair);
    realtime_scheduling(program);
    setuid_files(program);
    add(program, RETURN(SECCOMP_RET_ALLOW));
}

size_t nsm_seccomp_program(uint64_t *instructions, size_t room)
{
    struct program program;
    build(&program, 0);
    for (size_t i = 0; i < program.length && i < room; i++)
        memcpy(&instructions[i], &program.instructions[i], sizeof *instructions);
    return program.length;
}

int nsm_seccomp(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "seccomp");
    struct program program;
    build(&program, plan->confine);
    struct sock_fprog filter = {.len = program.length, .filter = program.instructions};
    return (int)NSM_TRY(journal, prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0),
                        "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, %d instructions)", program.length);
}
