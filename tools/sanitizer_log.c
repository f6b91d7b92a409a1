/*
 * sanitizer_log.c - keeps what the sanitizers find where no file and no descriptor can be reached.
 *
 * A container's init has changed its root and closed its descriptors, so a report printed there is lost,
 * and its death may pass for the end of the job. A mapping survives both: this library, preloaded, maps the
 * file named by NSMAGIC_SANITIZER_LOG, every clone inherits the mapping, and the sanitizers' hooks write a
 * line into it. See sanitizer/asan_interface.h for the hooks.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINES = 64, LINE = 512 };

struct log {
    atomic_uint used;
    char lines[LINES][LINE];
};

static struct log *found;

void __asan_on_error(void);
void __ubsan_on_report(void);
const char *__asan_get_report_description(void) __attribute__((weak));
void *__asan_get_report_pc(void) __attribute__((weak));
void __ubsan_get_current_report_data(const char **kind, const char **message, const char **file,
                                     unsigned *line, unsigned *column, char **address) __attribute__((weak));

__attribute__((constructor)) static void map_log(void)
{
    const char *path = getenv("NSMAGIC_SANITIZER_LOG");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    /* Room for the file was made by who runs the tests: a shorter one would be a SIGBUS here. */
    void *mapping = mmap(NULL, sizeof(struct log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapping != MAP_FAILED)
        found = mapping;
    close(fd);
}

static char *next_line(void)
{
    unsigned index = found ? atomic_fetch_add(&found->used, 1) : LINES;
    return index < LINES ? found->lines[index] : NULL;
}

void __asan_on_error(void)
{
    char *line = next_line();
    Dl_info where = {0};
    if (!line || !__asan_get_report_pc || !__asan_get_report_description)
        return;
    char *pc = __asan_get_report_pc();
    dladdr(pc, &where);
    snprintf(line, LINE, "\npid %d: %s: addr2line -fe %s %#tx\n", (int)getpid(), __asan_get_report_description(),
             where.dli_fname ? where.dli_fname : "?", where.dli_fbase ? pc - (char *)where.dli_fbase : 0);
}

void __ubsan_on_report(void)
{
    char *line = next_line();
    const char *kind = "", *message = "", *file = "";
    unsigned at = 0, column = 0;
    char *address = NULL;
    if (!line || !__ubsan_get_current_report_data)
        return;
    __ubsan_get_current_report_data(&kind, &message, &file, &at, &column, &address);
    snprintf(line, LINE, "\npid %d: %s: %s:%u:%u: %s\n", (int)getpid(), kind, file, at, column, message);
}
