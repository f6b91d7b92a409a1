/*
 * pivot.c - the change of roots: the new one takes the old one's place, which is let go with all of the host.
 *
 * See pivot_root(2), mount_namespaces(7), chroot(2).
 */
#include "mount.h"

#include <sys/mount.h>
#include <sys/stat.h>

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

int nsm_change_root(int root, struct nsm_journal *journal)
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
