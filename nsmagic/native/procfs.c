/*
 * procfs.c - /proc: a fresh one, or where the kernel refuses that, a few files of the host's.
 *
 * See proc(5), mount_setattr(2) and user_namespaces(7) on what a fresh procfs takes.
 */
#include "mount.h"

#include <stdio.h>

/*
 * Where parts of the host's /proc are covered (Docker does that), the kernel gives no fresh one in a user
 * namespace: it would show what is covered.  The host's own shows every process there, so instead a folder is
 * made with some files of it that tell of the machine and of no process.  The owner reads the refusal
 * in the journal and says so in the result.
 */
static int attach_small_proc(int root, const char *target, struct nsm_journal *journal)
{
    static const char *const safe[] = {"cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version"};
    int place = (int)NSM_TRY(journal, nsm_open_target(root, target, true), "mkdir(\"%s\")", target);
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
            result = nsm_attach(root, tree, path, journal);
        if (close_keeping_errno(tree, result) < 0)
            return -1;
    }
    return 0;
}

/*
 * A fresh procfs, with the parts that are the machine's and not the processes' read-only: most of them are
 * root's anyhow, but some below sys/ belong to whoever owns the namespace.
 */
int nsm_attach_proc(int root, const char *target, struct nsm_journal *journal)
{
    static const char *const read_only[] = {"sys", "irq", "bus", "fs", "sysrq-trigger"};
    if (nsm_attach_new(root, "proc", NULL, 0, target, journal) < 0)
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
