/*
 * cgroup.c - the limits' group, and the namespace that hides where it hangs.
 *
 * The owner has made the group, written its limits and opened its files; here the new process
 * only joins it, before it does anything else.  With cgroup v2 that is done by
 * clone3(CLONE_INTO_CGROUP) itself.  With v1 it writes "0", which means itself, to each
 * `tasks` file.  (Not to `cgroup.procs`: moving a whole process waits for a grace period of RCU, ten
 * milliseconds, and a process of one thread is moved as well by that thread.)
 * The right to write there is that of whoever opened the file, so these descriptors are closed before any
 * foreign code runs (CVE-2021-4197).  The namespace comes second, because its root is the group
 * that the process is in at that moment.
 * See cgroups(7), cgroup_namespaces(7).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

/* Called in the launcher where there is no clone3: init waits at the gate meanwhile. */
int nsm_cgroup_move(const struct nsm_plan *plan, pid_t child, struct nsm_journal *journal)
{
    nsm_step(journal, "cgroup");
    int file = (int)NSM_TRY(journal, openat(plan->cgroup_directory, "cgroup.procs", O_WRONLY | O_CLOEXEC),
                            "openat(group, \"cgroup.procs\", O_WRONLY)");
    if (file < 0)
        return -1;
    char pid[16];
    int length = snprintf(pid, sizeof pid, "%d", child);
    long written = NSM_TRY(journal, write(file, pid, (size_t)length), "write(cgroup.procs, \"%s\")", pid);
    int error = errno;
    close(file);
    errno = error;
    return written < 0 ? -1 : 0;
}

int nsm_cgroup_join(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "cgroup");
    for (size_t i = 0; i < plan->cgroup_join_count; i++)
        if (NSM_TRY(journal, write(plan->cgroup_joins[i], "0", 1), "write(tasks, \"0\")") < 0)
            return -1;
    return 0;
}

int nsm_cgroup_namespace(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWCGROUP))
        return 0;
    nsm_step(journal, "cgroup");
    return (int)NSM_TRY(journal, unshare(CLONE_NEWCGROUP), "unshare(CLONE_NEWCGROUP)");
}
