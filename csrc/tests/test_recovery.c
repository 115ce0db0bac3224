/* Deaths, each at a place where it hurts: what the dying process did until then is done by hand,
 * then it is killed, and the survivor must get everything, once, or flagged. */
#include "check.h"

static sq_queue queue; /* the survivor's handle */

static void open_queue(uint32_t mode) {
    sq_options options = options_of(mode, 0, 64);
    CHECK(sq_queue_create(&queue, fresh_name(), &options) == SQ_OK);
}

/* Run `die` in a child with a handle of its own, which then is killed. */
static void kill_after(void (*die)(sq_queue *)) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        sq_queue own;
        CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
        die(&own);
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void expect(uint64_t first, uint32_t n, uint32_t redelivered) {
    uint64_t space[SQ_TAKEN_WORDS];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t count = 0;
        uint64_t start = sq_now_ns();
        while (sq_take(&queue, space, 1, &count) == SQ_EMPTY) {
            sq_await_message(&queue, 1000000000);
            CHECK(sq_now_ns() - start < 5000000000u);
        }
        message m = open_message(&queue, (sq_taken *)space);
        CHECK(m.number == first + i);
        CHECK((((sq_taken *)space)->deliveries > 0) == (i < redelivered));
    }
    uint32_t count;
    CHECK(sq_take(&queue, space, 1, &count) == SQ_EMPTY);
}

static void finish(void) {
    sq_recover(&queue, 0);
    CHECK(chunks_in_use(&queue) == 0);
    put_messages(&queue, 0, 100, 64, 1900); /* every slot is of use */
    expect(100, 64, 0);
    leave_and_unmap(&queue);
}

static void reserve_and_die(sq_queue *own) {
    put_messages(own, 0, 0, 1, 0);
    uint64_t tail = atomic_load(&own->header->tail);
    atomic_store(&own->self->put_intent, sq_intent(tail, 3));
    CHECK(atomic_compare_exchange_strong(&own->header->tail, &tail, tail + 3));
}

static void a_reservation(void) {
    open_queue(SQ_MPMC);
    kill_after(reserve_and_die);
    put_messages(&queue, 0, 1, 5, 0);
    expect(0, 6, 0);
    CHECK(sq_unfinished(&queue) == 6);
    finish();
}

static void claim_and_die(sq_queue *own) {
    uint64_t head = atomic_load(&own->header->head);
    atomic_store(&own->self->take_intent, sq_intent(head, 2));
    CHECK(atomic_compare_exchange_strong(&own->header->head, &head, head + 2));
}

static void a_claim(uint32_t largest) {
    open_queue(SQ_MPMC);
    put_messages(&queue, 0, 0, 5, largest);
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
    open_queue(SQ_MPMC);
    put_messages(&queue, 0, 0, 3, 0);
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
    open_queue(SQ_MPMC);
    kill_after(own_a_chunk_and_die);
    CHECK(chunks_in_use(&queue) == 2);
    CHECK(sq_recover(&queue, 0) == 1);
    finish();
}

static void put_and_die(sq_queue *own) {
    CHECK(sq_queue_enrol_producer(own) == SQ_OK);
    put_messages(own, 0, 0, 20, 1900);
}

static void what_the_dead_had_put_stays(uint32_t mode) {
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

static void leases(uint32_t mode) {
    open_queue(mode);
    uint32_t chunk[5];
    for (uint32_t i = 0; i < 5; i++) {
        message m;
        uint32_t accepted, length = write_message(&m, 0, i, 1900);
        CHECK(sq_chunk_acquire(&queue, sizeof m, &chunk[i]) == SQ_OK);
        memcpy(sq_chunk_data(&queue, chunk[i]), &m, length);
        sq_chunk_describe(&queue, chunk[i], length, 1);
        sq_item item = {.chunk = chunk[i], .tag = 1, .storage = SQ_IN_CHUNK};
        CHECK(sq_put(&queue, &item, 1, &accepted) == SQ_OK);
    }
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
    open_queue(SQ_MPMC);
    put_messages(&queue, 0, 0, 3, 0);
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
    open_queue(SQ_MPMC);
    kill_after(sleep_and_die);
    put_messages(&queue, 0, 0, 3, 0);
    CHECK((atomic_load(&queue.header->not_empty.word) & 1) == 0);
    expect(0, 3, 0);
    finish();
}

/* The dead one's intent is also a living one's, which lost the race for that position. */
static void a_stale_intent_of_the_living_only_delays(void) {
    open_queue(SQ_MPMC);
    kill_after(reserve_and_die);
    atomic_store(&queue.self->put_intent, sq_intent(1, 1));
    CHECK(sq_recover(&queue, 0) == 0);
    atomic_store(&queue.self->put_intent, 0);
    CHECK(sq_recover(&queue, 0) == 1);
    put_messages(&queue, 0, 1, 1, 0);
    expect(0, 2, 0);
    finish();
}

static void leave_names_behind(sq_queue *own) {
    (void)own;
}

static void a_name_left_by_the_dead(void) {
    char name[64];
    open_queue(SQ_MPMC);
    snprintf(name, sizeof name, "%s", fresh_name());
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        sq_queue own;
        sq_options options = options_of(SQ_SPSC, 0, 64);
        CHECK(sq_queue_create(&own, name, &options) == SQ_OK);
        raise(SIGKILL);
    }
    waitpid(child, NULL, 0);
    sq_queue again;
    sq_options options = options_of(SQ_MPMC, 0, 64);
    CHECK(sq_queue_create(&again, name, &options) == SQ_OK);
    sq_queue other;
    CHECK(sq_queue_create(&other, name, &options) == SQ_EXISTS);
    leave_and_unmap(&again);
    kill_after(leave_names_behind);
    finish();
}

static void a_table_full_of_the_dead(void) {
    sq_options options = options_of(SQ_MPMC, 0, 64);
    options.participants = 4;
    CHECK(sq_queue_create(&queue, fresh_name(), &options) == SQ_OK);
    kill_after(put_and_die);
    kill_after(leave_names_behind);
    sq_queue newcomer, another;
    CHECK(sq_queue_attach(&newcomer, queue.file_name) == SQ_OK);
    CHECK(sq_queue_attach(&another, queue.file_name) == SQ_OK);
    CHECK(sq_queue_attach(&(sq_queue){0}, queue.file_name) == SQ_TABLE_FULL);
    expect(0, 20, 0);
    leave_and_unmap(&newcomer);
    leave_and_unmap(&another);
    finish();
}

int main(void) {
    a_reservation();
    a_claim(0);
    a_claim(1900);
    intents_alone_change_nothing();
    chunks_that_were_never_put();
    for (uint32_t mode = 0; mode < 4; mode++) {
        what_the_dead_had_put_stays(mode);
        leases(mode);
    }
    a_recoverer();
    a_sleeper();
    a_stale_intent_of_the_living_only_delays();
    a_name_left_by_the_dead();
    a_table_full_of_the_dead();
    return 0;
}
