/*
 * mount.h - what the files that build the root share: mount.c, sources.c, place.c, procfs.c and pivot.c.
 */
#ifndef NSMAGIC_MOUNT_H
#define NSMAGIC_MOUNT_H

#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* glibc has no wrappers for these in the versions that we support. */
static inline int sys_open_tree(int at, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, at, path, flags);
}

static inline int sys_mount_setattr(int at, unsigned flags, struct mount_attr *attributes)
{
    return (int)syscall(SYS_mount_setattr, at, "", flags, attributes, sizeof *attributes);
}

static inline int sys_openat2(int at, const char *path, uint64_t flags, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .resolve = resolve};
    return (int)syscall(SYS_openat2, at, path, &how, sizeof how);
}

static inline int close_keeping_errno(int descriptor, int result)
{
    int error = errno;
    close(descriptor);
    errno = error;
    return result;
}

/* place.c: `root` is a descriptor of the new root, `target` a path in it. */
struct nsm_option {
    const char *key, *value; /* value NULL: a flag */
};

int nsm_open_target(int root, const char *target, bool is_folder);
int nsm_attach(int root, int tree, const char *target, struct nsm_journal *journal);
int nsm_attach_new(int root, const char *type, const struct nsm_option *options, size_t count, const char *target,
                   struct nsm_journal *journal);
int nsm_write_new_file(int root, const struct nsm_entry *entry);
int nsm_make_link(int root, const struct nsm_entry *entry);
int nsm_clear_place(int root, const struct nsm_entry *entry, struct nsm_journal *journal);

/* procfs.c */
int nsm_attach_proc(int root, const char *target, struct nsm_journal *journal);

/* pivot.c */
int nsm_change_root(int root, struct nsm_journal *journal);

#endif
