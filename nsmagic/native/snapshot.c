/*
 * snapshot.c - a copy of the running kernel that sleeps, and takes over when the kernel dies.
 *
 * Theory of operation
 *
 *   payload    runs the cell.  It keeps its pid and its threads.
 *   snapshot   a fork of the payload from just before the cell: asleep, with every signal blocked, sharing all
 *              pages that neither has written to since.  It is not the payload's child but its sibling, init's
 *              own: so no wait() of the user's code can find it.
 *   helper     lives for the moment of the fork, and is why the snapshot is a sibling.
 *
 * fork() has to be the C library's, or locks that other threads hold at that moment (malloc's first of all) would
 * stay closed in the copy for ever.  The library's fork() makes children only.  So the payload's thread lends its
 * memory to a helper (CLONE_VM) and waits (CLONE_VFORK); the helper forks, which copies that memory, and exits:
 * its orphan goes to init.  The helper ends without a signal (no exit_signal), so that nobody's SIGCHLD
 * handler hears of it.
 *
 * When the payload dies init looks for the youngest of its children that bears the snapshot's name and sends it
 * NSM_WAKE (init.c).  A snapshot never wakes by itself, so there are never two that go on.  It is ended
 * by SIGKILL, always: nothing of the user's runs in it unless it was woken.
 *
 * When memory runs out the kernel must take the payload: its score is the highest there is, the snapshot's the
 * lowest that it may have.  See fork(2), clone(2), proc_pid_oom_score_adj(5).
 */
#include "nsmagic.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HELPER_STACK (512U * 1024) /* libraries' fork handlers run on it */
#define NAME_BYTES 16              /* of a thread's name, see PR_SET_NAME(2const) */

/* Of processor time: on a busy machine a clock on the wall tells how busy it is. */
static int64_t used_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- What would speak against a snapshot --------------------------------- */

static int see_library(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    static const char *const drivers[] = {"libcuda.so", "libcudart", "libamdhip64", "libhsa-runtime", "libze_loader"};
    struct nsm_facts *facts = data;
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
        if (info->dlpi_name && strstr(info->dlpi_name, drivers[i]))
            facts->accelerator = 1;
    return 0;
}

static int see_count(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    *(unsigned long long *)data = info->dlpi_adds;
    return 1;
}

/* Cheap enough to be asked before each cell. */
int nsm_look(struct nsm_facts *facts)
{
    unsigned long long libraries = 0;
    dl_iterate_phdr(see_count, &libraries);
    if (libraries != facts->libraries) {
        facts->libraries = libraries;
        dl_iterate_phdr(see_library, facts);
    }
    struct stat tasks;
    if (stat("/proc/self/task", &tasks) < 0)
        return -1;
    facts->threads = (int)tasks.st_nlink - 2; /* a folder has as many links as it has folders in it, and two */
    int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    char text[128];
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    if (got <= 0)
        return -1;
    text[got] = 0;
    unsigned long long size, resident, shared;
    if (sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3)
        return -1;
    facts->resident = resident * (unsigned long long)sysconf(_SC_PAGESIZE);
    facts->private = (resident - shared) * (unsigned long long)sysconf(_SC_PAGESIZE);
    return 0;
}

/* ---- Positions of open files --------------------------------------------- */

/*
 * Both copies share each open file with its position.  So a snapshot notes where each one stood, and goes back
 * there when it wakes: what is then still in a buffer is written to where it belongs, not behind what the dead
 * cell has written.
 */
static void note_positions(struct nsm_snapshot *snapshot)
{
    snapshot->file_count = 0;
    snapshot->writing = 0;
    snapshot->which = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (!folder)
        return;
    for (struct dirent *entry; (entry = readdir(folder)) && snapshot->file_count < NSM_MOST_FILES;) {
        int file = atoi(entry->d_name); /* "." and ".." are 0, which has no position */
        off_t position = file > 2 && file != dirfd(folder) ? lseek(file, 0, SEEK_CUR) : -1;
        struct stat status;
        if (position < 0 || fstat(file, &status) < 0 || !S_ISREG(status.st_mode))
            continue;
        int flags = fcntl(file, F_GETFL);
        snapshot->files[snapshot->file_count++] = (struct nsm_position){.file = file, .position = position};
        if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY) {
            snapshot->writing++;
            snapshot->which += ((uint64_t)status.st_ino * 1000003U) ^ (uint64_t)file;
        }
    }
    closedir(folder);
}

int nsm_note_positions(struct nsm_snapshot *snapshot)
{
    note_positions(snapshot);
    return snapshot->writing;
}

static void restore_positions(const struct nsm_snapshot *snapshot)
{
    for (int i = 0; i < snapshot->file_count; i++)
        lseek(snapshot->files[i].file, (off_t)snapshot->files[i].position, SEEK_SET);
}

/* ---- Who is who --------------------------------------------------------------- */

/* A process' name and state from proc_pid_stat(5); false where there is none. */
static bool read_stat(pid_t pid, char name[NAME_BYTES], char *state)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    text[got > 0 ? got : 0] = 0;
    const char *begin = strchr(text, '('), *end = strrchr(text, ')'); /* a name may hold brackets itself */
    if (!begin || !end || end - begin > NAME_BYTES || end[1] != ' ')
        return false;
    memset(name, 0, NAME_BYTES);
    memcpy(name, begin + 1, (size_t)(end - begin - 1));
    *state = end[2];
    return true;
}

bool nsm_process_lives(pid_t pid)
{
    char name[NAME_BYTES], state;
    return read_stat(pid, name, &state) && state != 'Z' && state != 'X';
}

