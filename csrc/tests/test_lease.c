/* Leases: what is claimed stays the message until it is released, whatever it was put as. Pins:
 * what a producer still looks at is not used again. */
#include "messages.h"

static sq_queue queue;

static void open_queue(uint32_t mode, uint32_t capacity) {
    create_with(&queue, options_of(mode, 0, capacity));
}

static uint32_t claim(sq_queue *own, message *m, uint32_t *chunk) {
    uint64_t space[SQ_TAKEN_WORDS];
    sq_taken *taken = (sq_taken *)space;
    uint32_t count;
    while (sq_claim(own, space, 1, &count) == SQ_EMPTY) {
        sq_await_message(own, HANG_NS);
    }
    CHECK(count == 1);
    CHECK(taken->storage == SQ_IN_CHUNK && taken->tag == 1);
    unsigned char *data;
    sq_status status = sq_external_map(own, taken->chunk, taken->length, &data);
    CHECK(status == SQ_OK || status == SQ_EMPTY);
    memcpy(m, status == SQ_OK ? data : sq_chunk_data(own, taken->chunk), taken->length);
    if (status == SQ_OK) {
        sq_external_unmap(data, taken->length);
    }
    CHECK(m->checksum == checksum_of(m));
    *chunk = taken->chunk;
    return taken->deliveries;
}

static void nothing_is_left(void) {
    uint64_t value;
    CHECK(take_value(&queue, &value) == SQ_EMPTY);
    CHECK(sq_size(&queue) == 0);
    CHECK(chunks_in_use(&queue) == 0);
    close_queue(&queue);
}

static void released_in_any_order(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        uint32_t chunks[100];
        message m;
        open_queue(mode, 128);
        put_messages(&queue, 0, 0, 100, &MIXED_BODIES);
        for (uint32_t i = 0; i < 100; i++) {
            CHECK(claim(&queue, &m, &chunks[i]) == 0);
            CHECK(m.number == i);
        }
        CHECK(chunks_in_use(&queue) == 100);
        for (uint32_t i = 0; i < 100; i++) {
            sq_chunk_release(&queue, chunks[i * 37 % 100]);
        }
        nothing_is_left();
    }
}

static void many_at_a_time(void) {
    enum { N = 300 };
    sq_queue *q = &queue;
    open_queue(MPMC, 512);
    unsigned char *taken = malloc(sq_taken_stride(q) * N);
    uint32_t count, all = 0;
    put_messages(q, 0, 0, N, &MIXED_BODIES);
    while (sq_claim(q, taken, N, &count) == SQ_OK) {
        CHECK(count <= SQ_CLAIM_MAX);
        for (uint32_t i = 0; i < count; i++) {
            sq_taken *one = (sq_taken *)(taken + i * sq_taken_stride(q));
            message m;
            open_message(q, one, &m);
            CHECK(m.number == all++);
        }
    }
    CHECK(all == N);
    free(taken);
    nothing_is_left();
}

static void returned_comes_first_and_flagged(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        uint32_t chunks[3];
        message m;
        open_queue(mode, 16);
        put_messages(&queue, 0, 0, 5, &INLINE_BODIES);
        for (uint32_t i = 0; i < 3; i++) {
            CHECK(claim(&queue, &m, &chunks[i]) == 0);
        }
        sq_lease_return(&queue, chunks[2]);
        sq_lease_return(&queue, chunks[0]);
        CHECK(sq_size(&queue) == 4);
        CHECK(claim(&queue, &m, &chunks[0]) == 1 && m.number == 0);
        sq_lease_return(&queue, chunks[0]);
        CHECK(claim(&queue, &m, &chunks[0]) == 2 && m.number == 0);
        CHECK(take_message(&queue, &m) == 1 && m.number == 2);
        CHECK(take_message(&queue, &m) == 0 && m.number == 3);
        CHECK(take_message(&queue, &m) == 0 && m.number == 4);
        sq_chunk_release(&queue, chunks[0]);
        sq_chunk_release(&queue, chunks[1]);
        nothing_is_left();
    }
}

static void *await_room_once(void *unused) {
    (void)unused;
    uint64_t start = sq_now_ns();
    while (!sq_room_ready(&queue)) {
        sq_await_room(&queue, HANG_NS);
        CHECK(sq_now_ns() - start < HANG_NS);
    }
    return NULL;
}

/* What was given back takes room again: maxsize bounds all that waits. Taken again, it makes room,
 * and whoever waits for room wakes. */
