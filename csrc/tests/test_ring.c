/* Traffic in every mode, between threads and between processes: nothing lost, doubled or torn,
 * each producer's order kept, the pool whole at the end. */
#include "check.h"

enum { PRODUCERS_MAX = 4, CONSUMERS_MAX = 4 };

/* ThreadSanitizer sees what threads of one process do; processes it only slows down. */
#if defined(__SANITIZE_THREAD__)
enum { WITH_PROCESSES = 0, MESSAGES = 20000 };
#else
enum { WITH_PROCESSES = 1, MESSAGES = 30000 };
#endif

typedef struct traffic {
    char name[64];
    uint32_t mode, producers, consumers, batch, largest;
    uint64_t messages; /* of each producer */
    /* what consumers saw, in memory shared by all of them */
    _Atomic uint64_t count[PRODUCERS_MAX];
    _Atomic uint64_t sum[PRODUCERS_MAX];
} traffic;

typedef struct worker {
    traffic *shared;
    uint32_t index;
} worker;

static void produce(traffic *t, uint32_t index) {
    sq_queue queue;
    CHECK(sq_queue_attach(&queue, t->name) == SQ_OK);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK);
    for (uint64_t number = 0; number < t->messages; number += t->batch) {
        uint64_t left = t->messages - number;
        put_messages(&queue, index, number, left < t->batch ? (uint32_t)left : t->batch,
                     t->largest);
    }
    leave_and_unmap(&queue);
}

static void consume(traffic *t) {
    sq_queue queue;
    uint64_t next[PRODUCERS_MAX] = {0};
    CHECK(sq_queue_attach(&queue, t->name) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
    unsigned char *taken = malloc(sq_taken_stride(&queue) * t->batch);
    for (;;) {
        uint32_t count;
        sq_status status = sq_take(&queue, taken, t->batch, &count);
        if (status == SQ_CLOSED) {
            break;
        }
        CHECK(status == SQ_OK || status == SQ_EMPTY);
        for (uint32_t i = 0; i < count; i++) {
            const sq_taken *one = (const sq_taken *)(taken + i * sq_taken_stride(&queue));
            CHECK(one->deliveries == 0);
            message m = open_message(&queue, one);
            CHECK(m.producer < t->producers && m.number >= next[m.producer]);
            CHECK(t->consumers > 1 || m.number == next[m.producer]);
            next[m.producer] = m.number + 1;
            atomic_fetch_add(&t->count[m.producer], 1);
            atomic_fetch_add(&t->sum[m.producer], m.number);
        }
        if (count == 0) {
            sq_await_message(&queue, 1000000000);
        }
    }
    free(taken);
    leave_and_unmap(&queue);
}

static void *produce_thread(void *argument) {
    worker *w = argument;
    produce(w->shared, w->index);
    return NULL;
}

static void *consume_thread(void *argument) {
    consume(argument);
    return NULL;
}

static void run_threads(traffic *t, sq_queue *queue) {
    pthread_t producers[PRODUCERS_MAX], consumers[CONSUMERS_MAX];
    worker workers[PRODUCERS_MAX];
    for (uint32_t i = 0; i < t->consumers; i++) {
        CHECK(pthread_create(&consumers[i], NULL, consume_thread, t) == 0);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        workers[i] = (worker){t, i};
        CHECK(pthread_create(&producers[i], NULL, produce_thread, &workers[i]) == 0);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        pthread_join(producers[i], NULL);
    }
    sq_shutdown(queue, false);
    for (uint32_t i = 0; i < t->consumers; i++) {
        pthread_join(consumers[i], NULL);
    }
}

static pid_t start(void (*work)(traffic *, uint32_t), traffic *t, uint32_t index) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        work(t, index);
        _exit(0);
    }
    return child;
}

static void consume_process(traffic *t, uint32_t index) {
    (void)index;
    consume(t);
}

static void await_exit(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_processes(traffic *t, sq_queue *queue) {
    pid_t producers[PRODUCERS_MAX], consumers[CONSUMERS_MAX];
    for (uint32_t i = 0; i < t->consumers; i++) {
        consumers[i] = start(consume_process, t, 0);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        producers[i] = start(produce, t, i);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        await_exit(producers[i]);
    }
    sq_shutdown(queue, false);
    for (uint32_t i = 0; i < t->consumers; i++) {
        await_exit(consumers[i]);
    }
}

static void run(traffic *t, uint64_t maxsize, bool processes) {
    sq_queue queue;
    sq_options options = options_of(t->mode, maxsize, 256);
    snprintf(t->name, sizeof t->name, "%s", fresh_name());
    CHECK(sq_queue_create(&queue, t->name, &options) == SQ_OK);
    for (uint32_t i = 0; i < PRODUCERS_MAX; i++) {
        atomic_store(&t->count[i], 0);
        atomic_store(&t->sum[i], 0);
    }
    (processes ? run_processes : run_threads)(t, &queue);
    for (uint32_t i = 0; i < t->producers; i++) {
        CHECK(atomic_load(&t->count[i]) == t->messages);
        CHECK(atomic_load(&t->sum[i]) == t->messages * (t->messages - 1) / 2);
    }
    CHECK(sq_size(&queue) == 0);
    CHECK(chunks_in_use(&queue) == 0);
    leave_and_unmap(&queue);
    CHECK(sq_queue_attach(&queue, t->name) == SQ_GONE);
}

int main(void) {
    sq_segment shared_memory;
    sq_options options = options_of(SQ_MPMC, 0, 64);
    CHECK(sq_segment_create(&shared_memory, &options) == SQ_OK);
    /* the pool's bytes serve as memory that all processes share */
    traffic *t = (traffic *)(shared_memory.base + shared_memory.data_offset[12]);
    CHECK(sq_segment_back(&shared_memory, shared_memory.data_offset[12], sizeof *t) == SQ_OK);
    static const uint32_t batches[] = {1, 7, 64};
    static const uint32_t largest[] = {60, 1900};
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (unsigned b = 0; b < 3; b++) {
            for (unsigned l = 0; l < 2; l++) {
                for (int processes = 0; processes <= WITH_PROCESSES; processes++) {
                    memset(t, 0, sizeof *t);
                    t->mode = mode;
                    t->producers = mode & SQ_SINGLE_PRODUCER ? 1 : 3;
                    t->consumers = mode & SQ_SINGLE_CONSUMER ? 1 : 3;
                    t->batch = batches[b];
                    t->largest = largest[l];
                    t->messages = MESSAGES * MANY / t->producers;
                    run(t, b == 1 ? 3 : 0, processes);
                }
            }
        }
        printf("%s\n", mode_name(mode));
    }
    sq_segment_unmap(&shared_memory);
    return 0;
}
