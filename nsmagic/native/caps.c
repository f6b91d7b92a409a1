/*
 * caps.c - who the payload is, and that it can never become more.
 *
 * In its user namespace a new process holds every capability; none is left to the payload.
 * The bounding set goes first (dropping from it needs CAP_SETPCAP), the ambient set next, the
 * three thread sets last.  no_new_privs makes setuid programs harmless.
 * See capabilities(7), PR_SET_NO_NEW_PRIVS(2const).
 */
#include "nsmagic.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Without a user namespace only root comes here: it becomes the unprivileged host user on the way. */
static int become_host_user(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (nsm_userns_there(plan) || geteuid() == plan->host_uid)
        return 0;
    nsm_step(journal, "identity");
    unsigned uid = plan->host_uid, gid = plan->host_gid;
    if (NSM_TRY(journal, setgroups(0, NULL), "setgroups(none)") < 0)
        return -1;
    if (NSM_TRY(journal, setresgid(gid, gid, gid), "setresgid(%u)", gid) < 0)
        return -1;
    return (int)NSM_TRY(journal, setresuid(uid, uid, uid), "setresuid(%u)", uid);
}

/* Only while CAP_SETPCAP is held, so before become_host_user() gives it up. */
static int drop_bounding(struct nsm_journal *journal)
{
    int dropped = 0;
    nsm_begin(journal);
    for (; dropped < 64; dropped++) {
        if (prctl(PR_CAPBSET_DROP, dropped, 0, 0, 0) == 0)
            continue;
        if (errno == EINVAL) /* past the last capability that this kernel knows */
            break;
        nsm_end(journal, -1, "prctl(PR_CAPBSET_DROP, capability=%d)", dropped);
        return -1;
    }
    nsm_end(journal, 0, "prctl(PR_CAPBSET_DROP, capability=0..%d)", dropped - 1);
    return 0;
}

int nsm_caps_drop(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    nsm_step(journal, "capabilities");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2] = {{0}};
    if (NSM_TRY(journal, syscall(SYS_capget, &header, sets), "capget()") < 0)
        return -1;
    /* An ordinary user without a user namespace holds none, and may not narrow what he could never use. */
    if ((sets[0].effective & (1U << CAP_SETPCAP)) && drop_bounding(journal) < 0)
        return -1;
    if (become_host_user(plan, journal) < 0)
        return -1;
    nsm_step(journal, "capabilities");
    if (NSM_TRY(journal, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
                "prctl(PR_CAP_AMBIENT_CLEAR_ALL)") < 0)
        return -1;
    sets[0] = sets[1] = (struct __user_cap_data_struct){0};
    if (NSM_TRY(journal, syscall(SYS_capset, &header, sets), "capset(effective=permitted=inheritable=none)") < 0)
        return -1;
    return (int)NSM_TRY(journal, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS, 1)");
}
