/*
 * interrupts.c - an interrupt that comes in the middle of a fork waits until the fork is over.
 *
 * Around each fork Python runs hooks: modules take their locks before it and let go of them behind it.  Python's
 * handler for SIGINT raises KeyboardInterrupt wherever the program is at that moment.  In a hook there is nobody to
 * raise it to: Python prints that it was ignored, so the user's interrupt is lost, and the lock that the hook was about
 * to open stays closed for ever.
 *
 * So these are hooks, too, the outermost (launcher/forks.py): meanwhile another handler only notes that the signal
 * came.  They are C functions because Python looks for signals between any two steps of Python code.
 * See sigaction(2), os.register_at_fork.
 */
#include "nsmagic.h"

#include <signal.h>
#include <stdatomic.h>

static struct sigaction before;
static volatile sig_atomic_t came;
static atomic_int forks; /* that are under way: other threads may fork as well */

static void note(int signal)
{
    (void)signal;
    came = 1;
}

/* Before a fork. */
void nsm_hold_interrupts(void)
{
    if (atomic_fetch_add(&forks, 1) > 0)
        return;
    struct sigaction meanwhile = {.sa_handler = note, .sa_flags = SA_RESTART}, now;
    sigemptyset(&meanwhile.sa_mask);
    came = 0;
    sigaction(SIGINT, &meanwhile, &now);
    if (now.sa_handler != note) /* else another thread is just about to put back what was there before */
        before = now;
}

/* Behind it, in the parent: what came is for whoever called fork. */
void nsm_give_interrupts(void)
{
    if (atomic_fetch_sub(&forks, 1) > 1)
        return;
    sigaction(SIGINT, &before, NULL);
    if (came)
        raise(SIGINT);
}

/* In the child, which has one thread: what came before it was there is not for it. */
void nsm_forget_interrupts(void)
{
    if (atomic_exchange(&forks, 0) == 0)
        return;
    sigaction(SIGINT, &before, NULL);
}
