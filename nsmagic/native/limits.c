/*
 * limits.c - limits of the single process, below those of the cgroup.
 *
 * No core dumps ever: core_pattern is the host's and would run a program there.
 * RLIMIT_NPROC counts per user *namespace* since Linux 5.14, which makes it an exact limit
 * for a container that has its own.  See getrlimit(2).
 */
#include "nsmagic.h"

#include <stdio.h>
#include <sys/resource.h>

static const char *name_of(int resource)
{
    switch (resource) {
    case RLIMIT_AS:
        return "RLIMIT_AS";
    case RLIMIT_CORE:
        return "RLIMIT_CORE";
    case RLIMIT_FSIZE:
        return "RLIMIT_FSIZE";
    case RLIMIT_MSGQUEUE:
        return "RLIMIT_MSGQUEUE";
    case RLIMIT_NPROC:
        return "RLIMIT_NPROC";
    case RLIMIT_SIGPENDING:
        return "RLIMIT_SIGPENDING";
    default:
        return NULL;
    }
}

int nsm_limits(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "limits");
    for (size_t i = 0; i < plan->rlimit_count; i++) {
        const struct nsm_rlimit *limit = &plan->rlimits[i];
        struct rlimit both = {.rlim_cur = limit->value, .rlim_max = limit->value};
        char number[16];
        snprintf(number, sizeof number, "%d", limit->resource);
        const char *name = name_of(limit->resource);
        if (NSM_TRY(journal, setrlimit((__rlimit_resource_t)limit->resource, &both),
                    "setrlimit(%s, soft=hard=%llu)", name ? name : number, (unsigned long long)limit->value) < 0)
            return -1;
    }
    return 0;
}