static void what_is_given_back_takes_room(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        uint32_t chunks[4], extra;
        uint64_t value;
        message m;
        pthread_t waiter;
        create_with(&queue, options_of(mode, 4, 16));
        enrol(&queue);
        put_messages(&queue, 0, 0, 4, &CHUNK_BODIES);
        for (uint32_t i = 0; i < 4; i++) {
            CHECK(claim(&queue, &m, &chunks[i]) == 0);
        }
        CHECK(put_value(&queue, 10) == SQ_OK && put_value(&queue, 11) == SQ_OK);
        sq_lease_return(&queue, chunks[0]);
        sq_lease_return(&queue, chunks[1]);
        CHECK(sq_size(&queue) == 4 && put_value(&queue, 12) == SQ_FULL);
        sq_lease_return(&queue, chunks[2]); /* it has to be taken back, room or not */
        CHECK(sq_size(&queue) == 5 && put_value(&queue, 12) == SQ_FULL);
        CHECK(claim(&queue, &m, &extra) == 1 && m.number == 0);
        CHECK(put_value(&queue, 12) == SQ_FULL && !sq_room_ready(&queue));
        CHECK(pthread_create(&waiter, NULL, await_room_once, NULL) == 0);
        CHECK(claim(&queue, &m, &chunks[0]) == 1 && m.number == 1);
        CHECK(pthread_join(waiter, NULL) == 0);
        CHECK(put_value(&queue, 12) == SQ_OK && put_value(&queue, 13) == SQ_FULL);
        sq_chunk_release(&queue, extra);
        sq_chunk_release(&queue, chunks[0]);
        sq_chunk_release(&queue, chunks[3]);
        CHECK(take_message(&queue, &m) == 1 && m.number == 2);
        for (uint64_t i = 10; i < 13; i++) {
            CHECK(take_value(&queue, &value) == SQ_OK && value == i);
        }
        CHECK(take_value(&queue, &value) == SQ_EMPTY);
        close_queue(&queue);
    }
}

/* Leases are bounded; who waits for one wakes when one is released. */
static void as_many_as_slots(void) {
    uint32_t chunks[4], count;
    uint64_t space[SQ_TAKEN_WORDS];
    message m;
    open_queue(MPMC, 4);
    for (uint32_t i = 0; i < 4; i++) {
        put_messages(&queue, 0, i, 1, &INLINE_BODIES);
        claim(&queue, &m, &chunks[i]);
    }
    put_messages(&queue, 0, 4, 1, &INLINE_BODIES);
    CHECK(sq_claim(&queue, space, 1, &count) == SQ_NO_CHUNK && count == 0);
    sq_await_copy(&queue, 1000000);
    sq_chunk_release(&queue, chunks[1]);
    sq_await_copy(&queue, HANG_NS);
    CHECK(claim(&queue, &m, &chunks[1]) == 0 && m.number == 4);
    for (uint32_t i = 0; i < 4; i++) {
        sq_chunk_release(&queue, chunks[i]);
    }
    nothing_is_left();
}

static void claim_all_and_die(void *n) {
    sq_queue own;
    message m;
    uint32_t chunk;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(&own) == SQ_OK);
    for (uint32_t i = 0; i < *(uint32_t *)n; i++) {
        claim(&own, &m, &chunk);
    }
}

/* All the copies are the dead one's: that must not keep others from claiming them. */
static void the_dead_had_all_copies(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        message m;
        uint32_t n = 4, chunks[4];
        open_queue(mode, 4);
        put_messages(&queue, 0, 0, 4, &INLINE_BODIES);
        run_and_kill(claim_all_and_die, &n);
        CHECK(recover_now(&queue) == 1);
        CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
        put_messages(&queue, 0, 4, 1, &INLINE_BODIES);
        for (uint32_t i = 0; i < 4; i++) {
            CHECK(claim(&queue, &m, &chunks[i]) == 1 && m.number == i);
        }
        for (uint32_t i = 0; i < 4; i++) {
            sq_chunk_release(&queue, chunks[i]);
        }
        CHECK(claim(&queue, &m, &chunks[0]) == 0 && m.number == 4);
        sq_chunk_release(&queue, chunks[0]);
        nothing_is_left();
    }
}

static void claim_some_and_die(void *release) {
    sq_queue own;
    message m;
    uint32_t chunks[6];
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    CHECK(sq_queue_enrol_consumer(&own) == SQ_OK);
    for (uint32_t i = 0; i < 6; i++) {
        claim(&own, &m, &chunks[i]);
    }
    sq_chunk_release(&own, chunks[1]);
    sq_lease_acknowledge(&own, chunks[3]);
    if (release != NULL) {
        sq_queue_leave(&own);
    }
}

/* The dead one had released the second and acknowledged the fourth: the others come again. */
static void leases_of_one_that_is_gone(bool dead) {
    static const bodies *const kinds[] = {&INLINE_BODIES, &CHUNK_BODIES, &MIXED_BODIES};
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        for (uint32_t kind = 0; kind < 3; kind++) {
            static const uint64_t again[] = {0, 2, 4, 5};
            message m;
            open_queue(mode, 16);
            put_messages(&queue, 0, 0, 8, kinds[kind]);
            if (dead) {
                run_and_kill(claim_some_and_die, NULL);
                CHECK(recover_now(&queue) == 1);
            } else {
                expect_exit(start_process(claim_some_and_die, &queue));
            }
            CHECK(sq_queue_enrol_consumer(&queue) == SQ_OK);
            for (uint32_t i = 0; i < 4; i++) {
                CHECK(take_message(&queue, &m) == 1 && m.number == again[i]);
            }
            CHECK(take_message(&queue, &m) == 0 && m.number == 6);
            CHECK(take_message(&queue, &m) == 0 && m.number == 7);
            nothing_is_left();
        }
    }
}

