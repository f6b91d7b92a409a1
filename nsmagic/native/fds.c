/*
 * fds.c - the payload keeps four descriptors and no other.
 *
 * An open descriptor is a right: a directory of the host left open is a way out of any
 * root (CVE-2024-21626).  So the four that are wanted move to 0-3, the report and the word to go on to 4 and 5,
 * until the build is over, and the rest is closed unseen.  See close_range(2).
 */
#include "nsmagic.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WANTED 6

int nsm_fds_payload(const struct nsm_plan *plan, int go, struct nsm_journal *journal)
{
    nsm_step(journal, "descriptors");
    const int wanted[WANTED] = {plan->stdin_fd, plan->stdout_fd, plan->stderr_fd, plan->control,
                                plan->report, go};
    int moved[WANTED];
    /* First out of the way, so that no move overwrites a descriptor that has yet to move. */
    for (int i = 0; i < WANTED; i++) {
        moved[i] = (int)NSM_TRY(journal, fcntl(wanted[i], F_DUPFD_CLOEXEC, WANTED), "fcntl(F_DUPFD_CLOEXEC)");
        if (moved[i] < 0)
            return -1;
    }
    for (int i = 0; i < WANTED; i++)
        if (NSM_TRY(journal, dup2(moved[i], i), "dup2(%d)", i) < 0)
            return -1;
    return (int)NSM_TRY(journal, syscall(SYS_close_range, WANTED, ~0U, 0), "close_range(%d, ~0)", WANTED);
}

/* Close all but 0-2 and these: what a process that will wait long must not keep open for others. */
int nsm_fds_only(const int *wanted, size_t count)
{
    unsigned first = 3;
    for (;;) {
        unsigned next = ~0U;
        for (size_t i = 0; i < count; i++)
            if ((unsigned)wanted[i] >= first && (unsigned)wanted[i] < next)
                next = (unsigned)wanted[i];
        if (next == ~0U)
            return (int)syscall(SYS_close_range, first, ~0U, 0);
        if (next > first && syscall(SYS_close_range, first, next - 1, 0) < 0)
            return -1;
        first = next + 1;
    }
}
