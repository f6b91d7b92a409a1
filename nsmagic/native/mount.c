/*
 * mount.c - the root file system that the container sees.
 *
 *   1. Every source on the host is opened first, as a *detached* mount: a copy of the mount that
 *      hangs nowhere yet.  Nobody can swap what a path means between our look and our use.
 *   2. One tmpfs, the "scratch", holds all that the container may write: its size is the disk limit.
 *   3. A new root, an empty folder or the layers of an image (layers.c), is filled from the plan's entries,
 *      in their order.
 *   4. pivot_root makes it the root; the old one, with all of the host, is let go.
 *
 * See mount_namespaces(7), open_tree(2), move_mount(2), mount_setattr(2), pivot_root(2) and
 * Documentation/filesystems/overlayfs.rst in the kernel's sources.
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SCRATCH NSM_SCRATCH
#define NEW_ROOT NSM_NEW_ROOT

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* glibc has no wrappers for these in the versions that we support. */
static int sys_open_tree(int at, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, at, path, flags);
}

static int sys_mount_setattr(int at, unsigned flags, struct mount_attr *attributes)
{
    return (int)syscall(SYS_mount_setattr, at, "", flags, attributes, sizeof *attributes);
}

static int sys_openat2(int at, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .resolve = resolve};
    return (int)syscall(SYS_openat2, at, path, &how, sizeof how);
}

static int close_keeping_errno(int descriptor, int result)
{
    int error = errno;
    close(descriptor);
    errno = error;
    return result;
}

/* ---- 1. The sources ----------------------------------------------------- */

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

/* ---- 2. The scratch ------------------------------------------------------ */

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

/* ---- 3. The new root ------------------------------------------------------ */

/*
 * Walk to `target` below `root`, making what is missing.  Links are followed, but never out of the root
 * (RESOLVE_IN_ROOT): a hostile folder that is already mounted may be full of them.
 */