static void leases_of_the_dead_come_again(void) {
    leases_of_one_that_is_gone(true);
}

static void leases_of_one_that_left_come_again(void) {
    leases_of_one_that_is_gone(false);
}

/* Put one message in a chunk that stays pinned by `own`. */
static uint32_t put_pinned(sq_queue *own, bool external) {
    static const bodies big = {"external", 0, 2000, true};
    message m;
    uint32_t accepted;
    write_message(&m, 0, external ? 5 : 1, &big);
    m.length = 1500;
    m.checksum = checksum_of(&m);
    sq_item item = item_of(own, &m, &big);
    CHECK(item.storage == SQ_IN_CHUNK);
    sq_chunk_pin(own, item.chunk);
    CHECK(sq_put(own, &item, 1, &accepted) == SQ_OK);
    return item.chunk;
}

static void a_pinned_chunk_is_not_used_again(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        message m;
        uint32_t chunk;
        open_queue(mode, 16);
        uint32_t pinned = put_pinned(&queue, mode & 1);
        CHECK(claim(&queue, &m, &chunk) == 0 && chunk == pinned);
        sq_lease_return(&queue, chunk);
        CHECK(claim(&queue, &m, &chunk) == 1 && chunk == pinned);
        sq_chunk_release(&queue, chunk);
        CHECK(chunks_in_use(&queue) == 1);
        sq_chunk_unpin(&queue, pinned);
        CHECK(chunks_in_use(&queue) == 0);

        pinned = put_pinned(&queue, false); /* let go before it is taken */
        sq_chunk_unpin(&queue, pinned);
        CHECK(take_message(&queue, &m) == 0);
        CHECK(chunks_in_use(&queue) == 0);

        pinned = put_pinned(&queue, false); /* and while it is leased, and looked at */
        CHECK(claim(&queue, &m, &chunk) == 0);
        sq_lease_acknowledge(&queue, chunk);
        sq_chunk_unpin(&queue, pinned);
        CHECK(chunks_in_use(&queue) == 1);
        sq_chunk_release(&queue, chunk);
        nothing_is_left();
    }
}

static void put_pinned_and_die(void *external) {
    sq_queue own;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    CHECK(sq_queue_enrol_producer(&own) == SQ_OK);
    put_pinned(&own, external != NULL);
}

static void pins_of_the_dead_are_gone(void) {
    for (uint32_t mode = MPMC; mode <= SPSC; mode++) {
        for (uint32_t taken_first = 0; taken_first < 2; taken_first++) {
            message m;
            uint32_t chunk;
            open_queue(mode, 16);
            run_and_kill(put_pinned_and_die, mode & 1 ? &queue : NULL);
            if (taken_first) {
                CHECK(take_message(&queue, &m) == 0); /* its chunk is left to the dead one */
                CHECK(chunks_in_use(&queue) == 1);
                CHECK(recover_now(&queue) == 1);
            } else {
                CHECK(recover_now(&queue) == 1);
                CHECK(claim(&queue, &m, &chunk) == 0);
                sq_chunk_release(&queue, chunk);
            }
            nothing_is_left();
        }
    }
}

static void consume_pinned(void *n) {
    sq_queue own;
    message m;
    uint32_t chunk;
    CHECK(sq_queue_attach(&own, queue.file_name) == SQ_OK);
    for (uint32_t i = 0; i < *(uint32_t *)n; i++) {
        claim(&own, &m, &chunk);
        sq_chunk_release(&own, chunk);
    }
    close_queue(&own);
}

/* The producer lets go at the very time when the consumer is done: one of them frees it. */
static void letting_go_races(void) {
    uint32_t n = 20000 * MANY;
    open_queue(MPMC, 16);
    pid_t consumer = start_process(consume_pinned, &n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pinned = put_pinned(&queue, false);
        while (sq_size(&queue) != 0) {
        }
        sq_spin_room(&queue, i % 50);
        sq_chunk_unpin(&queue, pinned);
    }
    expect_exit(consumer);
    nothing_is_left();
}

int main(void) {
    static const test tests[] = {
        TEST(released_in_any_order),
        TEST(many_at_a_time),
        TEST(returned_comes_first_and_flagged),
        TEST(what_is_given_back_takes_room),
        TEST(as_many_as_slots),
        TEST(the_dead_had_all_copies),
        TEST(leases_of_the_dead_come_again),
        TEST(leases_of_one_that_left_come_again),
        TEST(a_pinned_chunk_is_not_used_again),
        TEST(pins_of_the_dead_are_gone),
        TEST(letting_go_races),
    };
    return RUN_TESTS(tests);
}
