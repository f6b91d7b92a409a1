/*
 * spawn.c - how a container is made: the table of contents of this folder.
 *
 * Theory of operation
 *
 *   owner      the user's process (a Jupyter kernel, a program): many threads, holds the data.
 *   launcher   its child, single-threaded, Python already warm.  It calls nsm_spawn().
 *   init       PID 1 of the container, cloned from the launcher; C only, never the user's code.
 *   payload    init's child: the only process that runs the user's code.
 *   joiner     only where namespaces of others are joined: made by the launcher, enters them, makes init, ends.
 *
 * Who holds which rights: the launcher has the owner's.  Init has every capability in its own new user
 * namespace and none outside it, until the root is built; then none at all.  The payload, forked before that so
 * that its Python warms itself meanwhile, gives up the same in nsm_confine(), before any of the user's code; where
 * namespaces are joined it does so before any Python (join.c).
 *
 * Which channels carry what:
 *   gate      launcher or joiner -> init   one byte: "your ids are mapped, go on"
 *   late      launcher -> init    of a blank: the rest of its plan (late.c)
 *   go        init -> payload     "your root is there", and the way to it (late.c)
 *   lifeline  owner -> init       orders; its closing means that the owner is gone
 *   report    all three -> owner  the journal, a failure, the exit; one packet each
 *   control   owner <-> payload   the job and its answer (not known here)
 *   0, 1, 2   owner <-> payload   the three standard streams
 *
 * nsm_spawn() returns twice, like fork(): in the launcher with init's pid, in the payload with 0.
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

/*
 * Namespaces that clone3 makes.  The other two come later and say why: the cgroup namespace once the
 * process is in its group (cgroup.c), the time namespace before a fork (timens.c).
 */
#define BY_CLONE (CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)

static void name_flags(uint64_t flags, char *text, size_t room)
{
    static const struct {
        uint64_t flag;
        const char *name;
    } names[] = {{CLONE_NEWUSER, "CLONE_NEWUSER"}, {CLONE_NEWPID, "CLONE_NEWPID"}, {CLONE_NEWNS, "CLONE_NEWNS"},
                 {CLONE_NEWNET, "CLONE_NEWNET"},   {CLONE_NEWUTS, "CLONE_NEWUTS"}, {CLONE_NEWIPC, "CLONE_NEWIPC"},
                 {CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"},
                 {CLONE_PARENT, "CLONE_PARENT"}};
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((flags & names[i].flag) && used < room)
            used += (size_t)snprintf(text + used, room - used, "%s%s", used ? "|" : "", names[i].name);
    if (used == 0)
        snprintf(text, room, "0");
}

/* Whether we hold CAP_SYS_ADMIN here and now, see sources.c for why it matters. */
bool nsm_may_mount(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2] = {{0}};
    return syscall(SYS_capget, &header, sets) == 0 && (sets[0].effective & (1U << CAP_SYS_ADMIN));
}

/*
 * Clone ourselves.  `*group` is a cgroup v2 directory to be born in, or -1; it is -1 afterwards, in both of us, unless
 * the child has still to be moved there.  With CLONE_PARENT the child becomes our sibling, and the kernel writes
 * its pid to `*sibling` before it runs.
 */
static pid_t clone_self(uint64_t flags, int *group, pid_t *sibling, struct nsm_journal *journal)
{
    bool child_of_ours = !(flags & CLONE_PARENT);
    struct clone_args arguments = {.flags = flags, .exit_signal = child_of_ours ? SIGCHLD : 0};
    if (sibling) {
        arguments.flags |= CLONE_PARENT_SETTID;
        arguments.parent_tid = (uintptr_t)sibling;
    }
    int wanted = *group;
    if (wanted >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (unsigned)wanted;
    }
    char names[176];
    name_flags(arguments.flags, names, sizeof names);
    *group = -1;
    pid_t child = (pid_t)NSM_TRY(journal, syscall(SYS_clone3, &arguments, sizeof arguments),
                                 "clone3(flags=%s%s)", names, child_of_ours ? ", exit_signal=SIGCHLD" : "");
    if (child >= 0 || errno != ENOSYS)
        return child;
    /*
     * Docker's filter says that there is no clone3.  The older call does the same, but for the group.  Its order
     * of arguments is the architecture's own, but not that of the first three.
     */
    *group = wanted;
    arguments.flags &= ~CLONE_INTO_CGROUP;
    name_flags(arguments.flags, names, sizeof names);
    return (pid_t)NSM_TRY(journal, syscall(SYS_clone, (unsigned long)arguments.flags | SIGCHLD, 0, sibling, 0, 0),
                          "clone(flags=%s|SIGCHLD)", names);
}

