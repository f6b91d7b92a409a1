/*
 * join.c - being made inside namespaces that others have made.
 *
 * A namespace is entered with setns(), by whoever has CAP_SYS_ADMIN in the user namespace that owns it.  An
 * ordinary user has that right over what he made only once he is in the owning *user* namespace, and there is no
 * way back out of one.  So the launcher does not go itself: it makes a short-lived process, the *joiner*, which
 * enters everything in the order given, makes init from in there, and ends (spawn.c).  Whatever is cloned from
 * it is born inside; a user namespace that is cloned from it is a child of the one that it is in.
 *
 * What has been joined holds processes that may be hostile, of the same uid and maybe with the same files.  Two
 * rules follow.  Whoever is born there runs C only, until it is under the filter: Python looks for modules in
 * files.  And it stays undumpable until then: while it holds capabilities they keep others out of its memory, but
 * between giving those up and the filter nothing else would.
 *
 * See setns(2), namespaces(7), user_namespaces(7), proc_pid_ns(5).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

/* By which name /proc/self/ns has the one that our children are born into. */
static const struct {
    int flag;
    const char *name, *file;
} kinds[] = {
    {CLONE_NEWUSER, "CLONE_NEWUSER", "user"}, {CLONE_NEWPID, "CLONE_NEWPID", "pid"},
    {CLONE_NEWNS, "CLONE_NEWNS", "mnt"},      {CLONE_NEWNET, "CLONE_NEWNET", "net"},
    {CLONE_NEWUTS, "CLONE_NEWUTS", "uts"},    {CLONE_NEWIPC, "CLONE_NEWIPC", "ipc"},
    {CLONE_NEWCGROUP, "CLONE_NEWCGROUP", "cgroup"},
    {CLONE_NEWTIME, "CLONE_NEWTIME", "time_for_children"},
};
#define KINDS (sizeof kinds / sizeof *kinds)

/* Whether a namespace of this kind is joined. */
bool nsm_joins(const struct nsm_plan *plan, int kind)
{
    for (size_t i = 0; i < plan->join_count; i++)
        if (plan->joins[i].kind == kind)
            return true;
    return false;
}

static int enter(const struct nsm_join *join, struct nsm_journal *journal)
{
    const char *name = "0", *file = "?";
    for (size_t i = 0; i < KINDS; i++)
        if (kinds[i].flag == join->kind) {
            name = kinds[i].name;
            file = kinds[i].file;
        }
    struct stat namespace = {0};
    (void)fstat(join->fd, &namespace); /* for the journal only: the number that /proc shows */
    return (int)NSM_TRY(journal, setns(join->fd, join->kind), "setns(%.*s:[%llu], %s)", (int)strcspn(file, "_"), file,
                        (unsigned long long)namespace.st_ino, name);
}

/* ---- A /proc for a joined PID namespace ------------------------------------ */

/*
 * A procfs may be mounted by whoever has rights over the PID namespace that it shows.  An init in a user namespace
 * of its own has none over one that it only joined; so a copy is taken of the mount that the owner made.  That
 * can be done by a process in the owner's mount namespace, from where nobody comes back: a child goes, and
 * leaves what it has opened in the table of descriptors that it shares with us.
 */
struct told {
    int tree, error;
};

