/*
 * session.c - a session and a keyring of one's own.
 *
 * A process that shared our session could push keys into its terminal (TIOCSTI); one that
 * shared our session keyring could read our Kerberos tickets.  See setsid(2), keyrings(7).
 */
#include "nsmagic.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int nsm_session(struct nsm_journal *journal)
{
    nsm_step(journal, "session");
    if (NSM_TRY(journal, setsid(), "setsid()") < 0)
        return -1;
    if (NSM_TRY(journal, syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL),
                "keyctl(KEYCTL_JOIN_SESSION_KEYRING, name=NULL)") < 0) {
        /*
         * ENOSYS: a kernel without keyrings has none to share.  EPERM: a filter around us (Docker's) denies
         * the call; it denies it to the payload just so, and ours does too, so no key can be reached.
         * EDQUOT: the user's quota of keys is used up; again the payload cannot ask for one.
         */
        if (errno != ENOSYS && errno != EPERM && errno != EDQUOT)
            return -1;
    }
    return 0;
}