static pid_t clone_init(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "clone");
    int group = plan->cgroup_directory;
    pid_t child = clone_self(plan->namespaces & BY_CLONE, &group, NULL, journal);
    if (child > 0 && group >= 0 && nsm_cgroup_move(plan, child, journal) < 0) {
        int error = errno;
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        errno = error;
        return -1;
    }
    return child;
}

/*
 * A signal that the owner's own starter ignored would be ignored here for ever.  Python sees to those that it
 * knows; the C library keeps two for itself (32, 33) and hides them, so the kernel is asked directly.
 */
static void unignore_hidden_signals(void)
{
    struct {
        uintptr_t handler;
        unsigned long flags;
        uintptr_t restorer;
        uint64_t mask;
    } action;
    for (int number = 32; number < 34; number++) {
        memset(&action, 0, sizeof action);
        if (syscall(SYS_rt_sigaction, number, NULL, &action, sizeof action.mask) == 0 &&
            action.handler == (uintptr_t)SIG_IGN) {
            memset(&action, 0, sizeof action); /* SIG_DFL */
            syscall(SYS_rt_sigaction, number, &action, NULL, sizeof action.mask);
        }
    }
}

/* Once the root is there: give up everything, the filter last. */
static int build_payload(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "payload");
    /* Until the filter is in force nobody may reach into it (join.c). */
    if (NSM_TRY(journal, prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE, 0)") < 0)
        return -1;
    if (nsm_session(journal) < 0)
        return -1;
    if (nsm_limits(plan, journal) < 0)
        return -1;
    if (nsm_caps_drop(plan, journal) < 0)
        return -1;
    nsm_step(journal, "payload");
    unignore_hidden_signals();
    sigset_t none;
    sigemptyset(&none);
    if (NSM_TRY(journal, sigprocmask(SIG_SETMASK, &none, NULL), "sigprocmask(none)") < 0)
        return -1;
    if (nsm_landlock(plan, journal) < 0)
        return -1;
    if (nsm_seccomp(plan, journal) < 0)
        return -1;
    /* Its /proc/self is its own again, as in any program. */
    nsm_step(journal, "payload");
    return (int)NSM_TRY(journal, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE, 1)");
}

/* Init prefers to be spared when memory runs out; raising one's own score needs no right. */
static void offer_to_oom_killer(const struct nsm_plan *plan)
{
    int file = nsm_open_proc(plan, "/proc/self/oom_score_adj", O_WRONLY);
    if (file < 0)
        return;
    (void)!write(file, "500", 3);
    close(file);
}

/* What the payload is born into. */
static int build_identity(struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal)
{
    if (nsm_cgroup_join(plan, journal) < 0)
        return -1;
    if (nsm_mount_open_sources(plan, entries, journal) < 0)
        return -1;
    if (nsm_userns_become(plan, journal) < 0)
        return -1;
    if (nsm_cgroup_namespace(plan, journal) < 0)
        return -1;
    if (nsm_timens(plan, journal) < 0)
        return -1;
    if (!(plan->namespaces & CLONE_NEWPID)) {
        nsm_step(journal, "init");
        if (NSM_TRY(journal, prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER, 1)") < 0)
            return -1;
    }
    return 0;
}

/* What the payload finds when it is let go on; meanwhile it warms itself. */
static int build_surroundings(struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal)
{
    if (nsm_uts(plan, journal) < 0)
        return -1;
    if (nsm_mount(plan, entries, journal) < 0)
        return -1;
    if (plan->workdir) {
        nsm_step(journal, "workdir");
        if (NSM_TRY(journal, chdir(plan->workdir), "chdir(\"%s\")", plan->workdir) < 0)
            return -1;
    }
    return 0;
}

/* The way to tell the payload, once it is forked, that it may go on. */
static int make_go(int go[2], struct nsm_journal *journal)
{
    nsm_step(journal, "go");
    return (int)NSM_TRY(journal, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, go), "socketpair(go)");
}

/* Send the payload, if there is one, where we stand. */
static int let_go_on(const struct nsm_plan *plan, int go, struct nsm_journal *journal)
{
    if (plan->hold)
        return close(go);
    bool own_root = plan->namespaces & CLONE_NEWNS;
    int root = own_root ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    int workdir = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int result = -1;
    if (workdir >= 0 && (root >= 0 || !own_root))
        result = nsm_go_tell(plan, go, root, workdir, journal);
    int error = errno;
    if (root >= 0)
        close(root);
    if (workdir >= 0)
        close(workdir);
    close(go);
    errno = error;
    return result;
}