static void take_proc(const struct nsm_plan *plan, struct told *told)
{
    bool inside = true;
    for (size_t i = 0; i < plan->join_count && inside; i++)
        if (plan->joins[i].kind == CLONE_NEWUSER)
            inside = setns(plan->joins[i].fd, CLONE_NEWUSER) == 0;
    if (inside && setns(plan->proc_from, CLONE_NEWNS) == 0)
        told->tree = (int)syscall(SYS_open_tree, AT_FDCWD, "/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    told->error = errno;
    _exit(0);
}

int nsm_join_proc(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal)
{
    if (plan->proc_from < 0)
        return 0;
    struct told *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (told == MAP_FAILED)
        return (int)NSM_TRY(journal, -1, "mmap(MAP_SHARED)");
    *told = (struct told){.tree = -1, .error = ECHILD};
    nsm_step(journal, "join");
    nsm_begin(journal);
    pid_t child = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        take_proc(plan, told);
    if (child > 0)
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            continue;
    int tree = told->tree;
    errno = child < 0 ? errno : told->error;
    (void)nsm_end(journal, tree, "open_tree(\"/proc\" of the joined, OPEN_TREE_CLONE|AT_RECURSIVE)");
    int error = errno;
    munmap(told, sizeof *told);
    errno = error;
    if (tree < 0)
        return -1;
    for (size_t i = 0; i < plan->entry_count; i++)
        if (entries[i].kind == NSM_PROC)
            entries[i].tree = tree;
    return 0;
}

/*
 * In init: a joined PID namespace has a PID 1 already, so our end does not end our descendants, and we have to
 * find them in /proc (init.c).  It must be the one of that namespace, or the numbers in it would be others'.
 */
int nsm_join_check_proc(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!nsm_joins(plan, CLONE_NEWPID))
        return 0;
    nsm_step(journal, "join");
    char self[16] = {0};
    nsm_begin(journal);
    bool ours = readlink("/proc/self", self, sizeof self - 1) > 0 && atoi(self) == getpid();
    errno = ESRCH;
    return (int)nsm_end(journal, ours ? 0 : -1, "readlink(\"/proc/self\")");
}

/* ---- In the joiner ------------------------------------------------------------ */

/*
 * A file of the launcher's own /proc.  The mounts that are joined may have another one, where a pid is another's, or
 * where we are not at all; so the joiner keeps a descriptor of ours, for itself and for those whom it makes.
 */
int nsm_open_proc(const struct nsm_plan *plan, const char *path, int flags)
{
    if (plan->proc < 0)
        return open(path, flags | O_CLOEXEC);
    return openat(plan->proc, path + strlen("/proc/"), flags | O_CLOEXEC);
}

int nsm_join(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "join");
    for (size_t i = 0; i < plan->join_count; i++)
        if (enter(&plan->joins[i], journal) < 0)
            return -1;
    if (!nsm_joins(plan, CLONE_NEWUSER))
        return 0;
    /* Only who is somebody in a user namespace may make another one in it; root of the host is nobody there. */
    if (NSM_TRY(journal, setresgid(plan->parent_gid, plan->parent_gid, plan->parent_gid), "setresgid(%u)",
                plan->parent_gid) < 0 ||
        NSM_TRY(journal, setresuid(plan->parent_uid, plan->parent_uid, plan->parent_uid), "setresuid(%u)",
                plan->parent_uid) < 0)
        return -1;
    /* A change of ids makes /proc files root's, and we have to write to those of init. */
    return (int)NSM_TRY(journal, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE, 1)");
}

/* ---- The other side: so that others can join us ------------------------------- */

/*
 * Init opens its own namespaces and gives them to the owner, before any foreign code runs in them.  So nobody ever
 * looks them up by a pid, which might be another's by then; and later nobody could: init is undumpable.
 */
int nsm_join_offer(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!plan->hold)
        return 0;
    nsm_step(journal, "offer");
    int opened[KINDS];
    size_t count = 0;
    char text[160] = {NSM_REPORT_NAMESPACES};
    int length = 1;
    long result = 0;
    for (size_t i = 0; i < KINDS && result >= 0; i++) {
        if (!(plan->namespaces & (uint64_t)kinds[i].flag) && !nsm_joins(plan, kinds[i].flag))
            continue;
        char path[48];
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i].file);
        result = NSM_TRY(journal, nsm_open_proc(plan, path, O_RDONLY), "open(\"%s\")", path);
        if (result >= 0) {
            opened[count++] = (int)result;
            length += snprintf(text + length, sizeof text - (size_t)length, "%d ", kinds[i].flag);
        }
    }
    if (result >= 0)
        result = NSM_TRY(journal, nsm_send_with(plan->report, text, (size_t)length, opened, count),
                         "sendmsg(report, SCM_RIGHTS, %zu namespaces)", count);
    int error = errno;
    for (size_t i = 0; i < count; i++)
        close(opened[i]);
    errno = error;
    return result < 0 ? -1 : 0;
}