static int open_target(int root, const char *target, bool is_folder)
{
    static const uint64_t resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    int found = sys_openat2(root, target, O_PATH | O_CLOEXEC, resolve);
    if (found >= 0 || errno != ENOENT)
        return found;

    char path[4096];
    size_t length = strlen(target);
    if (length >= sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int parent = sys_openat2(root, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, resolve);
    for (size_t start = 0; start < length && parent >= 0;) {
        while (target[start] == '/')
            start++;
        size_t end = start;
        while (end < length && target[end] != '/')
            end++;
        if (end == start)
            break;
        char name[256];
        if (end - start >= sizeof name) {
            errno = ENAMETOOLONG;
            return close_keeping_errno(parent, -1);
        }
        memcpy(name, target + start, end - start);
        name[end - start] = 0;
        memcpy(path, target, end);
        path[end] = 0;

        bool last = end == length;
        int next = sys_openat2(root, path, O_PATH | O_CLOEXEC, resolve);
        if (next < 0 && errno == ENOENT) {
            if (last && !is_folder) {
                int file = openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
                if (file < 0)
                    return close_keeping_errno(parent, -1);
                close(file);
            } else if (mkdirat(parent, name, 0755) < 0) {
                return close_keeping_errno(parent, -1);
            }
            next = sys_openat2(root, path, O_PATH | O_CLOEXEC, resolve);
        }
        close_keeping_errno(parent, 0);
        parent = next;
        start = end;
    }
    return parent;
}

/* Hang the detached mount `tree` at `target`. */
static int attach(int root, int tree, const char *target, struct nsm_journal *journal)
{
    struct stat kind;
    if (fstat(tree, &kind) < 0)
        return -1;
    int place = (int)NSM_TRY(journal, open_target(root, target, S_ISDIR(kind.st_mode)),
                             "openat2(root, \"%s\", O_PATH, RESOLVE_IN_ROOT)", target);
    if (place < 0)
        return -1;
    int result = (int)NSM_TRY(journal,
                              syscall(SYS_move_mount, tree, "", place, "",
                                      MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH),
                              "move_mount(tree, \"%s\")", target);
    return close_keeping_errno(place, result);
}

/* Configure a file system, mount it detached, and hang it at `target`. */
struct option {
    const char *key, *value; /* value NULL: a flag */
};

static int attach_new(int root, const char *type, const struct option *options, size_t count,
                      const char *target, struct nsm_journal *journal)
{
    /* A terminal is a device: a devpts without devices would be of no use. */
    bool terminals = strcmp(type, "devpts") == 0;
    int context = (int)NSM_TRY(journal, syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), "fsopen(\"%s\")", type);
    if (context < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        unsigned command = options[i].value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        if (NSM_TRY(journal, syscall(SYS_fsconfig, context, command, options[i].key, options[i].value, 0),
                    "fsconfig(\"%s\", %s%s%s)", type, options[i].key, options[i].value ? "=" : "",
                    options[i].value ? options[i].value : "") < 0)
            return close_keeping_errno(context, -1);
    }
    if (NSM_TRY(journal, syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0),
                "fsconfig(\"%s\", FSCONFIG_CMD_CREATE)", type) < 0)
        return close_keeping_errno(context, -1);
    int tree = (int)NSM_TRY(journal,
                            syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
                                    MOUNT_ATTR_NOSUID | (terminals ? MOUNT_ATTR_NOEXEC : MOUNT_ATTR_NODEV)),
                            "fsmount(\"%s\", MOUNT_ATTR_NOSUID|%s)", type,
                            terminals ? "MOUNT_ATTR_NOEXEC" : "MOUNT_ATTR_NODEV");
    close_keeping_errno(context, 0);
    if (tree < 0)
        return -1;
    return close_keeping_errno(tree, attach(root, tree, target, journal));
}

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

    struct option options[] = {
        {"lowerdir", lower},
        {"upperdir", upper},
        {"workdir", work},
        /* In a user namespace overlayfs may not write trusted.* attributes (Linux 5.11). */
        {"userxattr", NULL},
    };
    size_t count = nsm_userns_there(plan) ? 4 : 3;
    return attach_new(root, "overlay", options, count, entry->target, journal);
}

/*
 * Where parts of the host's /proc are covered (Docker does that), the kernel gives no fresh one in a user
 * namespace: it would show what is covered.  The host's own shows every process there, so instead a folder is
 * made with some files of it that tell of the machine and of no process.  The owner reads the refusal
 * in the journal and says so in the result.
 */
static int attach_small_proc(int root, const char *target, struct nsm_journal *journal)
{
    static const char *const safe[] = {"cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version"};
    int place = (int)NSM_TRY(journal, open_target(root, target, true), "mkdir(\"%s\")", target);
    if (place < 0)
        return -1;
    close(place);
    for (size_t i = 0; i < sizeof safe / sizeof *safe; i++) {
        char source[64], path[128];
        snprintf(source, sizeof source, "/proc/%s", safe[i]);
        snprintf(path, sizeof path, "%s/%s", target, safe[i]);
        int tree = sys_open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (tree < 0)
            continue; /* the host's /proc lacks it, or there is none: programs must cope with that too */
        struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                                    MOUNT_ATTR_NOEXEC};
        int result = (int)NSM_TRY(journal, sys_mount_setattr(tree, AT_EMPTY_PATH, &attributes),
                                  "mount_setattr(\"%s\", MOUNT_ATTR_RDONLY)", source);
        if (result == 0)
            result = attach(root, tree, path, journal);
        if (close_keeping_errno(tree, result) < 0)
            return -1;
    }
    return 0;
}

/*
 * A fresh procfs, with the parts that are the machine's and not the processes' read-only: most of them are
 * root's anyhow, but some below sys/ belong to whoever owns the namespace.
 */
