/* Deaths, each at a place where it hurts: what the dying process did until then is done by hand,
 * then it is killed, and the survivor must get everything, once, or flagged. */
#include "messages.h"

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
    recover_now(&queue);
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
    recover_now(&queue);
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
    recover_now(&queue);
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
    CHECK(recover_now(&queue) == 1);
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
    recover_now(&queue);
    CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
    expect(0, 5, 3);
    finish();
}

static void recover_and_die(sq_queue *own) {
    CHECK(sq_lock_try(own->segment.fd, SQ_LOCK_RECOVERY, SQ_LOCK_EXCLUSIVE) == SQ_OK);
    atomic_store(&own->header->recoverer, (uint32_t)getpid());
}

static void a_recoverer(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 3, &INLINE_BODIES);
    kill_after(claim_and_die);
    kill_after(recover_and_die);
    CHECK(atomic_load(&queue.header->recoverer) != 0 && sq_held_up_by(&queue, false).pid == 0);
    CHECK(recover_now(&queue) == 2);
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
    uint32_t found;
    CHECK(sq_recover(&queue, &found) == SQ_BUSY && found == 0);
    atomic_store(&queue.self->put_intent, 0);
    CHECK(recover_now(&queue) == 1);
    put_messages(&queue, 0, 1, 1, &INLINE_BODIES);
    expect(0, 2, 0);
    finish();
}

static void be_recoverer(const sq_queue *other) {
    CHECK(sq_lock_try(other->segment.fd, SQ_LOCK_RECOVERY, SQ_LOCK_EXCLUSIVE) == SQ_OK);
}

static void be_recoverer_no_more(const sq_queue *other) {
    sq_lock_drop(other->segment.fd, SQ_LOCK_RECOVERY);
}

/* Another participant is recovering, and may have looked before the last death. */
static void a_recoverer_at_work_is_told_from_nobody_dead(void) {
    uint32_t found;
    sq_queue other;
    open_queue(MPMC);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    be_recoverer(&other);
    CHECK(sq_recover(&queue, &found) == SQ_OK && found == 0);
    kill_after(reserve_and_die);
    CHECK(sq_recover(&queue, &found) == SQ_BUSY && found == 0);
    be_recoverer_no_more(&other);
    CHECK(sq_recover(&queue, &found) == SQ_OK && found == 1);
    CHECK(sq_recover(&queue, &found) == SQ_OK && found == 0);
    close_queue(&other);
    close_queue(&queue);
}

/* While another one is settling the dead, a drained queue has not ended: a message may come back.
 */
static void no_end_while_another_recovers(void) {
    uint64_t value;
    sq_queue other;
    open_queue(MPMC);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    put_messages(&queue, 0, 0, 2, &INLINE_BODIES);
    kill_after(claim_and_die);
    sq_shutdown(&queue, false);
    be_recoverer(&other);
    CHECK(take_value(&queue, &value) == SQ_EMPTY);
    CHECK(!sq_spin_message(&queue, 1)); /* and whoever waits does not spin */
    sq_await_message(&queue, 1);
    CHECK(take_value(&queue, &value) == SQ_EMPTY);
    be_recoverer_no_more(&other);
    for (uint64_t number = 0; number < 2; number++) {
        message m;
        CHECK(take_message(&queue, &m) == 1 && m.number == number);
    }
    CHECK(take_value(&queue, &value) == SQ_CLOSED);
    close_queue(&other);
    close_queue(&queue);
}

/* Nor while a living participant's intent covers what a dead one held: its owner shows in a moment.
 */
static void no_end_while_an_intent_of_the_living_is_stale(void) {
    open_queue(MPMC);
    put_messages(&queue, 0, 0, 2, &INLINE_BODIES);
    kill_after(claim_and_die);
    sq_shutdown(&queue, false);
    sq_queue other;
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    atomic_store(&other.self->take_intent, sq_intent(0, 2));
    uint64_t value;
    CHECK(take_value(&queue, &value) == SQ_EMPTY);
    atomic_store(&other.self->take_intent, 0);
    for (uint64_t number = 0; number < 2; number++) {
        message m;
        CHECK(take_message(&queue, &m) == 1 && m.number == number);
    }
    CHECK(take_value(&other, &value) == SQ_CLOSED);
    close_queue(&other);
    close_queue(&queue);
}

