/* Every operation of a participant, for the tests that hit it at each of its writes: what it does,
 * and what has to be so when it is over. */
#ifndef SQ_TESTS_OPERATIONS_H
#define SQ_TESTS_OPERATIONS_H

#include "every_write.h"
#include "messages.h"

enum { WAITING = 5, CAPACITY = 16, SURVIVOR = 0, VICTIM = 1 };

typedef struct operation {
    const char *name;
    void (*before)(sq_queue *own); /* by the victim, before it may die */
    void (*run)(sq_queue *own);
    const bodies *kind;
    bool may_consume; /* messages that wait may be gone afterwards */
    bool answers;     /* one may have been answered */
} operation;

static sq_queue queue; /* the survivor's */
static uint64_t *points;
static const operation *doing;
static int hit_by = SIGKILL;

/* ---- operations ---- */

static uint64_t space[SQ_TAKEN_WORDS * 8];
static uint32_t lent;

static void put_one(sq_queue *own) {
    put_messages(own, VICTIM, 1, 1, doing->kind); /* number 5 would be external */
}
static void put_external(sq_queue *own) {
    put_messages(own, VICTIM, 5, 1, &(bodies){"external", 1000, 2000, true});
}
static void put_batch(sq_queue *own) {
    put_messages(own, VICTIM, 3, 3, doing->kind);
}
static void put_pinned(sq_queue *own) {
    message m;
    uint32_t accepted;
    write_message(&m, VICTIM, 1, &CHUNK_BODIES);
    sq_item item = item_of(own, &m, &CHUNK_BODIES);
    lent = item.chunk;
    sq_chunk_pin(own, item.chunk);
    CHECK(sq_put(own, &item, 1, &accepted) == SQ_OK);
}
static void unpin(sq_queue *own) {
    sq_chunk_unpin(own, lent);
}
static void acquire_and_release(sq_queue *own) {
    uint32_t chunk;
    CHECK(sq_chunk_acquire(own, 3000, &chunk) == SQ_OK);
    sq_chunk_release(own, chunk);
}
static void take_one(sq_queue *own) {
    message m;
    take_message(own, &m);
}
static void take_batch(sq_queue *own) {
    uint32_t count;
    CHECK(sq_take(own, space, 3, &count) == SQ_OK && count == 3);
    for (uint32_t i = 0; i < count; i++) {
        message m;
        open_message(own, (sq_taken *)((unsigned char *)space + i * sq_taken_stride(own)), &m);
    }
}
static void claim_some(sq_queue *own) {
    uint32_t count;
    CHECK(sq_claim(own, space, 3, &count) == SQ_OK && count == 3);
}
static void release_claims(sq_queue *own) {
    for (uint32_t i = 0; i < 3; i++) {
        sq_taken *taken = (sq_taken *)((unsigned char *)space + i * sq_taken_stride(own));
        sq_chunk_release(own, taken->chunk);
    }
}
static void return_claims(sq_queue *own) {
    for (uint32_t i = 0; i < 3; i++) {
        sq_taken *taken = (sq_taken *)((unsigned char *)space + i * sq_taken_stride(own));
        sq_lease_return(own, taken->chunk);
    }
}
static void acknowledge_claims(sq_queue *own) {
    for (uint32_t i = 0; i < 3; i++) {
        sq_taken *taken = (sq_taken *)((unsigned char *)space + i * sq_taken_stride(own));
        sq_lease_acknowledge(own, taken->chunk);
    }
}
static void claim_and_return(sq_queue *own) {
    claim_some(own);
    return_claims(own);
}
static void answer(sq_queue *own) {
    CHECK(sq_task_done(own) == SQ_OK);
}
static void shut_down(sq_queue *own) {
    sq_shutdown(own, false);
}
static void leave(sq_queue *own) {
    sq_queue_leave(own);
}
static void claim_and_leave(sq_queue *own) {
    claim_some(own);
    sq_queue_leave(own);
}
static void attach(sq_queue *own) {
    (void)own;
    sq_queue other;
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
}
static void recover(sq_queue *own) {
    recover_now(own);
}
static void sleep_and_wake(sq_queue *own) {
    sq_event_prepare(&own->header->not_empty);
    sq_event_sleep(&own->header->not_empty, 0, 1000);
    sq_wake_all(own);
}
static void nothing(sq_queue *own) {
    (void)own;
}

