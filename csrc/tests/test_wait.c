/* Sleeping and waking. No queue here looks for the dead within the time a test waits, so that a
 * lost wake-up is a failure and not a delay. */
#include "messages.h"

static sq_options patient_options(uint32_t mode, uint64_t maxsize) {
    sq_options options = options_of(mode, maxsize, 64);
    options.recovery_ms = 60000;
    return options;
}

static void put_waiting(sq_queue *queue, uint64_t value) {
    uint64_t start = sq_now_ns();
    while (put_value(queue, value) == SQ_FULL) {
        sq_await_room(queue, HANG_NS);
        CHECK(sq_now_ns() - start < HANG_NS);
    }
}

static uint64_t take_waiting(sq_queue *queue) {
    uint64_t value, start = sq_now_ns();
    while (take_value(queue, &value) == SQ_EMPTY) {
        sq_await_message(queue, HANG_NS);
        CHECK(sq_now_ns() - start < HANG_NS);
    }
    return value;
}

/* ---- back and forth, each side asleep in between ---- */

enum { ROUNDS = 2000 * MANY };

typedef struct side {
    sq_queue in, out;
    bool serves;
} side;

static void *play(void *argument) {
    side *s = argument;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        atomic_store(&s->in.spin_ns, round % 4 == 0 ? 50000 : 0); /* mostly sleep at once */
        if (s->serves) {
            put_waiting(&s->out, round);
        }
        CHECK(take_waiting(&s->in) == round);
        if (!s->serves) {
            put_waiting(&s->out, round);
        }
    }
    return NULL;
}

static void ping_pong_between_sleepers(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue there, back;
        side left = {.serves = true}, right = {.serves = false};
        pthread_t thread;
        create_with(&there, patient_options(mode, 1));
        create_with(&back, patient_options(mode, 1));
        attach_here(&left.out, &there);
        attach_here(&left.in, &back);
        attach_here(&right.out, &back);
        attach_here(&right.in, &there);
        CHECK(pthread_create(&thread, NULL, play, &right) == 0);
        play(&left);
        pthread_join(thread, NULL);
        close_here(&left.in);
        close_here(&left.out);
        close_here(&right.in);
        close_here(&right.out);
        close_queue(&there);
        close_queue(&back);
    }
}

/* ---- rounds in which every sleeper gets exactly one message ---- */

enum { HANDS = 3, MEETINGS = 1500 * MANY };

typedef struct hand {
    sq_queue queue;
    pthread_barrier_t *meeting;
    uint64_t taken;
    bool puts;
} hand;

static void *put_or_take_one_a_round(void *argument) {
    hand *h = argument;
    for (uint64_t round = 0; round < MEETINGS; round++) {
        atomic_store(&h->queue.spin_ns, 0);
        if (h->puts) {
            put_waiting(&h->queue, round);
        } else {
            h->taken += take_waiting(&h->queue);
        }
        pthread_barrier_wait(h->meeting);
    }
    return NULL;
}

static void as_many_wake_as_there_are_messages(void) {
    for (uint64_t maxsize = 0; maxsize <= 1; maxsize++) {
        sq_queue queue;
        hand hands[2 * HANDS];
        pthread_t threads[2 * HANDS];
        pthread_barrier_t meeting;
        uint64_t taken = 0;
        create_with(&queue, patient_options(MPMC, maxsize));
        pthread_barrier_init(&meeting, NULL, 2 * HANDS);
        for (int i = 0; i < 2 * HANDS; i++) {
            hands[i] = (hand){.meeting = &meeting, .puts = i < HANDS};
            attach_here(&hands[i].queue, &queue);
            CHECK(pthread_create(&threads[i], NULL, put_or_take_one_a_round, &hands[i]) == 0);
        }
        for (int i = 0; i < 2 * HANDS; i++) {
            pthread_join(threads[i], NULL);
            taken += hands[i].taken;
            close_here(&hands[i].queue);
        }
        CHECK(taken == (uint64_t)HANDS * MEETINGS * (MEETINGS - 1) / 2);
        pthread_barrier_destroy(&meeting);
        close_queue(&queue);
    }
}

