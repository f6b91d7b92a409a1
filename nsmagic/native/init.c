/*
 * init.c - PID 1 of a container.
 *
 * When PID 1 ends, the kernel ends every process of its PID namespace: that is how nothing is ever left
 * behind.  So init's whole work is to wait for one of four things and then to end:
 *   - the payload ended           (SIGCHLD): tell the owner how; unless a snapshot of it takes over (snapshot.c)
 *   - the deadline passed         (timerfd): tell the owner so
 *   - the lifeline closed         (the owner died or stopped us)
 *   - orphans died                (SIGCHLD): reap them, that is PID 1's duty
 * It runs none of the user's code, holds no capability and is under the same filter as the payload;
 * and as PID 1 it gets no signal from inside that it has no handler for, not even SIGKILL.
 * See pid_namespaces(7), signalfd(2), timerfd_create(2).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Init's descriptors; all others are closed. */
enum { LIFELINE = 3, REPORT, CHILDREN, CLOCK, FIRST_UNUSED };

static int keep_descriptors(const struct nsm_plan *plan)
{
    int lifeline = fcntl(plan->lifeline, F_DUPFD_CLOEXEC, FIRST_UNUSED);
    int report = fcntl(plan->report, F_DUPFD_CLOEXEC, FIRST_UNUSED);
    if (lifeline < 0 || report < 0 || dup2(lifeline, LIFELINE) < 0 || dup2(report, REPORT) < 0)
        return -1;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    int children = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    int clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (children < 0 || clock < 0)
        return -1;
    /* Two of the four may sit in each other's place by now. */
    children = fcntl(children, F_DUPFD_CLOEXEC, FIRST_UNUSED);
    clock = fcntl(clock, F_DUPFD_CLOEXEC, FIRST_UNUSED);
    if (children < 0 || clock < 0 || dup2(children, CHILDREN) < 0 || dup2(clock, CLOCK) < 0)
        return -1;
    /* The streams too: the owner must see their end when the payload's side closes. */
    close(0);
    close(1);
    close(2);
    return (int)syscall(SYS_close_range, FIRST_UNUSED, ~0U, 0);
}

static void tell(char kind, const char *cause, int status, const struct rusage *used, bool full)
{
    char text[160];
    int length = snprintf(text, sizeof text, "%c%s %d %lld %lld %ld %d", kind, cause, status,
                          (long long)used->ru_utime.tv_sec * 1000000 + used->ru_utime.tv_usec,
                          (long long)used->ru_stime.tv_sec * 1000000 + used->ru_stime.tv_usec, used->ru_maxrss, full);
    (void)!send(REPORT, text, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void tell_exit(const char *cause, int status, bool full)
{
    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    tell(NSM_REPORT_EXIT, cause, status, &used, full);
}

/*
 * The youngest snapshot, or 0.  Our children stand in the order in which they came to us.  Older ones are ended by it
 * when it has woken: it may be dying itself.
 * Code inside can give itself that name, and gains nothing by it: it goes on in its own container, in the place of a
 * payload that it could have killed anyway, until the owner misses its answers.
 */
static pid_t find_snapshot(void)
{
    FILE *list = fopen("/proc/thread-self/children", "re");
    if (!list)
        return 0;
    pid_t found = 0, pid;
    while (fscanf(list, "%d", &pid) == 1) {
        if (nsm_is_snapshot(pid))
            found = pid;
    }
    fclose(list);
    return found;
}

/*
 * Without a PID namespace our end ends nobody else: end our descendants by hand, a generation at a time, until
 * none is left.  Orphans come to us (PR_SET_CHILD_SUBREAPER); one that is yet to come has not been killed, so
 * we wait only for those that have been.
 */
static void end_descendants(void)
{
    for (int round = 0; round < 100000; round++) {
        FILE *list = fopen("/proc/thread-self/children", "re");
        if (!list)
            return;
        pid_t killed[256];
        int count = 0;
        while (count < 256 && fscanf(list, "%d", &killed[count]) == 1)
            kill(killed[count++], SIGKILL);
        fclose(list);
        if (count == 0)
            return;
        for (int i = 0; i < count; i++)
            waitpid(killed[i], NULL, 0);
    }
}

/*
 * Whether the payload was at its limit of processes when it ended.  Where a cgroup counts them it also counts what it
 * refused; RLIMIT_NPROC counts nothing of the kind.  But it holds for us as well, if we set it: so we try whether
 * one more is refused, or the one in the payload's place where the payload is gone.
 */
static bool at_process_limit(const struct nsm_plan *plan, bool payload_gone)
{
    for (size_t i = 0; i < plan->rlimit_count; i++) {
        uint64_t most = plan->rlimits[i].value;
        if (plan->rlimits[i].resource != RLIMIT_NPROC || most == 0)
            continue;
        struct rlimit limit = {.rlim_cur = payload_gone ? most - 1 : most, .rlim_max = most};
        if (setrlimit(RLIMIT_NPROC, &limit) < 0)
            return false;
        /* Not vfork(): our children live in other clocks, and Linux 6.1 lets none of those share our memory. */
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child > 0)
            waitpid(child, NULL, 0);
        return child < 0 && errno == EAGAIN;
    }
    return false;
}

static void finish(const struct nsm_plan *plan, const char *cause, int status) __attribute__((noreturn));
static void finish(const struct nsm_plan *plan, const char *cause, int status)
{
    bool full = at_process_limit(plan, strcmp(cause, "payload") == 0);
    /* End the others first: what they used is then in the report. */
    if (plan->namespaces & CLONE_NEWPID) {
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, 0) > 0)
            continue;
    } else {
        end_descendants();
    }
    tell_exit(cause, status, full);
    _exit(0);
}

