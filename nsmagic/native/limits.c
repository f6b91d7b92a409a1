/*
 * limits.c - limits of the single process, below those of the cgroup.
 *
 * No core dumps ever: core_pattern is the host's and would run a program there.
 * RLIMIT_NPROC counts per user *namespace* since Linux 5.14, which makes it an exact limit
 * for a container that has its own.  See getrlimit(2).
 */
#include "nsmagic.h"

#include <sys/resource.h>

int nsm_limits(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "limits");
    for (size_t i = 0; i < plan->rlimit_count; i++) {
        const struct nsm_rlimit *limit = &plan->rlimits[i];
        struct rlimit both = {.rlim_cur = limit->value, .rlim_max = limit->value};
        if (NSM_TRY(journal, setrlimit((__rlimit_resource_t)limit->resource, &both),
                    "setrlimit(resource=%d, soft=hard=%llu)", limit->resource,
                    (unsigned long long)limit->value) < 0)
            return -1;
    }
    return 0;
}