/* Init of a blank waits here, maybe for long, and must not keep open what others wait to see closed. */
static int await_rest(struct nsm_plan *plan, struct nsm_entry **entries, int go, struct nsm_journal *journal)
{
    const int wanted[] = {plan->late, plan->lifeline, plan->report, go};
    nsm_step(journal, "late");
    if (NSM_TRY(journal, nsm_fds_only(wanted, sizeof wanted / sizeof *wanted), "close_range(all but four)") < 0)
        return -1;
    int result = nsm_late_wait(plan, entries, journal);
    if (result > 0)
        _exit(0); /* and the kernel ends the payload */
    return result < 0 ? -1 : nsm_mount_open_sources(plan, *entries, journal);
}

/* The payload's side of its making. */
static pid_t begin_payload(struct nsm_plan *plan, int go, struct nsm_journal *journal)
{
    journal->length = 0;
    journal->who = "payload";
    offer_to_oom_killer(plan);
    if (nsm_fds_payload(plan, go, journal) < 0) {
        nsm_report(plan->report, NSM_REPORT_FAILED, journal);
        _exit(1);
    }
    nsm_report(NSM_PAYLOAD_REPORT, NSM_REPORT_JOURNAL, journal);
    /* Among others, who may be hostile: no Python before it is confined. */
    if (plan->join_count > 0 && nsm_confine(plan) < 0)
        _exit(1);
    return 0;
}

/* The clone's side.  Returns only in the payload. */
static pid_t run_container(struct nsm_plan *plan, struct nsm_entry *entries, int gate,
                           struct nsm_journal *journal)
{
    journal->length = 0; /* what the launcher did is told by the launcher */
    journal->who = "init";

    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    /* A session of our own from the start: a Ctrl-C in the owner's terminal is not for us. */
    setsid();

    char opened;
    nsm_step(journal, "gate");
    if (NSM_TRY(journal, read(gate, &opened, 1) == 1 ? 0 : -1, "read(gate)") < 0)
        _exit(1); /* the launcher has told why, or is gone */
    close(gate);

    int go[2] = {-1, -1};
    if (build_identity(plan, entries, journal) < 0 || make_go(go, journal) < 0) {
        nsm_report(plan->report, NSM_REPORT_FAILED, journal);
        _exit(1);
    }

    pid_t payload = 0;
    if (!plan->hold) {
        nsm_step(journal, "fork");
        nsm_begin(journal);
        payload = fork();
        if (payload == 0)
            return begin_payload(plan, go[1], journal);
        if (nsm_end(journal, payload, "fork()") < 0) {
            nsm_report(plan->report, NSM_REPORT_FAILED, journal);
            _exit(1);
        }
    }
    close(go[1]);
    /* `nsmagic ps` looks for the first; the second has no container of its own. */
    prctl(PR_SET_NAME, plan->namespaces || !plan->join_count ? "nsmagic-init" : "nsmagic-join", 0, 0, 0);
    if (nsm_net(plan, journal) < 0 || nsm_join_offer(plan, journal) < 0 ||
        (plan->late >= 0 && await_rest(plan, &entries, go[0], journal) < 0) ||
        build_surroundings(plan, entries, journal) < 0 || nsm_join_check_proc(plan, journal) < 0 ||
        let_go_on(plan, go[0], journal) < 0) {
        nsm_report(plan->report, NSM_REPORT_FAILED, journal);
        _exit(1);
    }
    nsm_init(plan, payload, journal);
}

int nsm_confine(struct nsm_plan *plan)
{
    struct nsm_journal journal = {.who = "payload", .step = "go"};
    struct nsm_rlimit rlimits[NSM_MOST_RLIMITS];
    int waited = nsm_go_wait(plan, rlimits, &journal);
    if (waited > 0) /* init has told why, or was ended */
        return -1;
    if (waited < 0 || build_payload(plan, &journal) < 0) {
        nsm_report(NSM_PAYLOAD_REPORT, NSM_REPORT_FAILED, &journal);
        return -1;
    }
    plan->rlimits = NULL;
    plan->rlimit_count = 0;
    nsm_report(NSM_PAYLOAD_REPORT, NSM_REPORT_READY, &journal);
    close(NSM_PAYLOAD_REPORT);
    return 0;
}

