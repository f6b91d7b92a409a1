/*
 * net.c - the network namespace: own interfaces, addresses, routes and ports.
 *
 * A new network namespace holds one interface, `lo`, and it is down.  Programs expect
 * 127.0.0.1 to answer, so we switch it on; there is no way out of it.
 *
 * More than that takes somebody who is also somewhere else: the holder of a lab, where the other end of our
 * cable is plugged in, or the guard of pasta, which carries packets to the host's sockets.  Both live outside.
 * Init tells them that the namespace is there, over a socket that was made for this container, and waits until
 * they have done their work; the kernel says who it is that tells (SCM_CREDENTIALS in unix(7)).  The payload
 * waits for init all the while.
 * See network_namespaces(7), netdevice(7), veth(4).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_ANSWER 16384
#define DONE '+' /* an answer's first byte, then journal lines; any other: the last of the lines has failed */

static int bring_up_loopback(struct nsm_journal *journal)
{
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

/*
 * Ports below 1024 are for everybody in here: who serves on 80 has no capabilities.  The setting is this network
 * namespace's own.  Where /proc/sys is read-only (Docker) we go on without; the owner reads this line.
 */
static void open_low_ports(struct nsm_journal *journal)
{
    static const char path[] = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    int file = (int)NSM_TRY(journal, open(path, O_WRONLY | O_CLOEXEC), "open(\"%s\", O_WRONLY)", path);
    if (file < 0)
        return;
    NSM_TRY(journal, write(file, "0", 1), "write(ip_unprivileged_port_start, \"0\")");
    close(file);
}

/* Wait for those outside who build the rest.  Their calls go into our journal: it tells how all of it was built. */
static int await_others(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    char answer[MOST_ANSWER];
    if (NSM_TRY(journal, send(plan->network, "n", 1, MSG_NOSIGNAL), "send(network, \"it is there\")") < 0)
        return -1;
    nsm_begin(journal);
    ssize_t got;
    do
        got = recv(plan->network, answer, sizeof answer, 0);
    while (got < 0 && errno == EINTR);
    if (got == 0)
        errno = ECONNRESET; /* whoever should have done it is dead */
    nsm_end(journal, got > 0 ? 0 : -1, "recv(network)");
    if (got <= 0)
        return -1;
    nsm_append(journal, answer + 1, (size_t)got - 1);
    return answer[0] == DONE ? 0 : -1;
}

int nsm_net(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWNET))
        return 0;
    nsm_step(journal, "net");
    if (bring_up_loopback(journal) < 0)
        return -1;
    if (plan->network < 0)
        return 0;
    open_low_ports(journal);
    return await_others(plan, journal);
}
