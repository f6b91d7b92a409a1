/*
 * place.c - places in the new root: finding one, hanging a mount there, making a file, a link or room.
 *
 * The root is being filled while parts of it already show folders of the host, which may be hostile.  So every path
 * is walked by openat2(2) with RESOLVE_IN_ROOT, and what is found is used by its descriptor.
 * See openat2(2), move_mount(2), fsopen(2).
 */
#include "mount.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/*
 * Walk to `target` below `root`, making what is missing.  Links are followed, but never out of the root
 * (RESOLVE_IN_ROOT): a hostile folder that is already mounted may be full of them.
 */
int nsm_open_target(int root, const char *target, bool is_folder)
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
int nsm_attach(int root, int tree, const char *target, struct nsm_journal *journal)
{
    struct stat kind;
    if (fstat(tree, &kind) < 0)
        return -1;
    int place = (int)NSM_TRY(journal, nsm_open_target(root, target, S_ISDIR(kind.st_mode)),
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
int nsm_attach_new(int root, const char *type, const struct nsm_option *options, size_t count,
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
    return close_keeping_errno(tree, nsm_attach(root, tree, target, journal));
}

int nsm_write_new_file(int root, const struct nsm_entry *entry)
{
    int place = nsm_open_target(root, entry->target, false);
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

int nsm_make_link(int root, const struct nsm_entry *entry)
{
    char parent_path[4096];
    const char *name = last_name(entry->target, parent_path);
    int parent = name ? nsm_open_target(root, parent_path, true) : -1;
    if (parent < 0)
        return -1;
    return close_keeping_errno(parent, symlinkat(entry->source, parent, name));
}

/*
 * An image may have a link at the place of a file of ours, one that leads to nowhere even, or a FIFO, which would
 * keep us waiting.  It lies in a copy-on-write layer, so it can go.
 */
int nsm_clear_place(int root, const struct nsm_entry *entry, struct nsm_journal *journal)
{
    char parent_path[4096];
    const char *name = last_name(entry->target, parent_path);
    int parent = (int)NSM_TRY(journal, name ? nsm_open_target(root, parent_path, true) : -1,
                              "openat2(root, \"%s\", O_PATH, RESOLVE_IN_ROOT)", name ? parent_path : entry->target);
    if (parent < 0)
        return -1;
    int result = (int)NSM_TRY(journal, unlinkat(parent, name, 0) < 0 && errno != ENOENT && errno != EISDIR ? -1 : 0,
                              "unlinkat(\"%s\")", entry->target);
    return close_keeping_errno(parent, result);
}
