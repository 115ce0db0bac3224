/* Messages a second through the C core, put and taken in turn, burst by burst, by one process or by
 * two. Two that ran freely would fall into step in one of several ways, and which one decides more
 * than all else. Arguments: processes, mode, messages a call, bytes of a body, messages in all. */
#include "await.h"
#include "pool.h"
#include "queue.h"
#include "ring.h"
#include "wait.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH_MAX 256u
#define BODY_MAX 4096u
#define BURST UINT64_C(512)

static void pin_to(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void produce(sq_queue *queue, uint32_t batch, uint32_t bytes, uint64_t messages) {
    static unsigned char body[BODY_MAX];
    sq_item items[BATCH_MAX];
    while (messages > 0) {
        uint32_t n = messages < batch ? (uint32_t)messages : batch, done = 0, accepted;
        for (uint32_t i = 0; i < n; i++) {
            items[i] = (sq_item){.body = body, .length = bytes, .storage = SQ_INLINE};
            if (bytes > sq_inline_max(queue)) {
                while (sq_chunk_acquire(queue, bytes, &items[i].chunk) != SQ_OK) {
                    sq_await_chunk(queue, bytes, 1000000000);
                }
                memcpy(sq_chunk_data(queue, items[i].chunk), body, bytes);
                sq_chunk_describe(queue, items[i].chunk, bytes, 1);
                items[i].storage = SQ_IN_CHUNK;
            }
        }
        while (done < n) {
            if (sq_put(queue, items + done, n - done, &accepted) == SQ_FULL) {
                sq_await_room(queue, 1000000000);
            }
            done += accepted;
        }
        messages -= n;
    }
}

static void consume(sq_queue *queue, uint32_t batch, uint64_t messages) {
    static unsigned char out[BODY_MAX];
    void *taken = malloc(batch * sq_taken_stride(queue));
    while (messages > 0) {
        uint32_t count;
        sq_status status = sq_take(queue, taken, batch, &count);
        if (status == SQ_EMPTY) {
            sq_await_message(queue, 1000000000);
        } else if (status != SQ_OK) {
            exit(2);
        }
        for (uint32_t i = 0; i < count; i++) {
            sq_taken *one = (sq_taken *)((char *)taken + i * sq_taken_stride(queue));
            if (one->storage == SQ_IN_CHUNK) {
                memcpy(out, sq_chunk_data(queue, one->chunk), one->length);
                sq_chunk_release(queue, one->chunk);
            }
        }
        messages -= count;
    }
    free(taken);
}

static uint64_t length_of_burst(uint64_t messages) {
    return messages < BURST ? messages : BURST;
}

/* Messages put, and taken, in bursts: beside the queue, whose words are not to be looked at. */
typedef struct progress {
    _Alignas(SQ_PAIR) _Atomic uint64_t put;
    _Alignas(SQ_PAIR) _Atomic uint64_t taken;
} progress;

static void await_count(const _Atomic uint64_t *count, uint64_t wanted) {
    while (atomic_load(count) < wanted) {
        sq_pause();
    }
}

static void produce_in_another_process(sq_queue *queue, uint32_t batch, uint32_t bytes,
                                       uint64_t messages, progress *progress) {
    int invitation = sq_queue_invite(queue, true);
    if (invitation < 0) {
        exit(2);
    }
    if (fork() == 0) {
        pin_to(1);
        if (sq_queue_fork_child(queue, invitation) != SQ_OK ||
            sq_queue_enrol_producer(queue) != SQ_OK) {
            _exit(2);
        }
        while (progress->put < messages) {
            uint64_t burst = length_of_burst(messages - progress->put);
            produce(queue, batch, bytes, burst);
            await_count(&progress->taken, progress->put += burst);
        }
        sq_queue_leave(queue);
        _exit(0);
    }
    sq_queue_end_invitation(queue, invitation);
}

static void consume_from_another_process(sq_queue *queue, uint32_t batch, uint64_t messages,
                                         progress *progress) {
    while (messages > 0) {
        uint64_t burst = length_of_burst(messages);
        await_count(&progress->put, progress->taken + burst);
        consume(queue, batch, burst);
        progress->taken += burst;
        messages -= burst;
    }
}

static void produce_and_consume(sq_queue *queue, uint32_t batch, uint32_t bytes,
                                uint64_t messages) {
    sq_queue_enrol_producer(queue);
    while (messages > 0) {
        uint64_t burst = length_of_burst(messages);
        produce(queue, batch, bytes, burst);
        consume(queue, batch, burst);
        messages -= burst;
    }
}

/* By one process: on a busy machine its own time, without that of others, is what it costs. */
static uint64_t time_spent(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        return 2;
    }
    argv++;
    char name[64];
    uint32_t batch = (uint32_t)atoi(argv[2]), bytes = (uint32_t)atoi(argv[3]);
    uint64_t messages = (uint64_t)atoll(argv[4]);
    sq_queue queue;
    sq_options options = {.pool_bytes = 16 << 20,
                          .capacity = 16384,
                          .slot_bytes = 128,
                          .participants = 129,
                          .mode = (uint32_t)atoi(argv[1]),
                          .recovery_ms = 100,
                          .codec = "bench"};
    snprintf(name, sizeof name, "sagequeue-bench-%d", (int)getpid());
    if (batch > BATCH_MAX || bytes > BODY_MAX || sq_queue_create(&queue, name, &options) != SQ_OK) {
        return 2;
    }
    pin_to(0);
    sq_queue_enrol_consumer(&queue);
    uint64_t start, nanoseconds;
    if (atoi(argv[0]) == 2) {
        uint64_t first = messages / 10 / BURST * BURST; /* memory is touched */
        progress *progress =
            mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        produce_in_another_process(&queue, batch, bytes, first + messages, progress);
        consume_from_another_process(&queue, batch, first, progress);
        start = sq_now_ns();
        consume_from_another_process(&queue, batch, messages, progress);
        nanoseconds = sq_now_ns() - start;
    } else {
        produce_and_consume(&queue, batch, bytes, messages / 10); /* memory is touched */
        start = time_spent();
        produce_and_consume(&queue, batch, bytes, messages);
        nanoseconds = time_spent() - start;
    }
    double seconds = (double)nanoseconds / 1e9;
    wait(NULL);
    sq_queue_leave(&queue);
    printf("%.0f\n", (double)messages / seconds);
    return 0;
}
