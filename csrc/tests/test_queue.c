/* One handle at a time: exact limits, closing, finished work, the pool, sparse memory. */
#include "check.h"

#include <sys/stat.h>

static void open_queue(sq_queue *queue, uint32_t mode, uint64_t maxsize, uint32_t capacity) {
    sq_options options = options_of(mode, maxsize, capacity);
    CHECK(sq_queue_create(queue, fresh_name(), &options) == SQ_OK);
    CHECK(sq_queue_enrol_producer(queue) == SQ_OK && sq_queue_enrol_consumer(queue) == SQ_OK);
}

static sq_status put_one(sq_queue *queue, uint64_t value) {
    uint32_t accepted;
    sq_item item = {.body = &value, .length = sizeof value, .storage = SQ_INLINE};
    return sq_put(queue, &item, 1, &accepted);
}

static sq_status take_one(sq_queue *queue, uint64_t *value) {
    uint64_t space[SQ_TAKEN_WORDS];
    sq_taken *taken = (sq_taken *)space;
    uint32_t count;
    sq_status status = sq_take(queue, taken, 1, &count);
    if (count == 1) {
        CHECK(taken->storage == SQ_INLINE && taken->length == sizeof *value);
        memcpy(value, taken->body, sizeof *value);
    }
    return status;
}

static void limits_are_exact(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (uint64_t maxsize = 1; maxsize <= 9; maxsize++) {
            sq_queue queue;
            open_queue(&queue, mode, maxsize, 64);
            for (uint64_t lap = 0; lap < 100; lap++) {
                for (uint64_t i = 0; i < maxsize; i++) {
                    CHECK(put_one(&queue, lap + i) == SQ_OK && sq_size(&queue) == i + 1);
                }
                CHECK(put_one(&queue, 0) == SQ_FULL);
                for (uint64_t i = 0; i < maxsize; i++) {
                    uint64_t value = 0;
                    CHECK(take_one(&queue, &value) == SQ_OK && value == lap + i);
                }
                CHECK(take_one(&queue, &(uint64_t){0}) == SQ_EMPTY);
            }
            leave_and_unmap(&queue);
        }
    }
}

static void closing_drains(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue;
        uint64_t value;
        open_queue(&queue, mode, 0, 64);
        CHECK(put_one(&queue, 1) == SQ_OK && put_one(&queue, 2) == SQ_OK);
        sq_shutdown(&queue, false);
        CHECK(sq_is_shutdown(&queue) && put_one(&queue, 3) == SQ_CLOSED);
        CHECK(take_one(&queue, &value) == SQ_OK && take_one(&queue, &value) == SQ_OK);
        CHECK(take_one(&queue, &value) == SQ_CLOSED);
        CHECK(sq_unfinished(&queue) == 2);
        CHECK(sq_task_done(&queue) == SQ_OK && sq_task_done(&queue) == SQ_OK);
        CHECK(sq_task_done(&queue) == SQ_BAD_OPTION && sq_unfinished(&queue) == 0);
        leave_and_unmap(&queue);
    }
}

static void nobody_is_woken_for_nothing(void) {
    sq_queue queue;
    uint64_t value;
    open_queue(&queue, SQ_MPMC, 0, 64);
    for (int i = 0; i < 1000; i++) {
        CHECK(put_one(&queue, 1) == SQ_OK && take_one(&queue, &value) == SQ_OK);
    }
    /* a wake-up would have counted in the word */
    CHECK(atomic_load(&queue.header->not_empty.word) == 0);
    CHECK(atomic_load(&queue.header->not_full.word) == 0);
    leave_and_unmap(&queue);
}