/* ---- one who sleeps, and the event that wakes it ---- */

typedef struct sleeper {
    sq_queue queue;
    pthread_t thread;
    void (*wait)(sq_queue *queue);
} sleeper;

static void *fall_asleep(void *argument) {
    sleeper *s = argument;
    atomic_store(&s->queue.spin_ns, 0);
    s->wait(&s->queue);
    return NULL;
}

static void start_sleeper(sleeper *s, const sq_queue *queue, void (*wait)(sq_queue *),
                          const sq_event *event) {
    uint32_t word = atomic_load(&event->word);
    s->wait = wait;
    attach_here(&s->queue, queue);
    CHECK(pthread_create(&s->thread, NULL, fall_asleep, s) == 0);
    while ((atomic_load(&event->word) & 1) == 0 && atomic_load(&event->word) == word) {
        usleep(100);
    }
    usleep(20000); /* likely asleep by now; either way it must not be missed */
}

static void expect_awake(sleeper *s) {
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += HANG_NS / 1000000000;
    CHECK(pthread_timedjoin_np(s->thread, NULL, &limit) == 0);
    close_here(&s->queue);
}

static void wait_for_message(sq_queue *queue) {
    take_waiting(queue);
}
static void wait_for_end(sq_queue *queue) {
    uint64_t value;
    while (take_value(queue, &value) != SQ_CLOSED) {
        sq_await_message(queue, 2 * HANG_NS);
    }
}
static void wait_for_room(sq_queue *queue) {
    put_waiting(queue, 1);
}
static void wait_for_room_or_end(sq_queue *queue) {
    while (put_value(queue, 1) == SQ_FULL) {
        sq_await_room(queue, 2 * HANG_NS);
    }
}
static void wait_for_large_chunk(sq_queue *queue) {
    uint32_t chunk;
    while (sq_chunk_acquire(queue, 1 << 20, &chunk) != SQ_OK) {
        sq_await_chunk(queue, 1 << 20, 2 * HANG_NS);
    }
    sq_chunk_release(queue, chunk);
}
static void wait_for_small_chunk(sq_queue *queue) {
    uint32_t chunk;
    while (sq_chunk_acquire(queue, 256 << 10, &chunk) != SQ_OK) {
        sq_await_chunk(queue, 256 << 10, 2 * HANG_NS);
    }
    sq_chunk_release(queue, chunk);
}
static void wait_for_the_work_done(sq_queue *queue) {
    while (sq_unfinished(queue) != 0) {
        sq_await_done(queue, 2 * HANG_NS);
    }
}

static void each_event_wakes_who_waits_for_it(void) {
    sq_queue queue;
    sleeper one, two;
    uint64_t value;
    create_with(&queue, patient_options(MPMC, 2));

    start_sleeper(&one, &queue, wait_for_message, &queue.header->not_empty);
    start_sleeper(&two, &queue, wait_for_message, &queue.header->not_empty);
    CHECK(put_value(&queue, 1) == SQ_OK && put_value(&queue, 2) == SQ_OK);
    expect_awake(&one);
    expect_awake(&two);

    CHECK(sq_task_done(&queue) == SQ_OK);
    start_sleeper(&one, &queue, wait_for_the_work_done, &queue.header->all_done);
    CHECK(sq_task_done(&queue) == SQ_OK);
    expect_awake(&one);

    CHECK(put_value(&queue, 1) == SQ_OK && put_value(&queue, 2) == SQ_OK);
    start_sleeper(&one, &queue, wait_for_room, &queue.header->not_full);
    CHECK(take_value(&queue, &value) == SQ_OK);
    expect_awake(&one);

    start_sleeper(&one, &queue, wait_for_room_or_end, &queue.header->not_full);
    sq_shutdown(&queue, false);
    expect_awake(&one);
    CHECK(take_value(&queue, &value) == SQ_OK && take_value(&queue, &value) == SQ_OK);
    close_queue(&queue);

    create_with(&queue, patient_options(MPMC, 2));
    start_sleeper(&one, &queue, wait_for_end, &queue.header->not_empty);
    sq_shutdown(&queue, true);
    expect_awake(&one);
    close_queue(&queue);
}