/* Returns true when the lifeline is closed. */
static bool take_orders(pid_t payload)
{
    struct nsm_order order;
    ssize_t got = read(LIFELINE, &order, sizeof order);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        return true;
    if (got != sizeof order)
        return false;
    if (order.kind == NSM_ORDER_DEADLINE) {
        struct itimerspec when = {.it_value = {.tv_sec = (time_t)(order.value / 1000000000),
                                               .tv_nsec = (long)(order.value % 1000000000)}};
        timerfd_settime(CLOCK, 0, &when, NULL);
    } else if (order.kind == NSM_ORDER_SIGNAL && order.value > 0 && order.value < 65 && payload > 0) {
        kill(-payload, (int)order.value);
    }
    return false;
}

void nsm_init(const struct nsm_plan *plan, pid_t payload, struct nsm_journal *journal)
{
    int report = plan->report;

    nsm_step(journal, "init");
    if (NSM_TRY(journal, keep_descriptors(plan), "close_range(%d, ~0)", FIRST_UNUSED) < 0) {
        nsm_report(report, NSM_REPORT_FAILED, journal);
        _exit(1);
    }
    /* Nobody in here may look into init by way of /proc; so that comes before init is no more than they are. */
    if (NSM_TRY(journal, prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE, 0)") < 0 ||
        nsm_caps_drop(plan, journal) < 0 || nsm_seccomp(plan, journal) < 0) {
        nsm_report(REPORT, NSM_REPORT_FAILED, journal);
        _exit(1);
    }
    nsm_report(REPORT, NSM_REPORT_INIT, journal);

    struct pollfd events[] = {
        {.fd = LIFELINE, .events = POLLIN}, {.fd = CHILDREN, .events = POLLIN}, {.fd = CLOCK, .events = POLLIN}};
    for (;;) {
        if (poll(events, 3, -1) < 0)
            continue;
        if (events[1].revents) {
            struct signalfd_siginfo unread;
            while (read(CHILDREN, &unread, sizeof unread) > 0)
                continue;
            int status;
            struct rusage used;
            for (pid_t child; (child = wait4(-1, &status, WNOHANG, &used)) > 0;) {
                if (child != payload)
                    continue;
                payload = plan->snapshots ? find_snapshot() : 0;
                if (payload == 0)
                    finish(plan, "payload", status);
                tell(NSM_REPORT_DEATH, "payload", status, &used, false);
                kill(payload, NSM_WAKE);
            }
        }
        if (events[2].revents)
            finish(plan, "deadline", 0);
        if (events[0].revents && take_orders(payload))
            finish(plan, "lifeline", 0);
    }
}