static void chunks_come_lowest_first_and_run_out(void) {
    sq_queue queue;
    uint32_t chunks[64], extra;
    open_queue(&queue, SQ_MPMC, 0, 64);
    uint32_t size = 256 << 10, n = 0;
    sq_status status;
    while ((status = sq_chunk_acquire(&queue, size, &chunks[n])) == SQ_OK) {
        CHECK(sq_chunk_index(chunks[n]) == 0 ||
              sq_chunk_name(sq_chunk_class(chunks[n]), sq_chunk_index(chunks[n]) - 1) ==
                  chunks[n - 1]);
        memset(sq_chunk_data(&queue, chunks[n]), (int)n, size);
        n++;
    }
    CHECK(status == SQ_NO_CHUNK && n == 7); /* 4 of this size, 2 of twice, 1 of four times */
    for (uint32_t i = 0; i < n; i++) {
        CHECK(sq_chunk_data(&queue, chunks[i])[size - 1] == i);
    }
    sq_chunk_release(&queue, chunks[1]);
    CHECK(sq_chunk_acquire(&queue, size, &extra) == SQ_OK && extra == chunks[1]);
    for (uint32_t i = 0; i < n; i++) {
        sq_chunk_release(&queue, chunks[i]);
    }
    CHECK(chunks_in_use(&queue) == 0);
    CHECK(sq_chunk_acquire(&queue, sq_chunk_largest(&queue) + 1, &extra) == SQ_NO_CHUNK);
    leave_and_unmap(&queue);
}

static void a_body_in_a_segment_of_its_own(void) {
    sq_queue queue;
    uint32_t chunk;
    unsigned char *data, *again;
    uint64_t bytes = 3 << 20;
    open_queue(&queue, SQ_MPMC, 0, 64);
    CHECK(sq_external_acquire(&queue, bytes, &chunk, &data) == SQ_OK);
    memset(data, 7, bytes);
    sq_external_unmap(data, bytes);
    CHECK(sq_external_map(&queue, chunk, bytes, &again) == SQ_OK && again[bytes - 1] == 7);
    sq_external_unmap(again, bytes);
    sq_chunk_release(&queue, chunk);
    CHECK(sq_chunk_acquire(&queue, 1, &chunk) == SQ_OK);
    CHECK(sq_external_map(&queue, chunk, 1, &again) == SQ_EMPTY);
    CHECK(sq_external_map(&queue, chunk, bytes, &again) == SQ_CORRUPT);
    sq_chunk_release(&queue, chunk);
    leave_and_unmap(&queue);
}

static void a_fresh_segment_is_sparse(void) {
    sq_queue queue;
    struct stat status;
    sq_options options = options_of(SQ_MPMC, 0, 1 << 16);
    options.pool_bytes = 64 << 20;
    CHECK(sq_queue_create(&queue, fresh_name(), &options) == SQ_OK);
    CHECK(fstat(queue.segment.fd, &status) == 0);
    CHECK(status.st_size > (64 << 20) && status.st_blocks * 512 < (64 << 10));
    leave_and_unmap(&queue);
}

static void options_are_checked(void) {
    sq_queue queue;
    sq_options good = options_of(SQ_MPMC, 0, 64), bad;
#define REFUSED(change)                                                                            \
    bad = good;                                                                                    \
    bad.change;                                                                                    \
    CHECK(sq_queue_create(&queue, fresh_name(), &bad) == SQ_BAD_OPTION)
    REFUSED(capacity = 63);
    REFUSED(capacity = 1);
    REFUSED(maxsize = 65);
    REFUSED(slot_bytes = 100);
    REFUSED(slot_bytes = 2048);
    REFUSED(participants = 1);
    REFUSED(mode = 4);
    REFUSED(recovery_ms = 0);
    REFUSED(pool_bytes = 100);
    memset(good.codec, 'x', sizeof good.codec);
    REFUSED(mode = SQ_MPMC);
}

int main(void) {
    limits_are_exact();
    closing_drains();
    nobody_is_woken_for_nothing();
    chunks_come_lowest_first_and_run_out();
    a_body_in_a_segment_of_its_own();
    a_fresh_segment_is_sparse();
    options_are_checked();
    return 0;
}
