/*
 * uts.c - the UTS namespace: a host name of one's own.
 *
 * clone3(CLONE_NEWUTS) has made the namespace, with a copy of the host's name.
 * What is set here is seen by processes in this namespace and by nobody else.
 * See uts_namespaces(7), sethostname(2).
 */
#include "nsmagic.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

int nsm_uts(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWUTS) || !plan->hostname)
        return 0;
    nsm_step(journal, "uts");
    if (NSM_TRY(journal, sethostname(plan->hostname, strlen(plan->hostname)), "sethostname(name=\"%s\")",
                plan->hostname) == 0)
        return 0;
    /* Podman's filter denies the call, though a name of our own would touch nobody's.  The owner reads this line. */
    return plan->hostname_wished && errno == EPERM ? 0 : -1;
}
