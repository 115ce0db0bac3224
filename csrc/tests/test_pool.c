/* The chunk pool, and how much memory a queue really takes. */
#include "messages.h"

#include <sys/stat.h>

static uint32_t acquire_all(sq_queue *queue, uint64_t bytes, uint32_t *chunks) {
    uint32_t n = 0;
    sq_status status;
    while ((status = sq_chunk_acquire(queue, bytes, &chunks[n])) == SQ_OK) {
        n++;
    }
    CHECK(status == SQ_NO_CHUNK);
    return n;
}

static void it_runs_out_and_is_used_again(void) {
    sq_queue queue;
    uint32_t chunks[64], again[64];
    uint64_t size = 256 << 10;
    create_with(&queue, options_of(MPMC, 0, 64));
    for (int round = 0; round < 3; round++) {
        uint32_t n = acquire_all(&queue, size, chunks);
        CHECK(n == 4 + 2 + 1); /* of this size, of twice, and of four times as much */
        for (uint32_t i = 0; i < n; i++) {
            memset(sq_chunk_data(&queue, chunks[i]), (int)i + round, size);
        }
        for (uint32_t i = 0; i < n; i++) {
            const unsigned char *data = sq_chunk_data(&queue, chunks[i]);
            CHECK(data[0] == i + (uint32_t)round && data[size - 1] == data[0]);
        }
        sq_chunk_release(&queue, chunks[3]);
        sq_chunk_release(&queue, chunks[1]);
        CHECK(acquire_all(&queue, size, again) == 2);
        CHECK(again[0] == chunks[1] && again[1] == chunks[3]); /* lowest first */
        for (uint32_t i = 0; i < n; i++) {
            sq_chunk_release(&queue, chunks[i]);
        }
        CHECK(chunks_in_use(&queue) == 0);
    }
    CHECK(sq_chunk_acquire(&queue, sq_chunk_largest(&queue), chunks) == SQ_OK);
    CHECK(sq_chunk_acquire(&queue, sq_chunk_largest(&queue) + 1, again) == SQ_NO_CHUNK);
    close_queue(&queue);
}

static void a_chunk_holds_what_was_asked_for(void) {
    sq_queue queue;
    create_with(&queue, options_of(MPMC, 0, 64));
    for (uint64_t bytes = 1; bytes <= sq_chunk_largest(&queue); bytes += bytes / 2 + 1) {
        uint32_t chunk, neighbour;
        CHECK(sq_chunk_acquire(&queue, bytes, &chunk) == SQ_OK);
        CHECK(sq_chunk_acquire(&queue, bytes, &neighbour) == SQ_OK || bytes > 512 << 10);
        unsigned char *data = sq_chunk_data(&queue, chunk);
        CHECK(data + bytes <= queue.segment.base + queue.segment.bytes);
        memset(data, 1, bytes);
        if (chunks_in_use(&queue) == 2) {
            memset(sq_chunk_data(&queue, neighbour), 2, bytes);
            CHECK(data[0] == 1 && data[bytes - 1] == 1);
            sq_chunk_release(&queue, neighbour);
        }
        sq_chunk_release(&queue, chunk);
    }
    close_queue(&queue);
}

enum { THREADS = 4, TURNS = 5000 * MANY };

static void *acquire_and_release(void *argument) {
    sq_queue *queue = argument;
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint32_t chunk;
        uint64_t bytes = 40000 + turn % 3 * 20000;
        while (sq_chunk_acquire(queue, bytes, &chunk) == SQ_NO_CHUNK) {
            uint64_t start = sq_now_ns();
            sq_await_chunk(queue, bytes, HANG_NS);
            CHECK(sq_now_ns() - start < HANG_NS);
        }
        uint32_t *data = (uint32_t *)sq_chunk_data(queue, chunk);
        *data = queue->id;
        data[bytes / 4 - 1] = turn;
        CHECK(*data == queue->id && data[bytes / 4 - 1] == turn);
        sq_chunk_release(queue, chunk);
    }
    return NULL;
}