static int attach_proc(int root, const char *target, struct nsm_journal *journal)
{
    static const char *const read_only[] = {"sys", "irq", "bus", "fs", "sysrq-trigger"};
    if (attach_new(root, "proc", NULL, 0, target, journal) < 0)
        return errno == EPERM || errno == EACCES ? attach_small_proc(root, target, journal) : -1;
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", target, read_only[i]);
        int place = sys_openat2(root, path, O_PATH | O_CLOEXEC, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (place < 0)
            continue; /* this kernel was built without it */
        int tree = sys_open_tree(place, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
        int result = tree < 0 ? -1 : sys_mount_setattr(tree, AT_EMPTY_PATH, &attributes);
        if (result == 0)
            result = (int)syscall(SYS_move_mount, tree, "", place, "",
                                  MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
        int error = errno;
        nsm_begin(journal);
        errno = error;
        (void)nsm_end(journal, result, "mount_setattr(\"%s\", MOUNT_ATTR_RDONLY)", path);
        if (tree >= 0)
            close(tree);
        close(place);
        errno = error;
        if (result < 0)
            return -1;
    }
    return 0;
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
    return close_keeping_errno(tree, attach(root, tree, entry->target, journal));
}

static int write_new_file(int root, const struct nsm_entry *entry)
{
    int place = open_target(root, entry->target, false);
    if (place < 0)
        return -1;
    /* An O_PATH descriptor cannot be written to; its name below /proc opens the very same file. */
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", place);
    int file = open(self, O_WRONLY | O_TRUNC | O_CLOEXEC);
    close_keeping_errno(place, 0);
    if (file < 0)
        return -1;
    ssize_t written = write(file, entry->source, entry->length);
    int result = written == (ssize_t)entry->length ? fchmod(file, entry->mode) : -1;
    return close_keeping_errno(file, result);
}

/* The last name of an absolute path; `parent` has room for 4096 bytes and gets what stands before it. */
static const char *last_name(const char *path, char *parent)
{
    const char *name = strrchr(path, '/');
    size_t length = name ? (size_t)(name - path) : 0;
    if (!name || length >= 4096) {
        errno = EINVAL;
        return NULL;
    }
    memcpy(parent, path, length);
    memcpy(parent + length, length ? "" : "/", length ? 1 : 2);
    return name + 1;
}

static int make_link(int root, const struct nsm_entry *entry)
{
    char parent_path[4096];
    const char *name = last_name(entry->target, parent_path);
    int parent = name ? open_target(root, parent_path, true) : -1;
    if (parent < 0)
        return -1;
    return close_keeping_errno(parent, symlinkat(entry->source, parent, name));
}

/*
 * An image may have a link at the place of a file of ours, one that leads to nowhere even, or a FIFO, which would
 * keep us waiting.  It lies in a copy-on-write layer, so it can go.
 */
static int clear_place(int root, const struct nsm_entry *entry, struct nsm_journal *journal)
{
    char parent_path[4096];
    const char *name = last_name(entry->target, parent_path);
    int parent = (int)NSM_TRY(journal, name ? open_target(root, parent_path, true) : -1,
                              "openat2(root, \"%s\", O_PATH, RESOLVE_IN_ROOT)", name ? parent_path : entry->target);
    if (parent < 0)
        return -1;
    int result = (int)NSM_TRY(journal, unlinkat(parent, name, 0) < 0 && errno != ENOENT && errno != EISDIR ? -1 : 0,
                              "unlinkat(\"%s\")", entry->target);
    return close_keeping_errno(parent, result);
}

static int put(const struct nsm_plan *plan, int root, const struct nsm_entry *entry, size_t number,
               struct nsm_journal *journal)
{
    static const struct option pts[] = {{"newinstance", NULL}, {"ptmxmode", "0666"}, {"mode", "0600"}};
    int place;

    if ((entry->flags & NSM_REPLACE) && clear_place(root, entry, journal) < 0)
        return -1;
    switch (entry->kind) {
    case NSM_DIRECTORY:
        place = (int)NSM_TRY(journal, open_target(root, entry->target, true), "mkdir(\"%s\")", entry->target);
        return place < 0 ? -1 : close(place);
    case NSM_FILE:
        return (int)NSM_TRY(journal, write_new_file(root, entry), "write(\"%s\", %zu bytes)", entry->target,
                            entry->length);
    case NSM_SYMLINK:
        return (int)NSM_TRY(journal, make_link(root, entry), "symlink(\"%s\", \"%s\")", entry->source,
                            entry->target);
    case NSM_BIND:
        return entry->tree < 0 ? 0 : attach(root, entry->tree, entry->target, journal);
    case NSM_COW:
        return entry->tree < 0 ? 0 : attach_cow(plan, root, entry, number, journal);
    case NSM_PRIVATE:
        return attach_private(plan, root, entry, number, journal);
    case NSM_PROC:
        return entry->tree >= 0 ? attach(root, entry->tree, entry->target, journal)
                                : attach_proc(root, entry->target, journal);
    case NSM_PTS:
        return attach_new(root, "devpts", pts, sizeof pts / sizeof *pts, entry->target, journal);
    default:
        errno = EINVAL;
        return (int)NSM_TRY(journal, -1, "plan entry of unknown kind %d", entry->kind);
    }
}

/* ---- 4. The change of roots ------------------------------------------------ */

/* "/", and ".." above it, are the new root and nothing else; else we stop here, with EXDEV. */
static int stands_at_root(int root, struct nsm_journal *journal)
{
    struct stat wanted, top, above;
    bool well = fstat(root, &wanted) == 0 && stat("/", &top) == 0 && stat("/..", &above) == 0 &&
                top.st_dev == wanted.st_dev && top.st_ino == wanted.st_ino && above.st_dev == wanted.st_dev &&
                above.st_ino == wanted.st_ino;
    nsm_begin(journal);
    errno = EXDEV;
    return (int)nsm_end(journal, well ? 0 : -1, "stat(\"/\", \"/..\"): the new root");
}

static int change_root(int root, struct nsm_journal *journal)
{
    if (NSM_TRY(journal, fchdir(root), "fchdir(new root)") < 0)
        return -1;
    /*
     * pivot_root(".", ".") stacks the old root under the new one at the same place, so it needs no folder
     * of its own and one umount lets it go.
     */
    if (NSM_TRY(journal, syscall(SYS_pivot_root, ".", "."), "pivot_root(\".\", \".\")") == 0)
        return (int)NSM_TRY(journal, umount2(".", MNT_DETACH), "umount2(old root, MNT_DETACH)");
    /* EINVAL: the host's root is a ramfs, which cannot be pivoted.  EPERM, ENOSYS: a filter around us denies it. */
    if (errno != EINVAL && errno != EPERM && errno != ENOSYS)
        return -1;
    /*
     * The way of an initramfs: move the new root on top of the old one.  The old one stays mounted, but covered:
     * whoever walks up by ".." from here ends at the old root's own "/", and what is mounted there is us; so not
     * even CAP_SYS_CHROOT leads out, and uncovering takes umount2 with CAP_SYS_ADMIN.
     */
    if (NSM_TRY(journal, mount(".", "/", NULL, MS_MOVE, NULL), "mount(\".\", \"/\", MS_MOVE)") < 0)
        return -1;
    if (NSM_TRY(journal, chroot("."), "chroot(\".\")") < 0)
        return -1;
    return stands_at_root(root, journal);
}

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

    if (change_root(root, journal) < 0)
        return close_keeping_errno(root, -1);
    if (layers) /* copy-on-write, all of it */
        return close(root);
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
    int result = (int)NSM_TRY(journal, sys_mount_setattr(root, AT_EMPTY_PATH, &read_only),
                              "mount_setattr(\"/\", MOUNT_ATTR_RDONLY)");
    return close_keeping_errno(root, result);
}
