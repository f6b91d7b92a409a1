/*
 * net.c - the network namespace: own interfaces, addresses, routes and ports.
 *
 * A new network namespace holds one interface, `lo`, and it is down.  Programs expect
 * 127.0.0.1 to answer, so we switch it on; there is no way out of it.
 * See network_namespaces(7), netdevice(7).
 */
#include "nsmagic.h"

#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int nsm_net(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWNET))
        return 0;
    nsm_step(journal, "net");

    int handle = (int)NSM_TRY(journal, socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
                              "socket(AF_INET, SOCK_DGRAM)");
    if (handle < 0)
        return -1;
    struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
    strcpy(request.ifr_name, "lo");
    int result = (int)NSM_TRY(journal, ioctl(handle, SIOCSIFFLAGS, &request),
                              "ioctl(SIOCSIFFLAGS, name=\"lo\", flags=IFF_UP)");
    close(handle);
    return result;
}
