/*
 * nsmagic.h - the plan of a container, and the journal of its building.
 *
 * A *plan* is one plain struct that says what to build.  nsm_spawn() builds it
 * and writes one line for each system call into a *journal*.  There is no global
 * state and nothing here ends the process on an error: each step returns, and the
 * last line of the journal then names the call that failed, its arguments and errno.
 *
 * Read spawn.c first: it is the table of contents.
 */
#ifndef NSMAGIC_H
#define NSMAGIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* ---- The plan ---------------------------------------------------------- */

/* One thing to put into the container's root file system; done in the order given. */
enum nsm_entry_kind {
    NSM_DIRECTORY = 1, /* an empty directory */
    NSM_FILE,          /* a small file with the given content */
    NSM_SYMLINK,       /* a symbolic link to `source` */
    NSM_BIND,          /* a file or folder of the host, bind-mounted */
    NSM_COW,           /* a folder of the host under a copy-on-write layer */
    NSM_PRIVATE,       /* an own, empty, writable folder */
    NSM_PROC,          /* a fresh procfs */
    NSM_PTS,           /* a fresh devpts */
    NSM_LAYER,         /* a folder of the host as one layer of the root itself; these come first, topmost first */
};

enum nsm_entry_flags {
    NSM_WRITABLE = 1, /* a bind that may be written to: otherwise read-only */
    NSM_DEVICE = 2,   /* a bind of a device node: otherwise devices below it are dead */
    NSM_OPTIONAL = 4, /* leave it out if the source is not there */
    NSM_REPLACE = 8,  /* take away what stands at the target, unless it is a folder */
};

struct nsm_entry {
    int kind;
    int flags;
    unsigned mode;      /* of an NSM_DIRECTORY, NSM_FILE or NSM_PRIVATE */
    const char *target; /* absolute path in the container */
    const char *source; /* path on the host, link text, or file content */
    size_t length;      /* of file content, in bytes */
    int idmap;          /* root only: a user namespace that shows the source's owner as the payload; or -1 */
    int tree;           /* the source as a detached mount, once it is open; -1 before */
};

/* What else is closed where there are no namespaces; with them, none of these. */
enum nsm_confinement {
    NSM_CONFINE_FILES = 1,     /* Landlock: files that no entry of the plan names cannot be opened */
    NSM_CONFINE_OTHERS = 2,    /* IPC objects and settings of the user's other processes */
    NSM_CONFINE_NETWORK = 4,   /* no sockets but pairs */
    NSM_CONFINE_METADATA = 8,  /* modes, owners, times and attributes of files stay as they are */
    NSM_CONFINE_TRUNCATE = 16, /* for a Landlock that does not know of truncation */
};

struct nsm_rlimit {
    int resource; /* RLIMIT_... */
    uint64_t value;
};

/* A namespace of another container; see join.c. */
struct nsm_join {
    int kind; /* its CLONE_NEW... bit */
    int fd;
};

struct nsm_plan {
    uint64_t namespaces; /* CLONE_NEW... bits */

    /* Who the payload is: ids as seen inside, and the host ids they stand for. */
    unsigned uid, gid;
    unsigned host_uid, host_gid;
    unsigned parent_uid, parent_gid; /* and those of the user namespace that it is made in: the host's, if none is joined */

    /*
     * Entered first, in this order.  Beside a joined user namespace CLONE_NEWUSER means a child of it.
     */
    const struct nsm_join *joins;
    size_t join_count;
    int proc_from; /* of a joined PID namespace, if /proc is to be there: a mount namespace that has one; or -1 */
    int hold;      /* no payload: init keeps it all for others, who join */
    int proc;      /* the joiner's: where /proc is, see nsm_open_proc(); else -1 */

    const char *hostname; /* NULL: leave it */
    int hostname_wished;  /* nobody asked for just this name: go on without where a filter denies sethostname */
    const char *workdir;  /* absolute path in the container (or on the host without a mount namespace) */

    const struct nsm_entry *entries;
    size_t entry_count;
    uint64_t disk_bytes;  /* all that the container may write to its file systems */
    uint64_t disk_inodes; /* and in how many files */
    unsigned confine;     /* enum nsm_confinement */
    int snapshots;        /* when the payload dies, a snapshot of it may take over, see snapshot.c */

    const struct nsm_rlimit *rlimits;
    size_t rlimit_count;

    const int *cgroup_joins; /* cgroup v1 `tasks` files, open for writing */
    size_t cgroup_join_count;
    int cgroup_directory; /* a cgroup v2 directory for CLONE_INTO_CGROUP, or -1 */

