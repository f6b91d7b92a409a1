/*
 * timens.c - the time namespace: clocks that start at zero.
 *
 * It is the one namespace that a process cannot be born into with offsets of its own:
 * unshare(CLONE_NEWTIME) prepares it for the *children* of the caller, and the offsets may
 * be written only until the first child enters.  Init forks the payload anyway, so the
 * payload is that child: its uptime and monotonic clock begin with the container.
 * The date (CLOCK_REALTIME) is the host's; the kernel has no namespace for it.
 * See time_namespaces(7).
 */
#include "nsmagic.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

int nsm_timens(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWTIME))
        return 0;
    nsm_step(journal, "time");

    if (NSM_TRY(journal, unshare(CLONE_NEWTIME), "unshare(CLONE_NEWTIME)") < 0)
        return -1;

    struct timespec monotonic, boottime;
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    clock_gettime(CLOCK_BOOTTIME, &boottime);
    /* Whole seconds: an offset below the current value would make the clock negative (ERANGE). */
    char offsets[96];
    int length = snprintf(offsets, sizeof offsets, "monotonic -%lld 0\nboottime -%lld 0\n",
                          (long long)monotonic.tv_sec, (long long)boottime.tv_sec);

    int file = (int)NSM_TRY(journal, nsm_open_proc(plan, "/proc/self/timens_offsets", O_WRONLY),
                            "open(\"/proc/self/timens_offsets\", O_WRONLY)");
    if (file < 0)
        return -1;
    int result = (int)NSM_TRY(journal, write(file, offsets, (size_t)length),
                              "write(timens_offsets, \"monotonic -%lld, boottime -%lld\")",
                              (long long)monotonic.tv_sec, (long long)boottime.tv_sec);
    close(file);
    return result < 0 ? -1 : 0;
}