/* The maker's side of a new init: map its ids, let it go on, tell the owner. */
static int see_off(const struct nsm_plan *plan, pid_t init, int gate, struct nsm_journal *journal)
{
    if (nsm_userns_write_maps(plan, init, journal) < 0)
        return -1;
    (void)!write(gate, "g", 1); /* first: init waits for it */
    nsm_report(plan->report, NSM_REPORT_JOURNAL, journal);
    char text[16];
    int length = snprintf(text, sizeof text, "%c%d", NSM_REPORT_PID, init);
    (void)!send(plan->report, text, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
    return 0;
}

/* The joiner's side.  Returns only in the payload. */
static pid_t run_joiner(struct nsm_plan *plan, struct nsm_entry *entries, const int gate[2], int group, pid_t *init,
                        struct nsm_journal *journal)
{
    journal->length = 0;
    journal->who = "joiner";
    plan->proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if ((group < 0 || nsm_cgroup_move(plan, getpid(), journal) == 0) && nsm_cgroup_join(plan, journal) == 0 &&
        nsm_join_proc(plan, entries, journal) == 0 && nsm_join(plan, journal) == 0) {
        plan->cgroup_join_count = 0; /* a child is born where we are */
        madvise(init, sizeof *init, MADV_DONTFORK); /* what the launcher reads is not for them to write */
        nsm_step(journal, "clone");
        group = -1;
        pid_t child = clone_self((plan->namespaces & BY_CLONE) | CLONE_PARENT, &group, init, journal);
        if (child == 0) {
            close(gate[1]);
            return run_container(plan, entries, gate[0], journal);
        }
        if (child > 0 && see_off(plan, child, gate[1], journal) == 0)
            _exit(0);
    }
    nsm_report(plan->report, NSM_REPORT_FAILED, journal);
    _exit(1);
}

/* Have init made inside the namespaces that are joined.  `*told` says whether a failure has been told. */
static pid_t clone_inside(struct nsm_plan *plan, struct nsm_entry *entries, const int gate[2], bool *told,
                          struct nsm_journal *journal)
{
    nsm_step(journal, "join");
    pid_t *init = mmap(NULL, sizeof *init, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (init == MAP_FAILED)
        return (pid_t)NSM_TRY(journal, -1, "mmap(MAP_SHARED)");
    int group = plan->cgroup_directory;
    pid_t joiner = clone_self(0, &group, NULL, journal);
    if (joiner == 0)
        return run_joiner(plan, entries, gate, group, init, journal);
    pid_t child = -1;
    if (joiner > 0) {
        int status = 0;
        while (waitpid(joiner, &status, 0) < 0 && errno == EINTR)
            continue;
        child = *init;
        if (status != 0) {
            if (child > 0) {
                kill(child, SIGKILL);
                waitpid(child, NULL, 0);
            }
            child = -1;
            *told = WIFEXITED(status);
            errno = ECHILD;
            if (!*told)
                (void)NSM_TRY(journal, (errno = ECHILD, -1), "waitpid(joiner): signal %d", WTERMSIG(status));
        }
    }
    int error = errno;
    munmap(init, sizeof *init);
    errno = error;
    return child;
}

pid_t nsm_spawn(struct nsm_plan *plan, struct nsm_entry *entries)
{
    struct nsm_journal journal = {.who = "launcher", .step = "spawn"};
    plan->entries = entries;
    plan->proc = -1;

    int gate[2];
    if (NSM_TRY(&journal, pipe2(gate, O_CLOEXEC), "pipe2(O_CLOEXEC)") < 0) {
        nsm_report(plan->report, NSM_REPORT_FAILED, &journal);
        return -1;
    }
    pid_t child = -1;
    bool told = false, joins = plan->join_count > 0;
    if (plan->late >= 0 || !nsm_may_mount() || nsm_mount_open_sources(plan, entries, &journal) == 0)
        child = joins ? clone_inside(plan, entries, gate, &told, &journal) : clone_init(plan, &journal);
    if (child == 0) {
        if (!joins) {
            close(gate[1]);
            return run_container(plan, entries, gate[0], &journal);
        }
        return 0;
    }

    int error = errno;
    close(gate[0]);
    nsm_mount_close_sources(plan, entries);
    if (child > 0 && !joins && see_off(plan, child, gate[1], &journal) < 0) {
        error = errno;
        close(gate[1]);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        child = -1;
        gate[1] = -1;
    }
    if (child < 0)
        nsm_report(plan->report, told ? NSM_REPORT_JOURNAL : NSM_REPORT_FAILED, &journal);
    else if (joins)
        nsm_report(plan->report, NSM_REPORT_JOURNAL, &journal);
    if (gate[1] >= 0)
        close(gate[1]);
    errno = error;
    return child;
}
