/*
 * mount.c - the root file system that the container sees.
 *
 *   1. Every source on the host is opened first, as a detached mount (sources.c).
 *   2. One tmpfs, the "scratch", holds all that the container may write: its size is the disk limit.
 *   3. A new root, an empty folder or the layers of an image (layers.c), is filled from the plan's entries,
 *      in their order (place.c, procfs.c).
 *   4. pivot_root makes it the root; the old one, with all of the host, is let go (pivot.c).
 *
 * See mount_namespaces(7), tmpfs(5) and Documentation/filesystems/overlayfs.rst in the kernel's sources.
 */
#include "mount.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define SCRATCH NSM_SCRATCH
#define NEW_ROOT NSM_NEW_ROOT

/* ---- The scratch ---------------------------------------------------------- */

static int mount_scratch(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    char options[128];
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=0755,uid=%u,gid=%u",
             (unsigned long long)plan->disk_bytes, (unsigned long long)plan->disk_inodes, plan->uid, plan->gid);
    if (NSM_TRY(journal, mount("tmpfs", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, options),
                "mount(\"tmpfs\", \"" SCRATCH "\", \"tmpfs\", MS_NOSUID|MS_NODEV, \"%s\")", options) < 0)
        return -1;
    return (int)NSM_TRY(journal, mkdir(NEW_ROOT, 0755), "mkdir(\"" NEW_ROOT "\")");
}

/* A folder of the scratch that belongs to the payload. */
int nsm_scratch_folder(const struct nsm_plan *plan, const char *path, unsigned mode)
{
    if (mkdir(path, 0700) < 0 || chown(path, plan->uid, plan->gid) < 0)
        return -1;
    return chmod(path, mode); /* not left to mkdir: the umask would have its say */
}

/* ---- The entries ----------------------------------------------------------- */

/*
 * A copy-on-write folder: the host's below, an empty one of the scratch above.  What the payload writes
 * goes to the upper one, where the owner reads it as the list of changes.
 */
static int attach_cow(const struct nsm_plan *plan, int root, const struct nsm_entry *entry, size_t number,
                      struct nsm_journal *journal)
{
    char lower[64], base[64], upper[80], work[80];
    snprintf(lower, sizeof lower, SCRATCH "/lower%zu", number);
    snprintf(base, sizeof base, SCRATCH "/cow%zu", number);
    snprintf(upper, sizeof upper, "%s/upper", base);
    snprintf(work, sizeof work, "%s/work", base);

    struct stat folder;
    if (fstat(entry->tree, &folder) < 0)
        return -1;
    /* The merged folder's own mode is that of the upper one. */
    unsigned mode = (folder.st_mode & 07777U) | 0700U;
    if (NSM_TRY(journal,
                mkdir(lower, 0755) < 0 || mkdir(base, 0755) < 0 || nsm_scratch_folder(plan, upper, mode) < 0 ||
                        nsm_scratch_folder(plan, work, 0700) < 0
                    ? -1
                    : 0,
                "mkdir(\"%s\", \"%s\", \"%s\")", lower, upper, work) < 0)
        return -1;
    if (NSM_TRY(journal, syscall(SYS_move_mount, entry->tree, "", AT_FDCWD, lower, MOVE_MOUNT_F_EMPTY_PATH),
                "move_mount(tree of \"%s\", \"%s\")", entry->source, lower) < 0)
        return -1;

    struct nsm_option options[] = {
        {"lowerdir", lower},
        {"upperdir", upper},
        {"workdir", work},
        /* In a user namespace overlayfs may not write trusted.* attributes (Linux 5.11). */
        {"userxattr", NULL},
    };
    size_t count = nsm_userns_there(plan) ? 4 : 3;
    return nsm_attach_new(root, "overlay", options, count, entry->target, journal);
}

static int attach_private(const struct nsm_plan *plan, int root, const struct nsm_entry *entry, size_t number,
                          struct nsm_journal *journal)
{
    char folder[64];
    snprintf(folder, sizeof folder, SCRATCH "/private%zu", number);
    if (NSM_TRY(journal, nsm_scratch_folder(plan, folder, entry->mode), "mkdir(\"%s\", mode=%04o)", folder,
                entry->mode) < 0)
        return -1;
    int tree = (int)NSM_TRY(journal, sys_open_tree(AT_FDCWD, folder, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
                            "open_tree(\"%s\", OPEN_TREE_CLONE)", folder);
    if (tree < 0)
        return -1;
    return close_keeping_errno(tree, nsm_attach(root, tree, entry->target, journal));
}

static int put(const struct nsm_plan *plan, int root, const struct nsm_entry *entry, size_t number,
               struct nsm_journal *journal)
{
    static const struct nsm_option pts[] = {{"newinstance", NULL}, {"ptmxmode", "0666"}, {"mode", "0600"}};
    int place;

