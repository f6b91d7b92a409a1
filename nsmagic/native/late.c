/*
 * late.c - what init and payload are told after they were made.
 *
 * A *blank* is a container whose namespaces and processes are there, but not yet what one run alone decides: its
 * files, its name, its limits.  Init waits here for the rest of the plan, which the launcher sends in one packet,
 * with the opened sources beside it.  The packet comes over a socket that only the launcher holds the other end
 * of, and no code of the user has run in the container by then; so it is trusted, and only checked for its size.
 *
 * The payload, whose Python warms itself meanwhile, waits in every container for the word that its root is built:
 * one packet too, with the root and the working directory beside it.
 * See unix(7) for descriptors in messages.
 */
#include "nsmagic.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_BYTES (192U * 1024)
#define MOST_TREES 250 /* the kernel lets 253 descriptors go with a packet */

/* ---- Packets with descriptors -------------------------------------------- */

long nsm_send_with(int socket, const void *data, size_t length, const int *descriptors, size_t count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST_TREES * sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > MOST_TREES) {
        errno = E2BIG;
        return -1;
    }
    if (count > 0) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), descriptors, count * sizeof(int));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL);
}

/* The packet's length, 0 at the other side's end; `count` is room before, and what came after. */
static long receive_with(int socket, void *data, size_t room, int *descriptors, size_t *count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST_TREES * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = room};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    long got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    size_t most = *count;
    *count = 0;
    if (got <= 0)
        return got;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (*count <= most)
            memcpy(descriptors, CMSG_DATA(header), *count * sizeof(int));
    }
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || *count > most) {
        errno = EMSGSIZE;
        return -1;
    }
    return got;
}

/* ---- The rest of the plan --------------------------------------------------- */

/*
 * The packet is the structs themselves, then the texts that they point at.  Both sides are one program, cloned, so
 * the structs are alike; in place of a pointer stands the offset of its text from the packet's beginning.
 */
struct rest {
    struct nsm_plan plan;
    uint64_t entries, rlimits; /* offsets, as those in `plan` are */
};

struct packet {
    char *bytes;
    size_t length;
};

static uint64_t append(struct packet *packet, const void *data, size_t length)
{
    size_t start = (packet->length + 7) & ~(size_t)7; /* as structs want to lie */
    if (start + length > MOST_BYTES) {
        packet->length = MOST_BYTES + 1;
        return 0;
    }
    memcpy(packet->bytes + start, data, length);
    packet->length = start + length;
    return start;
}

static const char *append_text(struct packet *packet, const char *text, size_t length)
{
    return (const char *)(uintptr_t)append(packet, text, length);
}

static long send_rest(const struct nsm_plan *plan, const struct nsm_entry *entries, int late)
{
    struct packet packet = {.bytes = calloc(1, MOST_BYTES)};
    struct nsm_entry *copies = calloc(plan->entry_count + 1, sizeof *copies);
    int trees[MOST_TREES];
    size_t count = 0;
    long sent = -1;
    if (!packet.bytes || !copies)
        goto done;

    struct rest rest = {.plan = *plan};
    packet.length = sizeof rest;
    rest.plan.hostname = plan->hostname ? append_text(&packet, plan->hostname, strlen(plan->hostname) + 1) : NULL;
    rest.plan.workdir = plan->workdir ? append_text(&packet, plan->workdir, strlen(plan->workdir) + 1) : NULL;
    rest.rlimits = append(&packet, plan->rlimits, plan->rlimit_count * sizeof *plan->rlimits);
    for (size_t i = 0; i < plan->entry_count; i++) {
        copies[i] = entries[i];
        copies[i].target = append_text(&packet, entries[i].target, strlen(entries[i].target) + 1);
        copies[i].source = append_text(&packet, entries[i].source, entries[i].length + 1);
        if (entries[i].tree >= 0) {
            if (count == MOST_TREES) {
                errno = E2BIG;
                goto done;
            }
            copies[i].tree = (int)count; /* its place among the descriptors */
            trees[count++] = entries[i].tree;
        }
    }
    rest.entries = append(&packet, copies, plan->entry_count * sizeof *copies);
    if (packet.length > MOST_BYTES) {
        errno = E2BIG;
        goto done;
    }
    memcpy(packet.bytes, &rest, sizeof rest);
    sent = nsm_send_with(late, packet.bytes, packet.length, trees, count);
done:
    free(packet.bytes);
    free(copies);
    return sent < 0 ? -1 : 0;
}

/*
 * In the launcher: give a blank the rest of its plan.  Where we may mount, the sources are opened here, with our
 * rights; else init opens them.
 */
int nsm_finish(struct nsm_plan *plan, struct nsm_entry *entries, int late)
{
    struct nsm_journal journal = {.who = "launcher", .step = "sources"};
    int result = -1;
    if (!nsm_may_mount() || nsm_mount_open_sources(plan, entries, &journal) == 0) {
        nsm_step(&journal, "late");
        result = (int)NSM_TRY(&journal, send_rest(plan, entries, late), "sendmsg(init, %zu entries)",
                              plan->entry_count);
    }
    nsm_mount_close_sources(plan, entries);
    nsm_report(plan->report, result < 0 ? NSM_REPORT_FAILED : NSM_REPORT_JOURNAL, &journal);
    return result;
}

