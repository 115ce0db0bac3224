/* Deaths, each at a place where it hurts: what the dying process did until then is done by hand,
 * then it is killed, and the survivor must get everything, once, or flagged. */
#include "messages.h"
#include "process.h"

static sq_queue queue; /* the survivor's handle */

static void open_queue(uint32_t mode) {
    sq_options options = options_of(mode, 0, 64);
    CHECK(sq_queue_create(&queue, fresh_name(), &options) == SQ_OK);
}

/* Run `die` in a child with a handle of its own, which then is killed. */
static void die_with_handle(void *die) {
    sq_queue own;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    ((void (*)(sq_queue *))die)(&own);
}

static void kill_after(void (*die)(sq_queue *)) {
    run_and_kill(die_with_handle, (void *)die);
}

static void expect(uint64_t first, uint32_t n, uint32_t redelivered) {
    uint64_t value;
    for (uint32_t i = 0; i < n; i++) {
        message m;
        bool again = take_message(&queue, &m) > 0;
        CHECK(m.number == first + i);
        CHECK(again == (i < redelivered));
    }
    CHECK(take_value(&queue, &value) == SQ_EMPTY);
}

static void finish(void) {
    sq_recover(&queue, 0);
    CHECK(chunks_in_use(&queue) == 0);
    put_messages(&queue, 0, 100, 64, &CHUNK_BODIES); /* every slot is of use */
    expect(100, 64, 0);
    close_queue(&queue);
}

static void reserve_and_die(sq_queue *own) {
    put_messages(own, 0, 0, 1, &INLINE_BODIES);
    uint64_t tail = atomic_load(&own->header->tail);
    atomic_store(&own->self->put_intent, sq_intent(tail, 3));
    CHECK(atomic_compare_exchange_strong(&own->header->tail, &tail, tail + 3));
}

static void a_reservation(void) {
    open_queue(MPMC);
    kill_after(reserve_and_die);
    put_messages(&queue, 0, 1, 5, &INLINE_BODIES);
    expect(0, 6, 0);
    CHECK(sq_unfinished(&queue) == 6);
    finish();
}

static void claim_and_die(sq_queue *own) {
    uint64_t head = atomic_load(&own->header->head);
    atomic_store(&own->self->take_intent, sq_intent(head, 2));
    CHECK(atomic_compare_exchange_strong(&own->header->head, &head, head + 2));
}

static void a_claim_of(const bodies *kind) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 5, kind);
    kill_after(claim_and_die);
    sq_recover(&queue, 0);
    expect(0, 5, 2);
    finish();
}

static void intend_and_die(sq_queue *own) {
    atomic_store(&own->self->put_intent, sq_intent(atomic_load(&own->header->tail), 4));
    atomic_store(&own->self->take_intent, sq_intent(atomic_load(&own->header->head), 4));
}

static void intents_alone_change_nothing(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 3, &INLINE_BODIES);
    kill_after(intend_and_die);
    sq_recover(&queue, 0);
    expect(0, 3, 0);
    finish();
}

static void own_a_chunk_and_die(sq_queue *own) {
    uint32_t chunk;
    unsigned char *data;
    CHECK(sq_chunk_acquire(own, 5000, &chunk) == SQ_OK);
    CHECK(sq_external_acquire(own, 5 << 20, &chunk, &data) == SQ_OK);
}

static void chunks_that_were_never_put(void) {
    open_queue(MPMC);
    kill_after(own_a_chunk_and_die);
    CHECK(chunks_in_use(&queue) == 2);
    CHECK(sq_recover(&queue, 0) == 1);
    finish();
}

static void put_and_die(sq_queue *own) {
    CHECK(sq_queue_enrol_producer(own) == SQ_OK);
    put_messages(own, 0, 0, 20, &CHUNK_BODIES);
}

static void what_the_dead_had_put_stays_in(uint32_t mode) {
    open_queue(mode);
    kill_after(put_and_die);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK); /* the role is free again */
    expect(0, 20, 0);
    finish();
}

static void lease_and_die(sq_queue *own) {
    uint64_t space[SQ_TAKEN_WORDS];
    uint32_t count;
    CHECK(sq_queue_enrol_consumer(own) == SQ_OK);
    for (int taken = 0; taken < 3; taken++) {
        CHECK(sq_take(own, space, 1, &count) == SQ_OK);
    }
}

static void leases_in(uint32_t mode) {
    open_queue(mode);
    put_messages(&queue, 0, 0, 5, &CHUNK_BODIES);
    kill_after(lease_and_die);
    sq_recover(&queue, 0);
    CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
    expect(0, 5, 3);
    finish();
}