    int lifeline; /* read end: commands from the owner; its closing ends the container */
    int report;   /* what is told to the owner: journal, failure, exit */
    int control;  /* becomes descriptor 3 of the payload */
    int stdin_fd, stdout_fd, stderr_fd;

    int late; /* where init gets the rest of the plan, see late.c; or -1: it is all here */

    int network; /* to whoever builds the rest of its network from outside, see net.c; or -1: there is no rest */
};

/* ---- What init is told over the lifeline ------------------------------- */

enum nsm_order_kind {
    NSM_ORDER_DEADLINE = 1, /* value: nanoseconds from now, 0 to take it back */
    NSM_ORDER_SIGNAL = 2,   /* value: a signal for the payload's process group */
};

struct nsm_order {
    uint64_t kind;
    uint64_t value;
};

/* ---- The journal ------------------------------------------------------- */

#define NSM_JOURNAL_BYTES 49152

struct nsm_journal {
    const char *who;     /* whose calls these are: "launcher", "joiner", "init" or "payload" */
    const char *step;    /* the step we are in: "mount", "userns" ... */
    int64_t began;       /* when the call that is being made began, ns of CLOCK_REALTIME */
    size_t length;       /* bytes of text in use */
    char text[NSM_JOURNAL_BYTES];
};

void nsm_step(struct nsm_journal *journal, const char *step);
void nsm_append(struct nsm_journal *journal, const char *lines, size_t length);
void nsm_begin(struct nsm_journal *journal);
long nsm_end(struct nsm_journal *journal, long result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Make a call and write it down.  Evaluates to the call's result; errno is kept. */
#define NSM_TRY(journal, call, ...) (nsm_begin(journal), nsm_end((journal), (long)(call), __VA_ARGS__))

/* Reports: one packet each, the first byte says what it is. */
#define NSM_REPORT_JOURNAL 'J' /* then journal lines */
#define NSM_REPORT_FAILED 'F'  /* then journal lines; the last is the call that failed */
#define NSM_REPORT_INIT 'I'    /* then journal lines: init has done all of its building */
#define NSM_REPORT_PID 'P'     /* then init's pid in decimal, as the launcher sees it */
#define NSM_REPORT_LAYER 'L'   /* with a descriptor of the writable file system */
#define NSM_REPORT_NAMESPACES 'N' /* then the kinds in decimal, each with a descriptor */
#define NSM_REPORT_READY 'R'   /* then journal lines: the payload is about to run */
#define NSM_REPORT_EXIT 'X'    /* then "cause status user_us system_us maxrss_kib full" */
#define NSM_REPORT_DEATH 'D'   /* the same of a payload whose snapshot takes over */

void nsm_report(int report, char kind, const struct nsm_journal *journal);

/* ---- The steps, one file a subject ------------------------------------- */

/* spawn.c: returns init's pid in the launcher, 0 in the payload, -1 on an error. */
pid_t nsm_spawn(struct nsm_plan *plan, struct nsm_entry *entries);
/* In the payload, before it runs anything of the user's: wait for the root, give up every right. */
int nsm_confine(struct nsm_plan *plan);
bool nsm_may_mount(void);

/* join.c */
bool nsm_joins(const struct nsm_plan *plan, int kind);
int nsm_join_proc(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal);
int nsm_join_check_proc(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_join(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_join_offer(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_open_proc(const struct nsm_plan *plan, const char *path, int flags);

/* late.c */
long nsm_send_with(int socket, const void *data, size_t length, const int *descriptors, size_t count);
int nsm_finish(struct nsm_plan *plan, struct nsm_entry *entries, int late);
int nsm_late_wait(struct nsm_plan *plan, struct nsm_entry **entries, struct nsm_journal *journal);
#define NSM_MOST_RLIMITS 16
int nsm_go_tell(const struct nsm_plan *plan, int go, int root, int workdir, struct nsm_journal *journal);
int nsm_go_wait(struct nsm_plan *plan, struct nsm_rlimit *rlimits, struct nsm_journal *journal);

/* userns.c */
bool nsm_userns_there(const struct nsm_plan *plan);
int nsm_userns_write_maps(const struct nsm_plan *plan, pid_t child, struct nsm_journal *journal);
int nsm_userns_become(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_userns_for_idmap(unsigned owner, unsigned group, unsigned host_uid, unsigned host_gid);

/* cgroup.c */
int nsm_cgroup_move(const struct nsm_plan *plan, pid_t child, struct nsm_journal *journal);
int nsm_cgroup_join(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_cgroup_namespace(const struct nsm_plan *plan, struct nsm_journal *journal);

/* uts.c, net.c, timens.c */
int nsm_uts(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_net(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_timens(const struct nsm_plan *plan, struct nsm_journal *journal);

/* sources.c, mount.c; what these share with place.c, procfs.c and pivot.c is in mount.h */
int nsm_mount_open_sources(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal);
void nsm_mount_close_sources(const struct nsm_plan *plan, struct nsm_entry *entries);
int nsm_mount(const struct nsm_plan *plan, struct nsm_entry *entries, struct nsm_journal *journal);

/* layers.c: how many of the entries are layers of the root; the root that is made of them, opened, or -1 */
size_t nsm_layers_count(const struct nsm_plan *plan, const struct nsm_entry *entries);
int nsm_layers_root(const struct nsm_plan *plan, const struct nsm_entry *entries, struct nsm_journal *journal);
#define NSM_SCRATCH "/tmp" /* where the scratch lies while we build: any folder would do, nobody else sees it */
#define NSM_NEW_ROOT NSM_SCRATCH "/root"
int nsm_scratch_folder(const struct nsm_plan *plan, const char *path, unsigned mode);

/* landlock.c: the ABI, or a negative errno */
int nsm_landlock_abi(void);
int nsm_landlock(const struct nsm_plan *plan, struct nsm_journal *journal);

/* limits.c, session.c, caps.c, seccomp.c, fds.c */
int nsm_limits(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_session(struct nsm_journal *journal);
int nsm_caps_drop(const struct nsm_plan *plan, struct nsm_journal *journal);
int nsm_seccomp(const struct nsm_plan *plan, struct nsm_journal *journal);
#define NSM_PAYLOAD_REPORT 4 /* where the payload finds its report, until it closes it */
#define NSM_PAYLOAD_GO 5     /* and where it hears that its root is there */
int nsm_fds_payload(const struct nsm_plan *plan, int go, struct nsm_journal *journal);
int nsm_fds_only(const int *wanted, size_t count);

/* snapshot.c */
#define NSM_SNAPSHOT_NAME "nsmagic-kept"
#define NSM_WAKE SIGUSR2
#define NSM_OOM_SNAPSHOT "0"
#define NSM_OOM_PAYLOAD "1000"
#define NSM_MOST_FILES 256

struct nsm_facts {
    unsigned long long libraries; /* that were loaded so far, from dl_iterate_phdr(3) */
    int accelerator;              /* whether one of them drives a GPU */
    int threads;
    unsigned long long resident;  /* bytes */
    unsigned long long private;   /* of those, what is not of a file */
};

struct nsm_position {
    int file;
    int64_t position;
};

struct nsm_snapshot {
    pid_t pid;       /* of the one that would be woken, or 0 */
    int pidfd;       /* likewise, or -1 */
    pid_t older;     /* of the one before it, which is there to go back to, or 0 */
    int older_pidfd; /* likewise, or -1 */
    int oom;    /* our /proc/self/oom_score_adj, or -1 */
    int writing;     /* how many regular files are open for writing */
    uint64_t which;  /* a number that is another one where others are */
    int file_count;
    struct nsm_position files[NSM_MOST_FILES];
    int64_t nanoseconds; /* of processor time that the last one took */
    int processes;       /* of the dead one, that were ended when this one woke */
};

bool nsm_process_lives(pid_t pid);
bool nsm_is_snapshot(pid_t pid);
int nsm_look(struct nsm_facts *facts);
int nsm_note_positions(struct nsm_snapshot *snapshot);
pid_t nsm_snapshot(struct nsm_snapshot *snapshot, int keep);
void nsm_snapshot_end(struct nsm_snapshot *snapshot);
void nsm_snapshot_end_older(struct nsm_snapshot *snapshot);

/* hot.c */
void nsm_hot_learn(void);
void nsm_hot_copy(void);

/* interrupts.c */
void nsm_hold_interrupts(void);
void nsm_give_interrupts(void);
void nsm_forget_interrupts(void);

/* seccomp.c, for the tests: the table and the program made from it. */
struct nsm_denied {
    int number;         /* of the system call */
    int error;          /* what it fails with */
    const char *name;   /* of the system call */
    const char *reason; /* why it is denied */
};
const struct nsm_denied *nsm_seccomp_table(size_t *count);
size_t nsm_seccomp_program(uint64_t *instructions, size_t room);
unsigned nsm_seccomp_arch(void);

/* init.c: never returns. */
void nsm_init(const struct nsm_plan *plan, pid_t payload, struct nsm_journal *journal)
    __attribute__((noreturn));

#endif
