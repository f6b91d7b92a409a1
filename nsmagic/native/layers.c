/*
 * layers.c - a root of its own: the layers of an image, and a copy-on-write one over them.
 *
 * overlayfs shows several folders as one.  Where two have the same name, the upper one hides the lower one; folders
 * are merged.  A *whiteout* (a character device 0/0) hides a name of the layers below, an *opaque* folder all of a
 * folder.  All that the container writes goes to the topmost, which lies in the scratch and so counts as disk.
 *
 * The layers are detached mounts already (sources.c).  They are hung under short names, because mount(2) takes all of
 * its options as one page of text, and fsconfig(2) takes at most 255 bytes for a value; `lowerdir+`, which would take
 * them one by one, is younger than the kernels that we run on.
 * See Documentation/filesystems/overlayfs.rst in the kernel's sources.
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LAYERS NSM_SCRATCH "/l"
#define OWN NSM_SCRATCH "/image"

size_t nsm_layers_count(const struct nsm_plan *plan, const struct nsm_entry *entries)
{
    size_t count = 0;
    while (count < plan->entry_count && entries[count].kind == NSM_LAYER)
        count++;
    return count;
}

/* Hang one layer at a place of its own. */
static int hang(const struct nsm_entry *entry, const char *place, struct nsm_journal *journal)
{
    if (NSM_TRY(journal, mkdir(place, 0755), "mkdir(\"%s\")", place) < 0)
        return -1;
    return (int)NSM_TRY(journal, syscall(SYS_move_mount, entry->tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH),
                        "move_mount(tree of \"%s\", \"%s\")", entry->source, place);
}

int nsm_layers_root(const struct nsm_plan *plan, const struct nsm_entry *entries, struct nsm_journal *journal)
{
    size_t count = nsm_layers_count(plan, entries);
    struct stat top;
    if (fstat(entries[0].tree, &top) < 0)
        return -1;
    /* The merged root's own mode is that of the uppermost folder. */
    unsigned mode = (top.st_mode & 01777U) | 0700U;
    if (NSM_TRY(journal,
                mkdir(LAYERS, 0755) < 0 || mkdir(OWN, 0755) < 0 ||
                        nsm_scratch_folder(plan, OWN "/upper", mode) < 0 ||
                        nsm_scratch_folder(plan, OWN "/work", 0700) < 0
                    ? -1
                    : 0,
                "mkdir(\"" LAYERS "\", \"" OWN "/upper\", \"" OWN "/work\")") < 0)
        return -1;

    /*
     * userxattr: the marks of opaque folders are user.overlay.* attributes, which an ordinary user can write when
     * an image is unpacked, and which are the only ones that a user namespace may use.
     */
    char options[4096];
    size_t used = (size_t)snprintf(options, sizeof options, "userxattr,upperdir=" OWN "/upper,workdir=" OWN "/work,");
    for (size_t i = 0; i < count; i++) {
        char place[64];
        snprintf(place, sizeof place, LAYERS "/%zu", i);
        if (hang(&entries[i], place, journal) < 0)
            return -1;
        used += (size_t)snprintf(options + used, sizeof options - used, "%s%s", i ? ":" : "lowerdir=", place);
        if (used >= sizeof options) {
            errno = E2BIG;
            return (int)NSM_TRY(journal, -1, "mount(\"overlay\", lowerdir=... %zu layers)", count);
        }
    }
    if (NSM_TRY(journal, mount("overlay", NSM_NEW_ROOT, "overlay", MS_NOSUID | MS_NODEV, options),
                "mount(\"overlay\", \"" NSM_NEW_ROOT "\", \"overlay\", MS_NOSUID|MS_NODEV, \"%s\")", options) < 0)
        return -1;
    return (int)NSM_TRY(journal, open(NSM_NEW_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC),
                        "open(\"" NSM_NEW_ROOT "\", O_PATH)");
}