    if ((entry->flags & NSM_REPLACE) && nsm_clear_place(root, entry, journal) < 0)
        return -1;
    switch (entry->kind) {
    case NSM_DIRECTORY:
        place = (int)NSM_TRY(journal, nsm_open_target(root, entry->target, true), "mkdir(\"%s\")", entry->target);
        return place < 0 ? -1 : close(place);
    case NSM_FILE:
        return (int)NSM_TRY(journal, nsm_write_new_file(root, entry), "write(\"%s\", %zu bytes)", entry->target,
                            entry->length);
    case NSM_SYMLINK:
        return (int)NSM_TRY(journal, nsm_make_link(root, entry), "symlink(\"%s\", \"%s\")", entry->source,
                            entry->target);
    case NSM_BIND:
        return entry->tree < 0 ? 0 : nsm_attach(root, entry->tree, entry->target, journal);
    case NSM_COW:
        return entry->tree < 0 ? 0 : attach_cow(plan, root, entry, number, journal);
    case NSM_PRIVATE:
        return attach_private(plan, root, entry, number, journal);
    case NSM_PROC:
        return entry->tree >= 0 ? nsm_attach(root, entry->tree, entry->target, journal)
                                : nsm_attach_proc(root, entry->target, journal);
    case NSM_PTS:
        return nsm_attach_new(root, "devpts", pts, sizeof pts / sizeof *pts, entry->target, journal);
    default:
        errno = EINVAL;
        return (int)NSM_TRY(journal, -1, "plan entry of unknown kind %d", entry->kind);
    }
}

/* ---- All of it -------------------------------------------------------------- */

/* The owner gets a descriptor of the scratch: through it the changes can be read, even after our end. */
static int tell_scratch(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    int scratch = (int)NSM_TRY(journal, open(SCRATCH, O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                               "open(\"" SCRATCH "\", O_DIRECTORY)");
    if (scratch < 0)
        return -1;
    const char kind = NSM_REPORT_LAYER;
    long sent = NSM_TRY(journal, nsm_send_with(plan->report, &kind, 1, &scratch, 1), "sendmsg(report, SCM_RIGHTS)");
    return close_keeping_errno(scratch, sent < 0 ? -1 : 0);
}

/* pivot_root wants its new root to be a mount: bind the folder onto itself. */
static int open_empty_root(struct nsm_journal *journal)
{
    int root = (int)NSM_TRY(journal, sys_open_tree(AT_FDCWD, NEW_ROOT, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
                            "open_tree(\"" NEW_ROOT "\", OPEN_TREE_CLONE)");
    if (root < 0)
        return -1;
    if (NSM_TRY(journal, syscall(SYS_move_mount, root, "", AT_FDCWD, NEW_ROOT, MOVE_MOUNT_F_EMPTY_PATH),
                "move_mount(tree, \"" NEW_ROOT "\")") < 0)
        return close_keeping_errno(root, -1);
    return root;
}

int nsm_mount(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal)
{
    if (!(plan->namespaces & CLONE_NEWNS))
        return 0;

    /* Mounts that are shared with the host would show ours there, and bring the host's unmounts here. */
    nsm_step(journal, "mount");
    if (NSM_TRY(journal, mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount(\"/\", MS_REC|MS_PRIVATE)") < 0)
        return -1;
    if (mount_scratch(plan, journal) < 0 || tell_scratch(plan, journal) < 0)
        return -1;

    size_t layers = nsm_layers_count(plan, entries);
    int root = layers ? nsm_layers_root(plan, entries, journal) : open_empty_root(journal);
    if (root < 0)
        return -1;

    for (size_t i = layers; i < plan->entry_count; i++)
        if (put(plan, root, &entries[i], i, journal) < 0)
            return close_keeping_errno(root, -1);
    nsm_mount_close_sources(plan, entries);

    if (nsm_change_root(root, journal) < 0)
        return close_keeping_errno(root, -1);
    if (layers) /* copy-on-write, all of it */
        return close(root);
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    int result = (int)NSM_TRY(journal, sys_mount_setattr(root, AT_EMPTY_PATH, &read_only),
                              "mount_setattr(\"/\", MOUNT_ATTR_RDONLY)");
    return close_keeping_errno(root, result);
}
