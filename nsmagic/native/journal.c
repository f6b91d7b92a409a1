/*
 * journal.c - one line for every system call that builds a container.
 *
 * A line is seven fields between tabs:
 *     step  call with its arguments by name  result  errno  began (ns)  took (ns)  who
 * The journal is the real run's own log, so it needs neither ptrace nor strace.
 * It is kept in memory and told to the owner in one packet: a write for each
 * line would cost more than most of the calls that it describes.
 */
#include "nsmagic.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

/* CLOCK_REALTIME: the monotonic clock jumps when a time namespace is entered. */
static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void nsm_step(struct nsm_journal *journal, const char *step)
{
    journal->step = step;
}

void nsm_begin(struct nsm_journal *journal)
{
    journal->began = now();
    errno = 0;
}

/* Lines that somebody else wrote, who had a part in the building: the same seven fields, by the same clock. */
void nsm_append(struct nsm_journal *journal, const char *lines, size_t length)
{
    if (length > sizeof journal->text)
        return;
    if (journal->length + length > sizeof journal->text)
        journal->length = 0; /* as below: the last line may be a failure */
    memcpy(journal->text + journal->length, lines, length);
    journal->length += length;
}

/* Paths and names come from users: a tab or a newline in them must not look like ours. */
static void hide_separators(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = '?';
}

long nsm_end(struct nsm_journal *journal, long result, const char *format, ...)
{
    int error = result < 0 ? errno : 0;
    int64_t took = now() - journal->began;

    char call[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(call, sizeof call, format, arguments);
    va_end(arguments);
    hide_separators(call);

    char line[768];
    int wanted = snprintf(line, sizeof line, "%s\t%s\t%ld\t%d\t%lld\t%lld\t%s\n", journal->step, call, result,
                          error, (long long)journal->began, (long long)took, journal->who);
    size_t length = wanted < (int)sizeof line ? (size_t)wanted : sizeof line - 1;
    /* A failure is always written down, even where there was no room for all that went before it. */
    if (error && journal->length + length > sizeof journal->text)
        journal->length = 0;
    if (journal->length + length <= sizeof journal->text) {
        memcpy(journal->text + journal->length, line, length);
        journal->length += length;
    }
    errno = error;
    return result;
}

void nsm_report(int report, char kind, const struct nsm_journal *journal)
{
    struct iovec parts[2] = {
        {.iov_base = &kind, .iov_len = 1},
        {.iov_base = (void *)(uintptr_t)journal->text, .iov_len = journal->length},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    /* The owner may be gone: then nobody is left to be told. */
    (void)!sendmsg(report, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}
