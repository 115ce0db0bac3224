/* One handle: how much goes in, in what order it comes out, and how it ends. */
#include "messages.h"

static void the_limit_is_exact(void) {
    static const uint64_t sizes[][2] = {{1, 2}, {2, 2}, {3, 4}, {1, 64}, {2, 64}, {3, 64}, {9, 64}};
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            uint64_t maxsize = sizes[s][0], value;
            sq_queue queue;
            create_with(&queue, options_of(mode, maxsize, (uint32_t)sizes[s][1]));
            enrol(&queue);
            for (uint64_t lap = 0; lap < 200; lap++) {
                for (uint64_t i = 0; i < maxsize; i++) {
                    CHECK(put_value(&queue, lap + i) == SQ_OK && sq_size(&queue) == i + 1);
                }
                CHECK(put_value(&queue, 0) == SQ_FULL && sq_size(&queue) == maxsize);
                CHECK(take_value(&queue, &value) == SQ_OK && value == lap);
                CHECK(put_value(&queue, lap + maxsize) == SQ_OK);
                CHECK(put_value(&queue, 0) == SQ_FULL);
                for (uint64_t i = 1; i <= maxsize; i++) {
                    CHECK(take_value(&queue, &value) == SQ_OK && value == lap + i);
                }
                CHECK(take_value(&queue, &value) == SQ_EMPTY && sq_size(&queue) == 0);
            }
            close_queue(&queue);
        }
    }
}

static void a_batch_goes_in_as_far_as_there_is_room(void) {
    enum { BATCH = 10 };
    for (uint32_t mode = 0; mode < 4; mode++) {
        for (uint64_t maxsize = 1; maxsize <= 12; maxsize++) {
            sq_queue queue;
            uint64_t values[BATCH], next = 0, wanted = 0;
            sq_item items[BATCH];
            create_with(&queue, options_of(mode, maxsize, 16));
            enrol(&queue);
            size_t stride = sq_taken_stride(&queue);
            unsigned char *taken = malloc(stride * BATCH);
            for (int round = 0; round < 100; round++) {
                uint32_t accepted, count;
                uint64_t room = maxsize - sq_size(&queue);
                for (uint64_t i = 0; i < BATCH; i++) {
                    values[i] = next + i;
                    items[i] = (sq_item){.body = &values[i], .length = 8, .storage = SQ_INLINE};
                }
                sq_status status = sq_put(&queue, items, BATCH, &accepted);
                CHECK(accepted == (room < BATCH ? room : BATCH));
                CHECK(status == (accepted > 0 ? SQ_OK : SQ_FULL));
                next += accepted;
                CHECK(sq_take(&queue, taken, 1 + (uint32_t)round % BATCH, &count) == SQ_OK);
                for (uint32_t i = 0; i < count; i++) {
                    uint64_t value;
                    memcpy(&value, ((sq_taken *)(taken + i * stride))->body, sizeof value);
                    CHECK(value == wanted++);
                }
            }
            free(taken);
            close_queue(&queue);
        }
    }
}

static void a_batch_larger_than_any_goes_in_by_parts(void) {
    enum { BATCH = SQ_BATCH_MAX + 100 };
    sq_queue queue;
    uint32_t accepted, count, all = 0;
    create_with(&queue, options_of(MPMC, 0, 2 * SQ_BATCH_MAX));
    sq_item *items = calloc(BATCH, sizeof *items);
    unsigned char *taken = malloc(sq_taken_stride(&queue) * BATCH);
    for (uint32_t i = 0; i < BATCH; i++) {
        items[i] = (sq_item){.body = "item", .length = 4, .storage = SQ_INLINE};
    }
    CHECK(sq_put(&queue, items, BATCH, &accepted) == SQ_OK && accepted == SQ_BATCH_MAX);
    CHECK(sq_put(&queue, items, BATCH, &accepted) == SQ_OK && accepted == SQ_BATCH_MAX);
    CHECK(sq_put(&queue, items, BATCH, &accepted) == SQ_FULL && accepted == 0);
    while (sq_take(&queue, taken, BATCH, &count) == SQ_OK) {
        all += count;
    }
    CHECK(all == 2 * SQ_BATCH_MAX);
    free(items);
    free(taken);
    close_queue(&queue);
}

static void a_shutdown_drains(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue;
        uint64_t value;
        create_with(&queue, options_of(mode, 0, 64));
        enrol(&queue);
        CHECK(put_value(&queue, 1) == SQ_OK && put_value(&queue, 2) == SQ_OK);
        CHECK(!sq_is_shutdown(&queue));
        sq_shutdown(&queue, false);
        CHECK(sq_is_shutdown(&queue) && put_value(&queue, 3) == SQ_CLOSED);
        CHECK(sq_size(&queue) == 2 && sq_unfinished(&queue) == 2);
        CHECK(take_value(&queue, &value) == SQ_OK && value == 1);
        CHECK(take_value(&queue, &value) == SQ_OK && value == 2);
        CHECK(take_value(&queue, &value) == SQ_CLOSED);
        CHECK(sq_check_cursors(&queue) == SQ_OK);
        close_queue(&queue);
    }
}

static void an_immediate_shutdown_drops_what_waits(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue;
        uint64_t value;
        create_with(&queue, options_of(mode, 0, 64));
        enrol(&queue);
        for (int i = 0; i < 3; i++) {
            CHECK(put_value(&queue, 1) == SQ_OK);
        }
        CHECK(take_value(&queue, &value) == SQ_OK);
        sq_shutdown(&queue, false);
        sq_shutdown(&queue, true);
        sq_shutdown(&queue, false);
        CHECK(take_value(&queue, &value) == SQ_CLOSED && put_value(&queue, 1) == SQ_CLOSED);
        CHECK(sq_size(&queue) == 0 && sq_unfinished(&queue) == 1);
        CHECK(sq_task_done(&queue) == SQ_OK && sq_unfinished(&queue) == 0);
        close_queue(&queue);
    }
}

static void every_message_is_answered_once(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_queue queue;
        uint64_t value;
        create_with(&queue, options_of(mode, 0, 64));
        enrol(&queue);
        CHECK(sq_task_done(&queue) == SQ_BAD_OPTION);
        CHECK(put_value(&queue, 1) == SQ_OK && put_value(&queue, 2) == SQ_OK);
        CHECK(take_value(&queue, &value) == SQ_OK && sq_unfinished(&queue) == 2);
        CHECK(sq_task_done(&queue) == SQ_OK && sq_unfinished(&queue) == 1);
        CHECK(sq_task_done(&queue) == SQ_OK && sq_unfinished(&queue) == 0);
        CHECK(sq_task_done(&queue) == SQ_BAD_OPTION);
        close_queue(&queue);
    }
}

int main(void) {
    static const test tests[] = {
        TEST(the_limit_is_exact),
        TEST(a_batch_goes_in_as_far_as_there_is_room),
        TEST(a_batch_larger_than_any_goes_in_by_parts),
        TEST(a_shutdown_drains),
        TEST(an_immediate_shutdown_drops_what_waits),
        TEST(every_message_is_answered_once),
    };
    return RUN_TESTS(tests);
}