/* ---- sq_wakeup ---- */

static void wait_for_wakeup(sq_queue *queue) {
    while (!sq_take_wakeup(queue)) {
        sq_await_message(queue, 2 * HANG_NS);
    }
}
static void wait_for_copy_or_wakeup(sq_queue *queue) {
    while (!sq_take_wakeup(queue)) {
        sq_await_copy(queue, 2 * HANG_NS);
    }
}

static void a_wakeup_is_for_one_consumer_of_one_handle(void) {
    sq_queue queue;
    sleeper woken, other;
    create_with(&queue, patient_options(MPMC, 0));
    start_sleeper(&other, &queue, wait_for_message, &queue.header->not_empty);
    start_sleeper(&woken, &queue, wait_for_wakeup, &queue.header->not_empty);
    sq_wakeup(&woken.queue);
    expect_awake(&woken);
    CHECK(put_value(&queue, 1) == SQ_OK);
    expect_awake(&other);
    /* nobody waits: it is kept, and two are one */
    sq_wakeup(&queue);
    sq_wakeup(&queue);
    sq_await_message(&queue, 2 * HANG_NS);
    CHECK(sq_take_wakeup(&queue) && !sq_take_wakeup(&queue));
    close_queue(&queue);
}

static void a_wakeup_ends_the_wait_for_a_copy(void) {
    sq_queue queue;
    sleeper one;
    uint32_t copies = 0;
    uint64_t space[SQ_TAKEN_WORDS];
    uint32_t count;
    create_with(&queue, patient_options(MPMC, 0));
    for (sq_status status = SQ_OK; status == SQ_OK; copies++) {
        CHECK(put_value(&queue, copies) == SQ_OK);
        status = sq_claim(&queue, space, 1, &count);
        CHECK(status == SQ_OK || status == SQ_NO_CHUNK);
    }
    start_sleeper(&one, &queue, wait_for_copy_or_wakeup, &queue.header->chunk_free);
    sq_wakeup(&one.queue);
    expect_awake(&one);
    close_queue(&queue);
}

/* The waker comes at any moment of the waiter's way to sleep. */
enum { WAKEUPS = 20000 * MANY };

typedef struct wakeups {
    sq_queue *queue;
    _Atomic uint64_t taken;
} wakeups;

static void *take_wakeups(void *argument) {
    wakeups *w = argument;
    for (uint64_t i = 0; i < WAKEUPS; i++) {
        atomic_store(&w->queue->spin_ns, 0);
        wait_for_wakeup(w->queue);
        atomic_store(&w->taken, i + 1);
    }
    return NULL;
}

static void no_wakeup_is_missed(void) {
    sq_queue queue;
    pthread_t thread;
    create_with(&queue, patient_options(MPMC, 0));
    wakeups w = {.queue = &queue};
    CHECK(pthread_create(&thread, NULL, take_wakeups, &w) == 0);
    for (uint64_t i = 0; i < WAKEUPS; i++) {
        for (uint64_t pause = i % 512; pause > 0; pause--) {
            sq_pause();
        }
        sq_wakeup(&queue);
        uint64_t start = sq_now_ns();
        while (atomic_load(&w.taken) <= i) {
            CHECK(sq_now_ns() - start < HANG_NS / 2);
        }
    }
    pthread_join(thread, NULL);
    close_queue(&queue);
}