static const char *at(char *packet, const void *offset)
{
    return offset ? packet + (uintptr_t)offset : NULL;
}

/*
 * In init: wait for the rest.  0: it is in `plan` and `*entries`, and stays there; 1: it will never come, because
 * launcher or owner are gone; -1: an error.
 */
int nsm_late_wait(struct nsm_plan *plan, struct nsm_entry **entries, struct nsm_journal *journal)
{
    /* Without a wanted event poll() still tells of a hang-up; orders stay in the lifeline until later. */
    struct pollfd events[] = {{.fd = plan->late, .events = POLLIN}, {.fd = plan->lifeline, .events = 0}};
    do {
        if (poll(events, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (events[1].revents)
            return 1;
    } while (!events[0].revents);

    char *packet = malloc(MOST_BYTES);
    int trees[MOST_TREES];
    size_t count = MOST_TREES;
    if (!packet)
        return -1;
    nsm_step(journal, "late");
    long got = NSM_TRY(journal, receive_with(plan->late, packet, MOST_BYTES, trees, &count), "recvmsg(late)");
    if (got <= 0)
        return got == 0 ? 1 : -1;
    close(plan->late);
    plan->late = -1;

    struct rest rest;
    memcpy(&rest, packet, sizeof rest);
    plan->hostname = at(packet, rest.plan.hostname);
    plan->hostname_wished = rest.plan.hostname_wished;
    plan->workdir = at(packet, rest.plan.workdir);
    plan->disk_bytes = rest.plan.disk_bytes;
    plan->disk_inodes = rest.plan.disk_inodes;
    plan->rlimits = (const struct nsm_rlimit *)(const void *)(packet + rest.rlimits);
    plan->rlimit_count = rest.plan.rlimit_count;
    plan->entry_count = rest.plan.entry_count;
    struct nsm_entry *list = (struct nsm_entry *)(void *)(packet + rest.entries);
    for (size_t i = 0; i < plan->entry_count; i++) {
        list[i].target = at(packet, list[i].target);
        list[i].source = at(packet, list[i].source);
        if (list[i].tree >= 0 && (size_t)list[i].tree < count)
            list[i].tree = trees[list[i].tree];
    }
    plan->entries = *entries = list;
    return 0;
}

/* ---- "Your root is there" ----------------------------------------------------- */

struct go {
    uint64_t count;
    struct nsm_rlimit rlimits[NSM_MOST_RLIMITS];
};

/* In init, standing in the payload's working directory.  `root` is -1 where the root is the host's. */
int nsm_go_tell(const struct nsm_plan *plan, int go, int root, int workdir, struct nsm_journal *journal)
{
    nsm_step(journal, "go");
    struct go message = {.count = plan->rlimit_count};
    if (plan->rlimit_count > NSM_MOST_RLIMITS) {
        errno = E2BIG;
        return (int)NSM_TRY(journal, -1, "sendmsg(payload, %zu limits)", plan->rlimit_count);
    }
    memcpy(message.rlimits, plan->rlimits, plan->rlimit_count * sizeof *plan->rlimits);
    int directories[] = {workdir, root};
    long sent = NSM_TRY(journal, nsm_send_with(go, &message, sizeof message, directories, root < 0 ? 1 : 2),
                        "sendmsg(payload, SCM_RIGHTS)");
    /* A payload that is dead already has its own reason, and init tells it. */
    return sent < 0 && errno != EPIPE && errno != ECONNRESET ? -1 : 0;
}

/*
 * In the payload: wait until the root is built, and go there.  `rlimits` has room for NSM_MOST_RLIMITS.
 * 1: init is gone, and so is the container.
 */
int nsm_go_wait(struct nsm_plan *plan, struct nsm_rlimit *rlimits, struct nsm_journal *journal)
{
    nsm_step(journal, "go");
    struct go message;
    int directories[2] = {-1, -1};
    size_t count = 2;
    long got = NSM_TRY(journal, receive_with(NSM_PAYLOAD_GO, &message, sizeof message, directories, &count),
                       "recvmsg(go)");
    if (got == 0)
        return 1;
    if (got != sizeof message || count == 0 || message.count > NSM_MOST_RLIMITS) {
        errno = got < 0 ? errno : EBADMSG;
        return -1;
    }
    memcpy(rlimits, message.rlimits, sizeof message.rlimits);
    plan->rlimits = rlimits;
    plan->rlimit_count = message.count;
    /*
     * pivot_root() has taken us along, if our root was the old one; where init had to do without it, we go to the
     * new root as init did.
     */
    int root = count == 2 ? directories[1] : -1;
    if (root >= 0 && (NSM_TRY(journal, fchdir(root), "fchdir(new root)") < 0 ||
                      NSM_TRY(journal, chroot("."), "chroot(\".\")") < 0))
        return -1;
    if (NSM_TRY(journal, fchdir(directories[0]), "fchdir(working directory)") < 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        close(directories[i]);
    close(NSM_PAYLOAD_GO);
    return 0;
}