/* Whether a process calls itself a snapshot, and lives. */
bool nsm_is_snapshot(pid_t pid)
{
    char name[NAME_BYTES], state;
    return read_stat(pid, name, &state) && state != 'Z' && state != 'X' &&
           strncmp(name, NSM_SNAPSHOT_NAME, NAME_BYTES) == 0;
}

/* ---- The fork -------------------------------------------------------------- */

struct fork {
    pid_t pid;          /* the snapshot's, or -1 */
    int error;          /* errno of what failed */
    int64_t cost;       /* of the fork, in nanoseconds of processor time */
    jmp_buf back;       /* to the payload's own stack, which the snapshot has a copy of */
    char name[NAME_BYTES];
};

/* In the snapshot: sleep until init says so. */
static void sleep_until_woken(void)
{
    sigset_t wake;
    sigemptyset(&wake);
    sigaddset(&wake, NSM_WAKE);
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(&wake, &info) == NSM_WAKE && info.si_code == SI_USER && info.si_pid == getppid())
            return; /* init's own word; the user's code can send the same, and it means nothing */
    }
}

static int help(void *data)
{
    struct fork *state = data;
    prctl(PR_SET_NAME, NSM_SNAPSHOT_NAME, 0, 0, 0); /* first: from its birth on init can tell what it is */
    state->pid = fork();
    if (state->pid == 0) {
        sleep_until_woken();
        longjmp(state->back, 1);
    }
    state->error = errno;
    state->cost = used_ns();
    if (state->pid > 0)
        setpgid(state->pid, state->pid); /* an interrupt goes to the payload's group; and this one may wake */
    return 0; /* and with that it has ended */
}

static void set_oom_score(int file, const char *text)
{
    if (file >= 0)
        (void)!pwrite(file, text, strlen(text), 0);
}

/* Signals that came while it slept were for the dead one. */
static void drop_signals(void)
{
    sigset_t all;
    sigfillset(&all);
    const struct timespec at_once = {0, 0};
    for (int i = 0; i < 100000 && sigtimedwait(&all, NULL, &at_once) > 0; i++)
        continue;
}

/* The processes here but init, us, other snapshots and the dead. */
static int count_processes(void)
{
    int count = 0;
    DIR *folder = opendir("/proc");
    if (!folder)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        pid_t pid = atoi(entry->d_name);
        if (pid > 1 && pid != getpid() && nsm_process_lives(pid) && !nsm_is_snapshot(pid))
            count++;
    }
    closedir(folder);
    return count;
}

static void woken(struct nsm_snapshot *snapshot, const struct fork *state)
{
    snapshot->processes = 0;
    if (getppid() == 1) {
        snapshot->processes = count_processes();
        kill(-1, SIGKILL); /* in a PID namespace: whatever the dead one has left; not us, and not init */
    }
    prctl(PR_SET_NAME, state->name, 0, 0, 0);
    restore_positions(snapshot);
    drop_signals();
    /* These were the dead one's. */
    if (snapshot->oom >= 0)
        close(snapshot->oom);
    nsm_snapshot_end(snapshot);
    snapshot->oom = -1;
}

/*
 * Make a snapshot of the calling process.  The one before it is ended, or kept to go back to.  Returns like fork():
 * the snapshot's pid in the payload; 0 in the snapshot, when it has been woken; -1 on an error.
 */
pid_t nsm_snapshot(struct nsm_snapshot *snapshot, int keep)
{
    static struct fork state;
    static char *stack;

    if (snapshot->oom < 0 && (snapshot->oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)) < 0)
        return -1;
    if (!stack) {
        stack = mmap(NULL, HELPER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (stack == MAP_FAILED) {
            stack = NULL;
            return -1;
        }
    }
    nsm_hot_learn();
    fflush(NULL); /* what both copies held in a buffer would be written twice */
    prctl(PR_GET_NAME, state.name, 0, 0, 0);
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    set_oom_score(snapshot->oom, NSM_OOM_SNAPSHOT);

    state.pid = -1;
    if (setjmp(state.back)) {
        /* The snapshot, woken, on its own copy of this stack. */
        woken(snapshot, &state);
        sigprocmask(SIG_SETMASK, &before, NULL);
        return 0;
    }
    pid_t helper = clone(help, stack + HELPER_STACK, CLONE_VM | CLONE_VFORK, &state);
    int error = errno;
    if (helper > 0) {
        while (waitpid(helper, NULL, __WALL) < 0 && errno == EINTR)
            continue;
        error = state.error;
    }
    set_oom_score(snapshot->oom, NSM_OOM_PAYLOAD);
    if (state.pid > 0) {
        /* Only now: at each moment there is one that can go on. */
        if (keep) {
            nsm_snapshot_end_older(snapshot);
            snapshot->older = snapshot->pid;
            snapshot->older_pidfd = snapshot->pidfd;
        } else {
            nsm_snapshot_end(snapshot);
        }
        snapshot->pid = state.pid;
        snapshot->pidfd = (int)syscall(SYS_pidfd_open, state.pid, 0);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    snapshot->nanoseconds = state.cost;
    nsm_hot_copy();
    errno = error;
    return state.pid;
}

static void end(pid_t *pid, int *pidfd)
{
    if (*pidfd >= 0) {
        syscall(SYS_pidfd_send_signal, *pidfd, SIGKILL, NULL, 0);
        close(*pidfd);
    } else if (*pid > 0) {
        kill(*pid, SIGKILL);
    }
    *pidfd = -1;
    *pid = 0;
}

/* End the one that is there to go back to, if there is one. */
void nsm_snapshot_end_older(struct nsm_snapshot *snapshot)
{
    end(&snapshot->older, &snapshot->older_pidfd);
}

/* End all that there are. */
void nsm_snapshot_end(struct nsm_snapshot *snapshot)
{
    nsm_snapshot_end_older(snapshot);
    end(&snapshot->pid, &snapshot->pidfd);
}