/* A dead producer's chunk, and then its recoverer's death half-way: no chunk is left to nobody. The
 * first producer dies between the commit of its slot and the move of the tail. */
static void write_and_die(sq_queue *own) {
    CHECK(sq_queue_enrol_producer(own) == SQ_OK);
    uint64_t tail = atomic_load(&own->header->tail);
    message m;
    write_message(&m, 0, 7, &CHUNK_BODIES);
    sq_item item = item_of(own, &m, &CHUNK_BODIES);
    sq_slot *slot = sq_segment_slot(&own->segment, tail);
    memcpy(slot->body, &item.chunk, sizeof item.chunk);
    slot->storage = SQ_IN_CHUNK;
    atomic_store(&sq_chunk_at(own, item.chunk)->place, tail + 1);
    atomic_store(&slot->sequence, sq_sequence(own, tail, SQ_COMMITTED));
}

static void a_producer_and_then_its_recoverer(void) {
    open_queue(SPMC);
    kill_after(write_and_die);
    kill_after(recover_and_die);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK); /* which settles both */
    CHECK(put_value(&queue, 1) == SQ_OK);
    uint64_t value;
    CHECK(take_value(&queue, &value) == SQ_OK && value == 1);
    finish();
}

static void acquire_and_die(sq_queue *own) {
    uint32_t chunk;
    CHECK(sq_queue_enrol_producer(own) == SQ_OK);
    CHECK(put_value(own, 1) == SQ_OK); /* where the one before had written its slot */
    message m;
    CHECK(sq_chunk_acquire(own, write_message(&m, 0, 7, &CHUNK_BODIES), &chunk) == SQ_OK);
}

/* A chunk's next owner dies before it gave it a place: that of its former message is not taken for
 * it. */
static void a_chunk_with_a_former_place(void) {
    open_queue(SPMC);
    kill_after(write_and_die);
    CHECK(recover_now(&queue) == 1);
    kill_after(acquire_and_die);
    CHECK(recover_now(&queue) == 1);
    uint64_t value;
    CHECK(take_value(&queue, &value) == SQ_OK && value == 1);
    CHECK(sq_queue_enrol_producer(&queue) == SQ_OK);
    finish();
}

/* Settling a chunk changes nothing once it is somebody else's: a consumer may have leased it from
 * its slot, and another producer put it again, since its holder was looked at. */
static void a_chunk_that_changed_hands(void) {
    sq_queue other;
    message m;
    open_queue(MPMC);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    write_message(&m, 0, 1, &CHUNK_BODIES);
    sq_item item = item_of(&other, &m, &CHUNK_BODIES);
    sq_chunk *entry = sq_chunk_at(&other, item.chunk);
    uint32_t accepted;
    CHECK(sq_put(&other, &item, 1, &accepted) == SQ_OK);
    uint64_t word = atomic_load(&entry->word), place = atomic_load(&entry->place);
    sq_chunk_settle(&queue, item.chunk, other.id + 1); /* one that had it before */
    CHECK(atomic_load(&entry->word) == word && atomic_load(&entry->place) == place);
    expect(1, 1, 0);
    close_queue(&other);
    finish();
}

/* The next participant in a dead one's entry is another one, whatever its pid. */
static void the_next_in_an_entry_is_another_one(void) {
    sq_queue other;
    open_queue(MPMC);
    kill_after(reserve_and_die);
    uint64_t dead = atomic_load(&sq_entry_at(&queue, 1)->identity);
    CHECK(recover_now(&queue) == 1);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK && other.id == 2);
    uint64_t next = atomic_load(&other.self->identity);
    CHECK(sq_identity_pid(next) == (uint32_t)getpid() &&
          next >> SQ_PID_BITS != dead >> SQ_PID_BITS);
    CHECK(recover_now(&queue) == 0);
    close_queue(&other);
    expect(0, 1, 0);
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
        TEST(no_end_while_another_recovers),
        TEST(no_end_while_an_intent_of_the_living_is_stale),
        TEST(a_producer_and_then_its_recoverer),
        TEST(a_chunk_with_a_former_place),
        TEST(a_chunk_that_changed_hands),
        TEST(the_next_in_an_entry_is_another_one),
    };
    return RUN_TESTS(tests);
}