static void recover_and_die(sq_queue *own) {
    atomic_store(&own->header->recoverer, own->id);
}

static void a_recoverer(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 3, &INLINE_BODIES);
    kill_after(claim_and_die);
    kill_after(recover_and_die);
    CHECK(sq_recover(&queue, 0) == 2);
    expect(0, 3, 2);
    finish();
}

static void sleep_and_die(sq_queue *own) {
    sq_event_prepare(&own->header->not_empty);
}

static void a_sleeper(void) {
    open_queue(MPMC);
    kill_after(sleep_and_die);
    put_messages(&queue, 0, 0, 3, &INLINE_BODIES);
    CHECK((atomic_load(&queue.header->not_empty.word) & 1) == 0);
    expect(0, 3, 0);
    finish();
}

/* The dead one's intent is also a living one's, which lost the race for that position. */
static void a_stale_intent_of_the_living_only_delays(void) {
    open_queue(MPMC);
    kill_after(reserve_and_die);
    atomic_store(&queue.self->put_intent, sq_intent(1, 1));
    CHECK(sq_recover(&queue, 0) == 0);
    atomic_store(&queue.self->put_intent, 0);
    CHECK(sq_recover(&queue, 0) == 1);
    put_messages(&queue, 0, 1, 1, &INLINE_BODIES);
    expect(0, 2, 0);
    finish();
}

/* Another one is at it, and may have looked before the last death. */
static void a_recoverer_at_work_is_told_from_nobody_dead(void) {
    uint32_t found;
    sq_queue other;
    open_queue(MPMC);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    kill_after(reserve_and_die);
    atomic_store(&queue.header->recoverer, other.id);
    CHECK(!sq_try_recover(&queue, &found) && found == 0);
    atomic_store(&queue.header->recoverer, 0);
    CHECK(sq_try_recover(&queue, &found) && found == 1);
    CHECK(sq_try_recover(&queue, &found) && found == 0);
    close_queue(&other);
    close_queue(&queue);
}

/* That one, stopped where it stands, keeps nobody from seeing the end; it gets the messages. */
static void a_stale_intent_of_the_living_at_the_end(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 2, &INLINE_BODIES);
    kill_after(claim_and_die);
    sq_shutdown(&queue, false);
    sq_queue other;
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    atomic_store(&other.self->take_intent, sq_intent(0, 2));
    uint64_t value;
    CHECK(take_value(&queue, &value) == SQ_CLOSED);
    atomic_store(&other.self->take_intent, 0);
    for (uint64_t number = 0; number < 2; number++) {
        message m;
        CHECK(take_message(&other, &m) == 1 && m.number == number);
    }
    CHECK(take_value(&other, &value) == SQ_CLOSED);
    close_queue(&other);
    close_queue(&queue);
}

/* As if its pid had come to us meanwhile: it is told by the time it started. */
static void one_whose_pid_we_bear_now(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 3, &INLINE_BODIES);
    kill_after(claim_and_die);
    sq_participant *dead = sq_segment_participant(&queue.segment, 1);
    CHECK(sq_process_pid(atomic_load(&dead->identity)) != (uint32_t)getpid());
    atomic_store(&dead->identity, sq_process_identity() - (UINT64_C(1) << 22));
    CHECK(sq_recover(&queue, 0) == 1);
    expect(0, 3, 2);
    finish();
}

static void a_claim(void) {
    a_claim_of(&INLINE_BODIES);
}

static void a_claim_of_chunks(void) {
    a_claim_of(&CHUNK_BODIES);
}

static void what_the_dead_had_put_stays(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        what_the_dead_had_put_stays_in(mode);
    }
}

static void leases(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        leases_in(mode);
    }
}

int main(void) {
    static const test tests[] = {
        TEST(a_reservation),
        TEST(a_claim),
        TEST(a_claim_of_chunks),
        TEST(intents_alone_change_nothing),
        TEST(chunks_that_were_never_put),
        TEST(what_the_dead_had_put_stays),
        TEST(leases),
        TEST(a_recoverer),
        TEST(a_sleeper),
        TEST(a_recoverer_at_work_is_told_from_nobody_dead),
        TEST(a_stale_intent_of_the_living_only_delays),
        TEST(a_stale_intent_of_the_living_at_the_end),
        TEST(one_whose_pid_we_bear_now),
    };
    return RUN_TESTS(tests);
}
