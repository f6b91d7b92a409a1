/*
 * sources.c - what the container shows of the host, opened before anything is mounted.
 *
 * Every source is opened as a *detached* mount: a copy of the mount that hangs nowhere yet.  Nobody can swap what
 * a path means between our look and our use.  See open_tree(2), mount_setattr(2).
 */
#include "mount.h"

#include <sched.h>
#include <sys/mount.h>

/* Root only: show the owner's files as the payload's, if the file system can. */
static void map_owner(const struct nsm_entry *entry, struct nsm_journal *journal)
{
    if (entry->idmap < 0)
        return;
    struct mount_attr map = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (unsigned)entry->idmap};
    /* EINVAL: this file system has no idmapped mounts.  The folder is then there, but not writable; the
     * host's side reads this line of the journal and says so in the result. */
    (void)NSM_TRY(journal, sys_mount_setattr(entry->tree, AT_EMPTY_PATH, &map),
                  "mount_setattr(\"%s\", MOUNT_ATTR_IDMAP)", entry->source);
}

static int open_source(struct nsm_entry *entry, struct nsm_journal *journal)
{
    /*
     * A copy-on-write layer does not reach across mounts, and an idmapped mount stands alone: one mount,
     * without those below it.  The kernel refuses that (EINVAL) where it would uncover what they hide.
     */
    bool lower = entry->kind == NSM_COW || entry->kind == NSM_LAYER;
    bool alone = lower || entry->idmap >= 0;
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (alone ? 0U : AT_RECURSIVE);
    entry->tree = (int)NSM_TRY(journal, sys_open_tree(AT_FDCWD, entry->source, flags),
                               "open_tree(\"%s\", OPEN_TREE_CLONE%s)", entry->source,
                               alone ? "" : "|AT_RECURSIVE");
    if (entry->tree < 0)
        return (entry->flags & NSM_OPTIONAL) && (errno == ENOENT || errno == EACCES) ? 0 : -1;

    map_owner(entry, journal);

    bool read_only = lower || !(entry->flags & NSM_WRITABLE);
    bool device = entry->flags & NSM_DEVICE;
    struct mount_attr attributes = {
        /* A mount that the host shares (systemd shares all) would go on following the host's. */
        .propagation = MS_PRIVATE,
        .attr_set = MOUNT_ATTR_NOSUID | (read_only && !device ? MOUNT_ATTR_RDONLY : 0U) |
                    (device ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_NODEV),
    };
    return (int)NSM_TRY(journal,
                        sys_mount_setattr(entry->tree, AT_EMPTY_PATH | (alone ? 0U : AT_RECURSIVE), &attributes),
                        "mount_setattr(\"%s\", MS_PRIVATE, MOUNT_ATTR_NOSUID%s%s)", entry->source,
                        read_only && !device ? "|MOUNT_ATTR_RDONLY" : "",
                        device ? "|MOUNT_ATTR_NOEXEC" : "|MOUNT_ATTR_NODEV");
}

/*
 * Who opens them?  A launcher that may mount (root's) does it before the clone: idmapped mounts take rights
 * outside the container.  For an ordinary user init does it, because only in its own mount namespace has
 * it the right to mount; and before it takes on the payload's ids, which may not pass through every folder.
 */
int nsm_mount_open_sources(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWNS))
        return 0;
    nsm_step(journal, "sources");
    for (size_t i = 0; i < plan->entry_count; i++)
        if ((entries[i].kind == NSM_BIND || entries[i].kind == NSM_COW || entries[i].kind == NSM_LAYER) &&
            entries[i].tree < 0)
            if (open_source(&entries[i], journal) < 0)
                return -1;
    return 0;
}

void nsm_mount_close_sources(const struct nsm_plan *plan, struct nsm_entry *entries)
{
    for (size_t i = 0; i < plan->entry_count; i++)
        if (entries[i].tree >= 0) {
            close(entries[i].tree);
            entries[i].tree = -1;
        }
}
