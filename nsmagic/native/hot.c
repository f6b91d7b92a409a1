/*
 * hot.c - the pages that every cell writes to.
 *
 * After a fork each page is shared and write-protected, and the first write to it is a fault: the kernel copies the
 * page (copy-on-write).  An interpreter writes to some thousand pages whatever it runs, for each object has a
 * counter of references; one by one these faults cost more than the fork itself.  So they are learned, and made in
 * one go when the fork has been made, when mostly nobody waits: MADV_POPULATE_WRITE copies a whole range.
 *
 * A page is hot if it was written to between two forks and again between the next two.  Which ones were,
 * /proc/self/pagemap tells: a page that nobody else maps (bit 56) has been copied or is new.
 * See madvise(2), proc_pid_pagemap(5).
 */
#include "nsmagic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define MOST_PAGES 8192U              /* 32 MiB that are copied, whether or not they are needed */
#define MOST_BYTES ((size_t)64 << 20) /* a larger mapping holds data, which few cells write to */
#define RELEARN 64                    /* forks from one lesson to the next */
#define AT_ONCE 512

#define PRESENT (1ULL << 63)
#define OF_A_FILE (1ULL << 61)
#define OURS_ALONE (1ULL << 56)

/* Page numbers, in rising order. */
struct pages {
    size_t count;
    uint64_t at[MOST_PAGES];
};

static void add_range(int pagemap, uint64_t first, uint64_t end, struct pages *found)
{
    uint64_t entries[AT_ONCE];
    while (first < end && found->count < MOST_PAGES) {
        size_t wanted = end - first < AT_ONCE ? (size_t)(end - first) : AT_ONCE;
        ssize_t got = pread(pagemap, entries, wanted * sizeof *entries, (off_t)(first * sizeof *entries));
        if (got <= 0)
            return;
        size_t count = (size_t)got / sizeof *entries;
        for (size_t i = 0; i < count && found->count < MOST_PAGES; i++)
            if ((entries[i] & PRESENT) && (entries[i] & OURS_ALONE) && !(entries[i] & OF_A_FILE))
                found->at[found->count++] = first + i;
        first += count;
    }
}

static int find_written(struct pages *found)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    found->count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int result = maps && pagemap >= 0 ? 0 : -1;
    char line[512];
    while (result == 0 && fgets(line, sizeof line, maps)) {
        unsigned long long start, end;
        char rights[5];
        if (sscanf(line, "%llx-%llx %4s", &start, &end, rights) == 3 && strcmp(rights, "rw-p") == 0 &&
            end - start <= MOST_BYTES)
            add_range(pagemap, start / page, end / page, found);
    }
    if (maps)
        fclose(maps);
    if (pagemap >= 0)
        close(pagemap);
    return result;
}

/* What is in both stays in `both`. */
static void intersect(struct pages *both, const struct pages *other)
{
    size_t kept = 0;
    for (size_t i = 0, j = 0; i < both->count; i++) {
        while (j < other->count && other->at[j] < both->at[i])
            j++;
        if (j < other->count && other->at[j] == both->at[i])
            both->at[kept++] = both->at[i];
    }
    both->count = kept;
}

static struct {
    unsigned forks;
    bool impossible;
    struct pages hot, written;
} *known;

/* Just before a fork, when the one before is still there to share with. */
void nsm_hot_learn(void)
{
    if (!known) {
        void *room = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED)
            return;
        known = room;
    }
    unsigned lesson = known->forks++ % RELEARN;
    if (known->impossible || lesson > 2)
        return;
    if (lesson == 0)
        return; /* the first may have nothing to share with */
    if (find_written(lesson == 1 ? &known->written : &known->hot) < 0)
        known->impossible = true;
    else if (lesson == 2)
        intersect(&known->hot, &known->written);
}

/* Just after it. */
void nsm_hot_copy(void)
{
    if (!known || known->impossible)
        return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0, next; i < known->hot.count; i = next) {
        for (next = i + 1; next < known->hot.count && known->hot.at[next] == known->hot.at[next - 1] + 1;)
            next++;
        void *start = (void *)(uintptr_t)(known->hot.at[i] * page);
        if (madvise(start, (next - i) * page, MADV_POPULATE_WRITE) < 0 && errno == EINVAL) {
            known->impossible = true; /* before Linux 5.14 */
            return;
        }
    }
}
