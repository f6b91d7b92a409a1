/*
 * cgroup.c - the limits' group, and the namespace that hides where it hangs.
 *
 * The host's side has made the group, written its limits and opened its files; here the
 * new process is only put into it, before it runs anything.  With cgroup v2 that is done
 * by clone3(CLONE_INTO_CGROUP) itself.  The namespace comes second, because its root is the
 * group that the process is in at that moment.
 * See cgroups(7), cgroup_namespaces(7).
 */
#include "nsmagic.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

/* Called in the launcher, which may write there; `child` waits meanwhile. */
int nsm_cgroup_join(const struct nsm_plan *plan, pid_t child, struct nsm_journal *journal)
{
    nsm_step(journal, "cgroup");
    char pid[16];
    int length = snprintf(pid, sizeof pid, "%d", child);
    for (size_t i = 0; i < plan->cgroup_procs_count; i++)
        if (NSM_TRY(journal, write(plan->cgroup_procs[i], pid, (size_t)length),
                    "write(cgroup.procs, \"%s\")", pid) < 0)
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