/* A third one that died half-way through a put, and a fourth half-way through a claim: the
 * operation is to settle them, or to pass them by. */
static void die_putting(void *unused) {
    (void)unused;
    sq_queue own;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    sq_queue_enrol_producer(&own);
    if (own.producing) {
        every_write_arm(own.single_producer ? 20 : 40, SIGKILL);
        put_messages(&own, 2, 1, 3, &CHUNK_BODIES);
    }
}
static void die_claiming(void *unused) {
    (void)unused;
    sq_queue own;
    uint32_t count;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    sq_queue_enrol_consumer(&own);
    if (own.consuming) {
        every_write_arm(30, SIGKILL);
        sq_claim(&own, space, 3, &count);
    }
}
static void others_die(sq_queue *own) {
    (void)own;
    run_and_kill(die_putting, NULL);
    run_and_kill(die_claiming, NULL);
}

/* ---- around one hit ---- */

static bool consumes(void) {
    return doing->run == take_one || doing->run == take_batch || doing->run == claim_some ||
           doing->before == claim_and_return || doing->run == release_claims ||
           doing->run == return_claims || doing->run == acknowledge_claims ||
           doing->run == claim_and_leave;
}

static bool produces(void) {
    return doing->run == put_one || doing->run == put_external || doing->run == put_batch ||
           doing->run == put_pinned || doing->run == unpin;
}

/* The victim's life: it ends by a signal, at the point that is armed or at the end. */
static void live(void *hit_at) {
    sq_queue own;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    if (produces()) {
        CHECK(sq_queue_enrol_producer(&own) == SQ_OK);
    }
    if (consumes()) {
        CHECK(sq_queue_enrol_consumer(&own) == SQ_OK);
    }
    doing->before(&own);
    every_write_arm(*(uint64_t *)hit_at, hit_by);
    doing->run(&own);
    *points = every_write_count();
}

static uint32_t drain(uint64_t *of_victim) {
    uint64_t next[3] = {0, 0, 0};
    uint32_t of_survivor = 0;
    uint64_t value[SQ_TAKEN_WORDS];
    for (;;) {
        uint32_t count;
        sq_status status = sq_take(&queue, value, 1, &count);
        if (count == 0) {
            CHECK(status == SQ_EMPTY || (status == SQ_CLOSED && doing->run == shut_down));
            return of_survivor;
        }
        message m;
        open_message(&queue, (sq_taken *)value, &m);
        CHECK(m.producer <= 2 && m.number >= next[m.producer]); /* in order, and once */
        next[m.producer] = m.number + 1;
        of_survivor += m.producer == SURVIVOR;
        *of_victim += m.producer != SURVIVOR;
    }
}

static void all_is_free(void) {
    CHECK(chunks_in_use(&queue) == 0);
    CHECK(sq_usage_of(&queue).slots_held == 0);
    for (uint32_t turn = 0; turn < 2 && doing->run != shut_down; turn++) {
        uint64_t value;
        uint32_t n = 0;
        while (put_value(&queue, n) == SQ_OK) {
            n++;
        }
        CHECK(n == CAPACITY);
        while (take_value(&queue, &value) == SQ_OK) {
            n--;
        }
        CHECK(n == 0);
    }
}

