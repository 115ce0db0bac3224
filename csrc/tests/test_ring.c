/* Traffic in every mode, between threads and between processes: every message arrives once and
 * whole, each producer's in order, and the pool is whole at the end. */
#include "messages.h"

enum { PRODUCERS_MAX = 3, CONSUMERS_MAX = 3, MESSAGES_MAX = 6000 * MANY };

/* ThreadSanitizer sees what the threads of one process do; of processes it sees nothing. */
#if defined(SQ_THREAD_SANITIZER)
enum { WITH_PROCESSES = 0, MESSAGES = 3000 * MANY };
#else
enum { WITH_PROCESSES = 1, MESSAGES = 6000 * MANY };
#endif

typedef struct traffic {
    sq_queue *queue; /* the creator's handle */
    uint32_t mode, producers, consumers, put_batch, take_batch;
    uint64_t maxsize;
    bool processes;
    bool closing; /* the queue is shut down while producers are at it */
    const bodies *kind;
    uint64_t messages; /* of each producer */
    _Atomic uint64_t accepted[PRODUCERS_MAX];
    _Atomic uint64_t taken;
    _Atomic uint8_t seen[PRODUCERS_MAX][MESSAGES_MAX];
} traffic;

typedef struct worker {
    traffic *shared;
    uint32_t index;
} worker;

static void open_handle(sq_queue *queue, const traffic *t) {
    if (t->processes) {
        CHECK(sq_queue_attach(queue, t->queue->file_name) == SQ_OK);
    } else {
        attach_here(queue, t->queue);
    }
}

static void close_handle(sq_queue *queue, const traffic *t) {
    (t->processes ? close_queue : close_here)(queue);
}

static void produce(void *argument) {
    worker *w = argument;
    traffic *t = w->shared;
    sq_queue queue;
    open_handle(&queue, t);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK);
    uint64_t number = 0;
    while (number < t->messages) {
        uint64_t left = t->messages - number;
        uint32_t n = left < t->put_batch ? (uint32_t)left : t->put_batch;
        uint32_t accepted = put_messages(&queue, w->index, number, n, t->kind);
        number += accepted;
        if (accepted < n) {
            CHECK(t->closing);
            break;
        }
    }
    atomic_store(&t->accepted[w->index], number);
    close_handle(&queue, t);
}

static void consume(void *argument) {
    traffic *t = ((worker *)argument)->shared;
    sq_queue queue;
    uint64_t next[PRODUCERS_MAX] = {0};
    message m;
    open_handle(&queue, t);
    CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
    size_t stride = sq_taken_stride(&queue);
    unsigned char *taken = malloc(stride * t->take_batch);
    for (;;) {
        uint32_t count;
        uint64_t start = sq_now_ns();
        sq_status status = sq_take(&queue, taken, t->take_batch, &count);
        if (status == SQ_CLOSED) {
            break;
        }
        CHECK(status == SQ_OK || status == SQ_EMPTY);
        uint64_t tail = atomic_load(&queue.header->tail) & ~SQ_TAIL_CLOSED;
        CHECK((int64_t)(tail - atomic_load(&queue.header->head)) <= (int64_t)queue.limit);
        for (uint32_t i = 0; i < count; i++) {
            const sq_taken *one = (const sq_taken *)(taken + i * stride);
            CHECK(one->deliveries == 0);
            open_message(&queue, one, &m);
            CHECK(m.producer < t->producers && m.number < t->messages);
            CHECK(t->consumers > 1 ? m.number >= next[m.producer] : m.number == next[m.producer]);
            next[m.producer] = m.number + 1;
            CHECK(atomic_fetch_add(&t->seen[m.producer][m.number], 1) == 0);
        }
        atomic_fetch_add(&t->taken, count);
        if (count == 0) {
            CHECK(sq_check_cursors(&queue) == SQ_OK);
            sq_await_message(&queue, HANG_NS);
            CHECK(sq_now_ns() - start < HANG_NS);
        }
    }
    free(taken);
    close_handle(&queue, t);
}

typedef struct hand {
    void (*work)(void *);
    worker worker;
    pthread_t thread;
    pid_t process;
} hand;

static void *run_hand(void *argument) {
    hand *h = argument;
    h->work(&h->worker);
    return NULL;
}

static void start(hand *h, traffic *t, void (*work)(void *), uint32_t index) {
    h->work = work;
    h->worker = (worker){t, index};
    if (t->processes) {
        h->process = start_process(work, &h->worker);
    } else {
        CHECK(pthread_create(&h->thread, NULL, run_hand, h) == 0);
    }
}

