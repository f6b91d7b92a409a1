/*
 * landlock.c - what is left where no namespace can be made: an allow-list of files.
 *
 * A process may give up rights of its own for good, without any privilege: it names the actions that are
 * denied from now on (the ruleset), then the folders below which some of them are allowed all the same (its
 * rules), and puts that on itself and on all its children to come.  It cannot be taken back, only narrowed.
 *
 * That is less than a mount namespace: what is denied is still there and fails with EACCES; nothing is
 * copy-on-write; and an action that Landlock has no name for (chmod, stat, a UNIX socket) is not its affair.
 * Where it matters the filter of system calls steps in (seccomp.c), and Python's landlock.py says what is left.
 *
 * The kernel tells which version of the interface it has, the ABI.  Asking for what it does not know fails,
 * so each right below stands with the ABI that brought it.
 * See landlock(7), Documentation/userspace-api/landlock.rst.
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* C library headers are older than kernels, so the interface is written down here. */
#define SYS_LANDLOCK_CREATE_RULESET 444
#define SYS_LANDLOCK_ADD_RULE 445
#define SYS_LANDLOCK_RESTRICT_SELF 446
#define CREATE_RULESET_VERSION 1U
#define RULE_PATH_BENEATH 1

struct ruleset {
    uint64_t files;   /* actions on files that are denied */
    uint64_t network; /* since ABI 4 */
    uint64_t scopes;  /* since ABI 6: what may not be reached outside of our own processes */
};

struct path_rule {
    uint64_t allowed;
    int32_t folder;
} __attribute__((packed));

enum {
    EXECUTE = 1 << 0,
    WRITE_FILE = 1 << 1,
    READ_FILE = 1 << 2,
    READ_DIR = 1 << 3,
    ALL_OF_ABI_1 = (1 << 13) - 1, /* these, removing, and making each kind of file */
    REFER = 1 << 13,              /* ABI 2: rename and link from folder to folder */
    TRUNCATE = 1 << 14,           /* ABI 3 */
    IOCTL_DEV = 1 << 15,          /* ABI 5: ioctl on devices */
    MAKE_CHAR = 1 << 6,
    MAKE_BLOCK = 1 << 11,
};
enum { BIND_TCP = 1 << 0, CONNECT_TCP = 1 << 1 };       /* ABI 4 */
enum { ABSTRACT_SOCKETS = 1 << 0, SIGNALS = 1 << 1 };   /* ABI 6 */

int nsm_landlock_abi(void)
{
    long abi = syscall(SYS_LANDLOCK_CREATE_RULESET, NULL, 0, CREATE_RULESET_VERSION);
    return abi < 0 ? -errno : (int)abi;
}

static uint64_t known_files(int abi)
{
    return ALL_OF_ABI_1 | (abi >= 2 ? REFER : 0U) | (abi >= 3 ? TRUNCATE : 0U) | (abi >= 5 ? IOCTL_DEV : 0U);
}

/* What an entry of the plan allows below its folder. */
static uint64_t allowed(const struct nsm_entry *entry, uint64_t known)
{
    if (entry->flags & NSM_DEVICE)
        return known & (READ_FILE | WRITE_FILE | IOCTL_DEV | TRUNCATE);
    if (entry->flags & NSM_WRITABLE)
        return known & ~(uint64_t)(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV);
    return EXECUTE | READ_FILE | READ_DIR;
}

static int allow(int ruleset, const char *path, uint64_t actions, bool optional, struct nsm_journal *journal)
{
    int folder = (int)NSM_TRY(journal, open(path, O_PATH | O_CLOEXEC), "open(\"%s\", O_PATH)", path);
    if (folder < 0)
        return optional && (errno == ENOENT || errno == EACCES) ? 0 : -1;
    struct stat kind;
    if (fstat(folder, &kind) == 0 && !S_ISDIR(kind.st_mode))
        actions &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV; /* the others are of folders only */
    struct path_rule rule = {.allowed = actions, .folder = folder};
    int result = (int)NSM_TRY(journal, syscall(SYS_LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, &rule, 0),
                              "landlock_add_rule(\"%s\", allowed=0x%llx)", path, (unsigned long long)actions);
    int error = errno;
    close(folder);
    errno = error;
    return result;
}

/* In the payload, once no_new_privs is set: nothing but the plan's entries can be reached from here on. */
int nsm_landlock(const struct nsm_plan *plan, struct nsm_journal *journal)
{
    if (!(plan->confine & NSM_CONFINE_FILES))
        return 0;
    nsm_step(journal, "landlock");
    int abi = (int)NSM_TRY(journal,
                           syscall(SYS_LANDLOCK_CREATE_RULESET, NULL, 0, CREATE_RULESET_VERSION),
                           "landlock_create_ruleset(LANDLOCK_CREATE_RULESET_VERSION)");
    if (abi < 0)
        return -1;
    bool network = abi >= 4 && (plan->confine & NSM_CONFINE_NETWORK);
    struct ruleset denied = {
        .files = known_files(abi),
        .network = network ? BIND_TCP | CONNECT_TCP : 0U,
        .scopes = abi >= 6 ? ABSTRACT_SOCKETS | SIGNALS : 0U,
    };
    /* An older kernel takes the newer struct as long as what it does not know is zero. */
    int ruleset = (int)NSM_TRY(journal, syscall(SYS_LANDLOCK_CREATE_RULESET, &denied, sizeof denied, 0),
                               "landlock_create_ruleset(files=0x%llx, network=0x%llx, scopes=0x%llx)",
                               (unsigned long long)denied.files, (unsigned long long)denied.network,
                               (unsigned long long)denied.scopes);
    if (ruleset < 0)
        return -1;
    int result = 0;
    for (size_t i = 0; i < plan->entry_count && result == 0; i++) {
        const struct nsm_entry *entry = &plan->entries[i];
        result = allow(ruleset, entry->source, allowed(entry, denied.files), entry->flags & NSM_OPTIONAL, journal);
    }
    /* A process without a PID namespace sees everybody's /proc; this is its own part, its children's not. */
    if (result == 0)
        result = allow(ruleset, "/proc/self/", EXECUTE | READ_FILE | READ_DIR | WRITE_FILE, true, journal);
    if (result == 0)
        result = (int)NSM_TRY(journal, syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0),
                              "landlock_restrict_self()");
    int error = errno;
    close(ruleset);
    errno = error;
    return result;
}