static const operation operations[] = {
    {"put inline", nothing, put_one, &INLINE_BODIES, false, false},
    {"put chunk", nothing, put_one, &CHUNK_BODIES, false, false},
    {"put external", nothing, put_external, &MIXED_BODIES, false, false},
    {"put batch", nothing, put_batch, &MIXED_BODIES, false, false},
    {"put pinned", nothing, put_pinned, &CHUNK_BODIES, false, false},
    {"unpin", put_pinned, unpin, &CHUNK_BODIES, false, false},
    {"acquire and release", nothing, acquire_and_release, NULL, false, false},
    {"take inline", nothing, take_one, &INLINE_BODIES, true, false},
    {"take chunk", nothing, take_one, &CHUNK_BODIES, true, false},
    {"take batch", nothing, take_batch, &MIXED_BODIES, true, false},
    {"take again", claim_and_return, take_one, &MIXED_BODIES, true, false},
    {"claim inline", nothing, claim_some, &INLINE_BODIES, false, false},
    {"claim mixed", nothing, claim_some, &MIXED_BODIES, false, false},
    {"release", claim_some, release_claims, &MIXED_BODIES, true, false},
    {"acknowledge", claim_some, acknowledge_claims, &MIXED_BODIES, true, false},
    {"return", claim_some, return_claims, &MIXED_BODIES, false, false},
    {"answer", nothing, answer, &INLINE_BODIES, false, true},
    {"shut down", nothing, shut_down, &MIXED_BODIES, false, false},
    {"leave", nothing, leave, &MIXED_BODIES, false, false},
    {"claim and leave", nothing, claim_and_leave, &MIXED_BODIES, false, false},
    {"attach", nothing, attach, &INLINE_BODIES, false, false},
    {"recover", others_die, recover, &MIXED_BODIES, false, false},
    {"put past the dead", others_die, put_batch, &MIXED_BODIES, false, false},
    {"take past the dead", others_die, take_one, &MIXED_BODIES, true, false},
    {"sleep and wake", nothing, sleep_and_wake, NULL, false, false},
};

/* What waits before the victim is hit, and roles such that it can do its work. */
static void prepare(uint32_t mode) {
    create_with(&queue, options_of(mode, 0, CAPACITY));
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK);
    if (doing->kind != NULL) {
        put_messages(&queue, SURVIVOR, 3, WAITING, doing->kind);
    }
    if (produces() || doing->before == others_die) { /* the role is to be free */
        uint32_t self = queue.id;
        atomic_compare_exchange_strong(&queue.header->producer, &self, 0);
    }
}

/* Beside what waited before, the survivor has put `more` and taken `taken` messages, and taken
 * `early` of the victim's; the victim has gone. */
static void settle_up(uint32_t more, uint32_t taken, uint32_t early) {
    recover_now(&queue);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);

    uint64_t of_victim = early;
    uint32_t of_survivor = taken + drain(&of_victim);
    uint32_t expected = (doing->kind != NULL ? WAITING : 0) + more;
    CHECK(of_survivor == expected || (doing->may_consume && of_survivor < expected));
    uint64_t unfinished = sq_unfinished(&queue);
    CHECK(unfinished == expected + of_victim ||
          (doing->answers && unfinished + 1 == expected + of_victim));
    all_is_free();
    sq_queue_leave(&queue);
    sq_queue_unmap(&queue);
    CHECK(count_files(queue.file_name, false) == 0);
}

/* Run `once` for every point of every operation: first without a hit, which counts the points. */
static void at_every_point(uint32_t mode, const char *what, void (*once)(uint32_t, uint64_t)) {
    points = shared_memory(sizeof *points);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        doing = &operations[i];
        *points = 0;
        once(mode, 0);
        uint64_t last = *points; /* what others do after a hit may change how many follow */
        CHECK(last > 0);
        for (uint64_t hit_at = 1; hit_at <= last; hit_at++) {
            once(mode, hit_at);
        }
        printf("   %s %s: %s at each of %u points\n", mode_name(mode), doing->name, what,
               (unsigned)last);
    }
}

#endif