static void finish(hand *h, const traffic *t) {
    if (t->processes) {
        expect_exit(h->process);
    } else {
        pthread_join(h->thread, NULL);
    }
}

static void run(traffic *t) {
    sq_queue queue;
    hand producers[PRODUCERS_MAX], consumers[CONSUMERS_MAX];
    sq_options options = options_of(t->mode, t->maxsize, t->maxsize > 0 ? 4 : 256);
    options.recovery_ms = 60000; /* a lost wake-up shall not be mended by a look for the dead */
    create_with(&queue, options);
    t->queue = &queue;
    for (uint32_t i = 0; i < t->consumers; i++) {
        start(&consumers[i], t, consume, i);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        start(&producers[i], t, produce, i);
    }
    if (t->closing) {
        while (atomic_load(&t->taken) < t->messages / 4) {
            usleep(100);
        }
        sq_shutdown(&queue, false);
    }
    for (uint32_t i = 0; i < t->producers; i++) {
        finish(&producers[i], t);
    }
    sq_shutdown(&queue, false);
    for (uint32_t i = 0; i < t->consumers; i++) {
        finish(&consumers[i], t);
    }
    for (uint32_t p = 0; p < t->producers; p++) {
        uint64_t accepted = atomic_load(&t->accepted[p]);
        CHECK(t->closing || accepted == t->messages);
        for (uint64_t number = 0; number < t->messages; number++) {
            CHECK(atomic_load(&t->seen[p][number]) == (number < accepted));
        }
    }
    CHECK(sq_size(&queue) == 0 && chunks_in_use(&queue) == 0);
    close_queue(&queue);
}

static void run_as(const traffic *wanted, uint32_t mode, uint64_t messages) {
    for (int processes = 0; processes <= WITH_PROCESSES; processes++) {
        traffic *t = shared_memory(sizeof *t);
        *t = *wanted;
        t->mode = mode;
        t->processes = processes;
        t->producers = mode & SQ_SINGLE_PRODUCER ? 1 : PRODUCERS_MAX;
        t->consumers = mode & SQ_SINGLE_CONSUMER ? 1 : CONSUMERS_MAX;
        t->messages = messages / t->producers;
        run(t);
        munmap(t, sizeof *t);
    }
}

static void every_kind_of_traffic(uint32_t mode) {
    const bodies *const kinds[] = {&INLINE_BODIES, &CHUNK_BODIES, &MIXED_BODIES};
    static const uint32_t batches[][2] = {{1, 1}, {1, 32}, {32, 1}, {7, 32}};
    for (unsigned kind = 0; kind < 3; kind++) {
        for (unsigned batch = 0; batch < 4; batch++) {
            static traffic t;
            t.kind = kinds[kind];
            t.put_batch = batches[batch][0];
            t.take_batch = batches[batch][1];
            run_as(&t, mode, MESSAGES);
        }
    }
}

static void traffic_mpmc(void) {
    every_kind_of_traffic(MPMC);
}
static void traffic_spmc(void) {
    every_kind_of_traffic(SPMC);
}
static void traffic_mpsc(void) {
    every_kind_of_traffic(MPSC);
}
static void traffic_spsc(void) {
    every_kind_of_traffic(SPSC);
}

static void traffic_through_a_tiny_queue(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (uint64_t maxsize = 1; maxsize <= 3; maxsize++) {
            static traffic t;
            t.kind = &MIXED_BODIES;
            t.put_batch = 5;
            t.take_batch = 2;
            t.maxsize = maxsize;
            run_as(&t, mode, MESSAGES / 6);
        }
    }
}

static void a_shutdown_during_traffic_loses_nothing(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (uint32_t batch = 1; batch <= 9; batch += 8) {
            static traffic t;
            t.kind = &MIXED_BODIES;
            t.put_batch = t.take_batch = batch;
            t.closing = true;
            run_as(&t, mode, MESSAGES);
        }
    }
}

int main(void) {
    static const test tests[] = {
        TEST(traffic_mpmc),
        TEST(traffic_spmc),
        TEST(traffic_mpsc),
        TEST(traffic_spsc),
        TEST(traffic_through_a_tiny_queue),
        TEST(a_shutdown_during_traffic_loses_nothing),
    };
    return RUN_TESTS(tests);
}
