/* What every test of the core needs: checks, a process of its own, names that are cleaned up. */
#ifndef SQ_TESTS_CHECK_H
#define SQ_TESTS_CHECK_H

#include "await.h"
#include "control.h"
#include "pool.h"
#include "queue.h"
#include "recovery.h"
#include "ring.h"
#include "slots.h"
#include "tasks.h"
#include "usage.h"
#include "wait.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define MANY (SQ_LONG ? 20u : 1u)
#define TEST_SECONDS (SQ_LONG ? 1200u : 300u)
#define HANG_NS UINT64_C(30000000000) /* waiting for longer than this is a failure */

#if defined(__SANITIZE_THREAD__)
#define SQ_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SQ_THREAD_SANITIZER 1
#endif
#endif

/* ---- running ---- */

typedef struct test {
    const char *name;
    void (*run)(void);
} test;
#define TEST(function) {.name = #function, .run = function}

/* Names of one test begin with the number of its process group. */
static inline const char *fresh_name(void) {
    static char name[64];
    static unsigned number;
    snprintf(name, sizeof name, "sagequeue-ctest-%d-%d-%u", (int)getpgrp(), (int)getpid(),
             number++);
    return name;
}

static inline unsigned count_files(const char *prefix, bool remove) {
    unsigned found = 0;
    DIR *directory = opendir("/dev/shm");
    CHECK(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) == 0) {
            found++;
            if (remove) {
                sq_segment_unlink(entry->d_name);
            }
        }
    }
    closedir(directory);
    return found;
}

static inline void die_with_parent(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static inline bool run_test(const test *one) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        setpgid(0, 0);
        die_with_parent();
        alarm(TEST_SECONDS);
        one->run();
        exit(0);
    }
    int status;
    char prefix[64];
    CHECK(waitpid(child, &status, 0) == child);
    kill(-child, SIGKILL); /* what it may have left running */
    snprintf(prefix, sizeof prefix, "sagequeue-ctest-%d-", (int)child);
    unsigned left_behind = count_files(prefix, true);
    bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0 && left_behind == 0;
    printf("%s %s", passed ? "ok" : "FAILED", one->name);
    if (WIFSIGNALED(status)) {
        printf(" (%s)", WTERMSIG(status) == SIGALRM ? "too slow" : strsignal(WTERMSIG(status)));
    }
    if (left_behind != 0) {
        printf(" (%u files left in /dev/shm)", left_behind);
    }
    printf("\n");
    return passed;
}

static inline int run_tests(const test *tests, size_t n) {
    bool passed = true;
    for (size_t i = 0; i < n; i++) {
        passed &= run_test(&tests[i]);
    }
    return passed ? 0 : 1;
}
#define RUN_TESTS(tests) run_tests(tests, sizeof(tests) / sizeof(*(tests)))

/* ---- other processes ---- */

static inline pid_t start_process(void (*work)(void *), void *argument) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        die_with_parent();
        work(argument);
        _exit(0);
    }
    return child;
}

static inline void expect_exit(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Run `work` in a process that is killed at the end of it. */
static inline void run_and_kill(void (*work)(void *), void *argument) {
    int status;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        work(argument);
        raise(SIGKILL);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* A child that takes part in the queue by the handle that it inherits; sq_queue_fork_child's answer
 * is work's to check. */
typedef struct forked {
    sq_queue *queue;
    int invitation;
    void *argument;
} forked;

static inline pid_t fork_with(sq_queue *queue, void (*work)(forked *), void *argument) {
    forked child = {
        .queue = queue, .invitation = sq_queue_invite(queue, true), .argument = argument};
    CHECK(child.invitation >= 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        die_with_parent();
        work(&child);
        _exit(0);
    }
    sq_queue_end_invitation(queue, child.invitation);
    return pid;
}

/* Zeroed memory that all processes of the test share. */
static inline void *shared_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* ---- queues ---- */

enum { MPMC = 0, SPMC = SQ_SINGLE_PRODUCER, MPSC = SQ_SINGLE_CONSUMER, SPSC = SPMC | MPSC };

static inline const char *mode_name(uint32_t mode) {
    static const char *const names[] = {"mpmc", "spmc", "mpsc", "spsc"};
    return names[mode];
}

static inline sq_options options_of(uint32_t mode, uint64_t maxsize, uint32_t capacity) {
    return (sq_options){
        .maxsize = maxsize,
        .pool_bytes = 1u << 20,
        .capacity = capacity,
        .slot_bytes = 128,
        .participants = 32,
        .mode = mode,
        .recovery_ms = 20,
        .codec = "test",
    };
}

/* A queue of which this handle is producer and consumer. */
static inline void create_with(sq_queue *queue, sq_options options) {
    CHECK(sq_queue_create(queue, fresh_name(), &options) == SQ_OK);
}

static inline void enrol(sq_queue *queue) {
    CHECK(sq_queue_enrol_producer(queue) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(queue) == SQ_OK);
}

static inline void close_queue(sq_queue *queue) {
    sq_queue_leave(queue);
    sq_queue_unmap(queue);
}

/* Another participant on the first one's mapping: ThreadSanitizer knows shared memory by its
 * address alone. */
static inline void attach_here(sq_queue *queue, const sq_queue *first) {
    CHECK(sq_queue_attach(queue, first->file_name) == SQ_OK);
    ptrdiff_t entry = (unsigned char *)queue->self - queue->segment.base;
    munmap(queue->segment.base, queue->segment.bytes);
    queue->segment.base = first->segment.base;
    queue->header = first->header;
    queue->self = (sq_participant *)(first->segment.base + entry);
}

static inline void close_here(sq_queue *queue) {
    sq_queue_leave(queue);
    close(queue->segment.fd);
}

static inline sq_status put_value(sq_queue *queue, uint64_t value) {
    uint32_t accepted;
    sq_item item = {.body = &value, .length = sizeof value, .storage = SQ_INLINE};
    return sq_put(queue, &item, 1, &accepted);
}

static inline sq_status take_value(sq_queue *queue, uint64_t *value) {
    uint64_t space[SQ_TAKEN_WORDS];
    sq_taken *taken = (sq_taken *)space;
    uint32_t count;
    *value = UINT64_MAX;
    sq_status status = sq_take(queue, taken, 1, &count);
    CHECK((status == SQ_OK) == (count == 1));
    if (count == 1) {
        CHECK(taken->storage == SQ_INLINE && taken->length == sizeof *value);
        memcpy(value, taken->body, sizeof *value);
    }
    return status;
}

/* Settle the dead now; how many there were. */
static inline uint32_t recover_now(sq_queue *queue) {
    uint32_t found;
    CHECK(sq_recover(queue, &found) == SQ_OK);
    return found;
}

static inline uint32_t chunks_in_use(const sq_queue *queue) {
    uint32_t used = 0;
    for (uint32_t c = 0; c < queue->segment.classes; c++) {
        for (uint32_t i = 0; i < sq_chunks_used(queue, c); i++) {
            used += atomic_load(&sq_chunk_at(queue, sq_chunk_name(c, i))->word) != 0;
        }
    }
    return used;
}

#endif
