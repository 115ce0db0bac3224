/* A handle that threads share as handle.h allows: one puts, or takes, at a time, under a lock as
 * Python's is; beside it others wait, look for the dead, shut down and leave. ThreadSanitizer
 * watches. */
#include "check.h"

#define MESSAGES (2000u * MANY)

static sq_queue producer, consumer;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool over;

static void *await_messages(void *unused) {
    (void)unused;
    while (!atomic_load(&over)) {
        sq_spin_message(&consumer, 50);
        sq_await_message(&consumer, 100000);
        sq_take_wakeup(&consumer);
    }
    return NULL;
}

static void *await_room(void *unused) {
    (void)unused;
    while (!atomic_load(&over)) {
        sq_spin_room(&producer, 50);
        sq_await_room(&producer, 100000);
    }
    return NULL;
}

static void *wake_up(void *unused) {
    (void)unused;
    while (!atomic_load(&over)) {
        sq_wakeup(&consumer);
        usleep(10);
    }
    return NULL;
}

static void *look_for_the_dead(void *unused) {
    uint32_t found;
    (void)unused;
    while (!atomic_load(&over)) {
        CHECK(sq_recover(&consumer, &found) == SQ_OK && found == 0);
        CHECK(sq_recover(&producer, &found) == SQ_OK && found == 0);
    }
    return NULL;
}

/* Two threads take turns. */
static _Atomic uint64_t put_so_far;

static void *put(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&one_at_a_time);
        uint64_t next = atomic_load(&put_so_far);
        sq_status status = next < MESSAGES ? put_value(&producer, next) : SQ_CLOSED;
        if (status == SQ_OK) {
            atomic_store(&put_so_far, next + 1);
        }
        pthread_mutex_unlock(&one_at_a_time);
        if (status == SQ_CLOSED) {
            return NULL;
        }
        CHECK(status == SQ_OK || status == SQ_FULL);
    }
}

static pthread_mutex_t one_takes = PTHREAD_MUTEX_INITIALIZER;
static uint64_t taken_so_far;

static void *take(void *unused) {
    (void)unused;
    for (;;) {
        uint64_t value;
        pthread_mutex_lock(&one_takes);
        sq_status status = take_value(&consumer, &value);
        if (status == SQ_OK) {
            CHECK(value == taken_so_far); /* in order, and never an old one again */
            taken_so_far++;
        }
        pthread_mutex_unlock(&one_takes);
        if (status == SQ_CLOSED) {
            return NULL;
        }
        CHECK(status == SQ_OK || status == SQ_EMPTY);
    }
}

/* Shut down when all is put, and give the producer up while others still wait with it. */
static void *shut_down_and_leave(void *unused) {
    (void)unused;
    while (atomic_load(&put_so_far) < MESSAGES) {
        usleep(100);
    }
    sq_shutdown(&producer, false);
    pthread_mutex_lock(&one_at_a_time); /* nobody puts from here on */
    sq_queue_leave(&producer);
    pthread_mutex_unlock(&one_at_a_time);
    return NULL;
}

static void share(uint32_t mode) {
    pthread_t threads[16];
    size_t n = 0;
    void *(*const work[])(void *) = {
        await_messages,
        await_messages,
        await_room,
        await_room,
        wake_up,
        look_for_the_dead,
        put,
        put,
        take,
        take,
        shut_down_and_leave,
    };
    create_with(&producer, options_of(mode, 0, 64));
    attach_here(&consumer, &producer);
    CHECK(sq_queue_enrol_producer(&producer) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(&consumer) == SQ_OK);
    atomic_store(&over, false);
    atomic_store(&put_so_far, 0);
    taken_so_far = 0;
    for (; n < sizeof work / sizeof *work; n++) {
        CHECK(pthread_create(&threads[n], NULL, work[n], NULL) == 0);
    }
    for (size_t i = n; i-- > 0;) {
        if (i == 5) { /* those that put, take and leave have ended; the others wait until told */
            atomic_store(&over, true);
        }
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(taken_so_far == MESSAGES);
    close_here(&consumer);
    sq_queue_unmap(&producer);
}

static void shared_mpmc(void) {
    share(MPMC);
}
static void shared_spmc(void) {
    share(SPMC);
}
static void shared_mpsc(void) {
    share(MPSC);
}
static void shared_spsc(void) {
    share(SPSC);
}

int main(void) {
    static const test tests[] = {
        TEST(shared_mpmc),
        TEST(shared_spmc),
        TEST(shared_mpsc),
        TEST(shared_spsc),
    };
    return RUN_TESTS(tests);
}