/* Waiters for room and for chunks of different sizes: a chunk that comes free is for one of them.
 */
static void a_free_chunk_wakes_the_one_it_fits(void) {
    sq_queue queue;
    sleeper room, large, small;
    uint64_t value;
    uint32_t chunks[16], n = 0;
    create_with(&queue, patient_options(MPMC, 1));
    while (sq_chunk_acquire(&queue, 256 << 10, &chunks[n]) == SQ_OK) {
        n++;
    }
    CHECK(put_value(&queue, 1) == SQ_OK);
    start_sleeper(&room, &queue, wait_for_room, &queue.header->not_full);
    start_sleeper(&large, &queue, wait_for_large_chunk, &queue.header->chunk_free);
    start_sleeper(&small, &queue, wait_for_small_chunk, &queue.header->chunk_free);
    sq_chunk_release(&queue, chunks[0]);
    expect_awake(&small);
    CHECK(take_value(&queue, &value) == SQ_OK);
    expect_awake(&room);
    for (uint32_t i = 1; i < n; i++) {
        sq_chunk_release(&queue, chunks[i]);
    }
    expect_awake(&large);
    close_queue(&queue);
}

/* Two positions in flight at once. What is settled at the second wakes nobody of use while the
 * first is not: settling the first must wake for both. */
static void a_hole_filled_wakes_for_what_is_behind_it(void) {
    sq_queue queue;
    sleeper sleepers[3];
    create_with(&queue, patient_options(MPMC, 0));
    for (int i = 0; i < 3; i++) {
        start_sleeper(&sleepers[i], &queue, wait_for_message, &queue.header->not_empty);
    }
    /* by hand, the first step of a put: reserve a position; another participant puts behind it */
    sq_queue other;
    attach_here(&other, &queue);
    CHECK(atomic_fetch_add(&queue.header->tail, 1) == 0);
    CHECK(put_value(&other, 2) == SQ_OK && put_value(&other, 3) == SQ_OK);
    usleep(50000); /* whoever was woken found the hole and sleeps again */
    /* and the rest of that put, by a put whose first step finds the tail where it was */
    atomic_store(&queue.header->tail, 0);
    CHECK(put_value(&queue, 1) == SQ_OK);
    atomic_store(&queue.header->tail, 3);
    for (int i = 0; i < 3; i++) {
        expect_awake(&sleepers[i]);
    }
    close_here(&other);
    close_queue(&queue);
}

static void nobody_is_woken_for_nothing(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue;
        message m;
        create_with(&queue, patient_options(mode, 0));
        enrol(&queue);
        for (uint64_t i = 0; i < 200; i++) {
            CHECK(put_messages(&queue, 0, i, 1, &MIXED_BODIES) == 1);
            CHECK(take_message(&queue, &m) == 0);
            CHECK(sq_task_done(&queue) == SQ_OK);
        }
        /* a system call is made after a wake-up was counted in the event's word, and only then */
        CHECK(atomic_load(&queue.header->not_empty.word) == 0);
        CHECK(atomic_load(&queue.header->not_full.word) == 0);
        CHECK(atomic_load(&queue.header->chunk_free.word) == 0);
        CHECK(atomic_load(&queue.header->all_done.word) == 0);
        close_queue(&queue);
    }
}

int main(void) {
    static const test tests[] = {
        TEST(ping_pong_between_sleepers),         TEST(as_many_wake_as_there_are_messages),
        TEST(each_event_wakes_who_waits_for_it),  TEST(a_wakeup_is_for_one_consumer_of_one_handle),
        TEST(a_wakeup_ends_the_wait_for_a_copy),  TEST(no_wakeup_is_missed),
        TEST(a_free_chunk_wakes_the_one_it_fits), TEST(a_hole_filled_wakes_for_what_is_behind_it),
        TEST(nobody_is_woken_for_nothing),
    };
    return RUN_TESTS(tests);
}
