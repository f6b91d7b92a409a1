/*
 * userns.c - the user namespace: which ids inside stand for which ids outside.
 *
 * The map has one line: the payload's uid inside is the owner's own uid outside (or, when the
 * owner is root, an unprivileged uid that nothing else uses).  Every other id shows as "nobody".
 * Whoever makes init writes the maps (the launcher, or the joiner, see join.c), because that takes rights in the
 * user namespace above; setgroups must be denied first, or an ordinary user may not write gid_map at all.
 * See user_namespaces(7).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether the container is in a user namespace, a new one or a joined one. */
bool nsm_userns_there(const struct nsm_plan *plan)
{
    return (plan->namespaces & CLONE_NEWUSER) || nsm_joins(plan, CLONE_NEWUSER);
}

static int write_file(const struct nsm_plan *plan, pid_t child, const char *name, const char *text,
                      struct nsm_journal *journal)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", child, name);
    int file = (int)NSM_TRY(journal, nsm_open_proc(plan, path, O_WRONLY), "open(\"%s\", O_WRONLY)", path);
    if (file < 0)
        return -1;
    long written = NSM_TRY(journal, write(file, text, strlen(text)), "write(%s, \"%s\")", name, text);
    int error = errno;
    close(file);
    errno = error;
    return written < 0 ? -1 : 0;
}

int nsm_userns_write_maps(const struct nsm_plan *plan, pid_t child, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWUSER))
        return 0;
    nsm_step(journal, "userns");
    char map[64];
    snprintf(map, sizeof map, "%u %u 1", plan->uid, plan->parent_uid);
    if (write_file(plan, child, "uid_map", map, journal) < 0)
        return -1;
    if (write_file(plan, child, "setgroups", "deny", journal) < 0)
        return -1;
    snprintf(map, sizeof map, "%u %u 1", plan->gid, plan->parent_gid);
    return write_file(plan, child, "gid_map", map, journal);
}

/* In the child, once the maps are there: take on the mapped ids, keep the capabilities for the build. */
int nsm_userns_become(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!nsm_userns_there(plan))
        return 0;
    nsm_step(journal, "userns");
    if (NSM_TRY(journal, setresgid(plan->gid, plan->gid, plan->gid), "setresgid(%u)", plan->gid) < 0)
        return -1;
    if (NSM_TRY(journal, setresuid(plan->uid, plan->uid, plan->uid), "setresuid(%u)", plan->uid) < 0)
        return -1;
    /* A change of ids makes /proc/self belong to root; the build still has to write there. */
    return (int)NSM_TRY(journal, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE, 1)");
}

/*
 * Root only: a user namespace whose sole use is to say, for an idmapped mount, that files of
 * `owner` shall appear as files of `host_uid`.  See mount_setattr(2), "ID-mapped mounts".
 *
 * A namespace needs a process to be born with; this one sleeps until its maps are written and the
 * namespace is held by a descriptor, which is returned (-1: errno says why not).
 */
int nsm_userns_for_idmap(unsigned owner, unsigned group, unsigned host_uid, unsigned host_gid)
{
    struct nsm_journal unread = {.who = "launcher", .step = "userns"};
    struct nsm_plan maps = {.namespaces = CLONE_NEWUSER,
                            .uid = owner, .gid = group, .parent_uid = host_uid, .parent_gid = host_gid,
                            .proc = -1};

    pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (child < 0)
        return -1;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* our parent has one thread, so it is our parent's death */
        for (;;)
            pause();
    }

    int namespace = -1;
    if (nsm_userns_write_maps(&maps, child, &unread) == 0) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/ns/user", child);
        namespace = open(path, O_RDONLY | O_CLOEXEC);
    }
    int error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    errno = error;
    return namespace;
}