static void many_take_from_a_small_pool(void) {
    sq_queue queue, handles[THREADS];
    pthread_t threads[THREADS];
    sq_options options = options_of(MPMC, 0, 64);
    options.pool_bytes = 128 << 10;
    options.recovery_ms = 60000;
    create_with(&queue, options);
    for (int i = 0; i < THREADS; i++) {
        attach_here(&handles[i], &queue);
        CHECK(pthread_create(&threads[i], NULL, acquire_and_release, &handles[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        close_here(&handles[i]);
    }
    CHECK(chunks_in_use(&queue) == 0);
    close_queue(&queue);
}

static void a_body_in_a_segment_of_its_own(void) {
    sq_queue queue, other;
    uint32_t chunk, count, accepted;
    unsigned char *data;
    uint64_t space[SQ_TAKEN_WORDS], bytes = 3 << 20;
    const sq_taken *taken = (sq_taken *)space;
    create_with(&queue, options_of(MPMC, 0, 64));
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    CHECK(sq_external_acquire(&queue, bytes, &chunk, &data) == SQ_OK);
    memset(data, 7, bytes);
    sq_external_unmap(data, bytes);
    sq_chunk_describe(&queue, chunk, bytes, 9);
    sq_item item = {.chunk = chunk, .tag = 9, .storage = SQ_IN_CHUNK};
    CHECK(sq_put(&queue, &item, 1, &accepted) == SQ_OK);
    CHECK(count_files(queue.file_name, false) == 2);

    CHECK(sq_take(&other, space, 1, &count) == SQ_OK && taken->length == bytes);
    CHECK(sq_external_map(&other, taken->chunk, bytes, &data) == SQ_OK);
    CHECK(data[0] == 7 && data[bytes - 1] == 7);
    sq_external_unmap(data, bytes);
    CHECK(sq_external_map(&other, taken->chunk, bytes + 1, &data) == SQ_CORRUPT);
    sq_chunk_release(&other, taken->chunk);
    CHECK(count_files(queue.file_name, false) == 1);

    CHECK(sq_chunk_acquire(&queue, 100, &chunk) == SQ_OK);
    CHECK(sq_external_map(&queue, chunk, 100, &data) == SQ_EMPTY);
    CHECK(sq_external_map(&queue, chunk, bytes, &data) == SQ_CORRUPT);
    /* one that is still queued goes with the queue */
    CHECK(sq_external_acquire(&queue, bytes, &chunk, &data) == SQ_OK);
    item.chunk = chunk;
    CHECK(sq_put(&queue, &item, 1, &accepted) == SQ_OK);
    close_queue(&other);
    close_queue(&queue);
}

static void what_another_holds_is_not_released(void) {
    sq_queue queue, other;
    uint32_t chunk;
    create_with(&queue, options_of(MPMC, 0, 64));
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    CHECK(sq_chunk_acquire(&queue, 100, &chunk) == SQ_OK);
    sq_chunk_release(&other, chunk);
    CHECK(chunks_in_use(&queue) == 1);
    sq_chunk_release(&queue, chunk);
    sq_chunk_release(&queue, chunk);
    CHECK(chunks_in_use(&queue) == 0);
    close_queue(&other);
    close_queue(&queue);
}

/* ---- memory ---- */

static uint64_t bytes_in_memory(const sq_queue *queue) {
    struct stat status;
    CHECK(fstat(queue->segment.fd, &status) == 0);
    return (uint64_t)status.st_blocks * 512;
}

static void a_fresh_segment_is_sparse(void) {
    sq_queue queue;
    sq_options options = options_of(MPMC, 0, 1 << 16);
    options.pool_bytes = 64 << 20;
    create_with(&queue, options);
    CHECK(queue.segment.bytes > 64 << 20);
    CHECK(bytes_in_memory(&queue) < 64 << 10);
    CHECK(put_value(&queue, 1) == SQ_OK);
    CHECK(bytes_in_memory(&queue) < 512 << 10);
    close_queue(&queue);
}

/* Memory that is only touched, and was not asked for before, ends the process with SIGBUS where
 * the file system is full. So nothing may grow by being touched. */
static void nothing_is_touched_that_has_no_memory(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue, other;
        uint64_t value, size = 0;
        uint32_t capacity = 1 << 14;
        create_with(&queue, options_of(mode, 0, capacity));
        enrol(&queue);
        size = bytes_in_memory(&queue);
        CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
        CHECK(take_value(&queue, &value) == SQ_EMPTY);
        sq_await_message(&queue, 1);
        CHECK(sq_spin_room(&other, 1));
        CHECK(sq_size(&other) == 0 && sq_check_cursors(&other) == SQ_OK);
        recover_now(&other);
        CHECK(bytes_in_memory(&queue) == size);
        for (uint32_t i = 0; i < capacity; i++) {
            CHECK(put_value(&queue, i) == SQ_OK);
            size = bytes_in_memory(&queue);
            CHECK(take_value(&queue, &value) == SQ_OK);
            CHECK(take_value(&queue, &value) == SQ_EMPTY);
            CHECK(sq_spin_room(&queue, 1));
            CHECK(bytes_in_memory(&queue) == size);
        }
        close_queue(&other);
        close_queue(&queue);
    }
}

int main(void) {
    static const test tests[] = {
        TEST(it_runs_out_and_is_used_again),         TEST(a_chunk_holds_what_was_asked_for),
        TEST(many_take_from_a_small_pool),           TEST(a_body_in_a_segment_of_its_own),
        TEST(what_another_holds_is_not_released),    TEST(a_fresh_segment_is_sparse),
        TEST(nothing_is_touched_that_has_no_memory),
    };
    return RUN_TESTS(tests);
}
