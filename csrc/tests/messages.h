/* Messages that know who put them, which one they are, and whether they are whole. */
#ifndef SQ_TESTS_MESSAGES_H
#define SQ_TESTS_MESSAGES_H

#include "check.h"

typedef struct message {
    uint32_t producer;
    uint32_t length; /* of the body */
    uint64_t number;
    uint64_t checksum;
    unsigned char body[2000];
} message;
#define MESSAGE_HEAD offsetof(message, body)

/* Lengths of bodies: such that they fit a slot, such that they do not, and both. */
typedef struct bodies {
    const char *name;
    uint32_t shortest, longest;
    bool some_external;
} bodies;
static const bodies INLINE_BODIES = {"inline", 0, 80, false};
static const bodies CHUNK_BODIES = {"chunk", 200, 2000, false};
static const bodies MIXED_BODIES = {"mixed", 0, 2000, true};

static inline uint64_t checksum_of(const message *m) {
    uint64_t sum = (uint64_t)m->producer << 56 ^ m->number;
    for (uint32_t i = 0; i < m->length; i++) {
        sum = (sum ^ m->body[i]) * UINT64_C(1099511628211);
    }
    return sum;
}

static inline uint32_t write_message(message *m, uint32_t producer, uint64_t number,
                                     const bodies *kind) {
    uint64_t mixed = (number + producer + 1) * UINT64_C(0x9e3779b97f4a7c15);
    m->producer = producer;
    m->number = number;
    m->length = kind->shortest + (uint32_t)((mixed >> 33) % (kind->longest - kind->shortest));
    for (uint32_t i = 0; i < m->length; i++) {
        m->body[i] = (unsigned char)((mixed >> 40) + i * 7);
    }
    m->checksum = checksum_of(m);
    return (uint32_t)MESSAGE_HEAD + m->length;
}

/* The item for a message: in itself, in a chunk, or now and then in a segment of its own. */
static inline sq_item item_of(sq_queue *queue, const message *m, const bodies *kind) {
    uint32_t length = (uint32_t)MESSAGE_HEAD + m->length;
    if (length <= sq_inline_max(queue)) {
        return (sq_item){.body = m, .length = length, .tag = 1, .storage = SQ_INLINE};
    }
    sq_item item = {.tag = 1, .storage = SQ_IN_CHUNK};
    bool external = kind->some_external && m->number % 64 == 5;
    unsigned char *data;
    for (;;) {
        sq_status status = external ? sq_external_acquire(queue, length, &item.chunk, &data)
                                    : sq_chunk_acquire(queue, length, &item.chunk);
        if (status == SQ_OK) {
            break;
        }
        CHECK(status == SQ_NO_CHUNK);
        sq_await_chunk(queue, length, HANG_NS);
    }
    memcpy(external ? data : sq_chunk_data(queue, item.chunk), m, length);
    if (external) {
        sq_external_unmap(data, length);
    }
    sq_chunk_describe(queue, item.chunk, length, 1);
    return item;
}

/* Put n messages numbered from `first` on, waiting for room; how many went in before a shutdown. */
static inline uint32_t put_messages(sq_queue *queue, uint32_t producer, uint64_t first, uint32_t n,
                                    const bodies *kind) {
    message *messages = calloc(n, sizeof *messages);
    sq_item *items = calloc(n, sizeof *items);
    for (uint32_t i = 0; i < n; i++) {
        write_message(&messages[i], producer, first + i, kind);
        items[i] = item_of(queue, &messages[i], kind);
    }
    uint32_t done = 0;
    while (done < n) {
        uint32_t accepted;
        uint64_t start = sq_now_ns();
        sq_status status = sq_put(queue, items + done, n - done, &accepted);
        done += accepted;
        if (status == SQ_CLOSED) {
            break;
        }
        CHECK(status == SQ_OK || status == SQ_FULL);
        if (status == SQ_FULL) {
            sq_await_room(queue, HANG_NS);
            CHECK(sq_now_ns() - start < HANG_NS);
        }
    }
    for (uint32_t i = done; i < n; i++) {
        if (items[i].storage == SQ_IN_CHUNK) {
            sq_chunk_release(queue, items[i].chunk);
        }
    }
    free(items);
    free(messages);
    return done;
}

/* Copy a taken message out, check that it is whole, and give its chunk back. */
static inline void open_message(sq_queue *queue, const sq_taken *taken, message *m) {
    CHECK(taken->tag == 1 && taken->length >= MESSAGE_HEAD && taken->length <= sizeof *m);
    if (taken->storage == SQ_INLINE) {
        memcpy(m, taken->body, taken->length);
    } else {
        unsigned char *data;
        sq_status status = sq_external_map(queue, taken->chunk, taken->length, &data);
        CHECK(status == SQ_OK || status == SQ_EMPTY);
        memcpy(m, status == SQ_OK ? data : sq_chunk_data(queue, taken->chunk), taken->length);
        if (status == SQ_OK) {
            sq_external_unmap(data, taken->length);
        }
        sq_chunk_release(queue, taken->chunk);
    }
    CHECK(taken->length == MESSAGE_HEAD + m->length);
    CHECK(m->checksum == checksum_of(m));
}

/* Take one message, waiting for it; its count of deliveries. */
static inline uint32_t take_message(sq_queue *queue, message *m) {
    uint64_t space[SQ_TAKEN_WORDS];
    uint32_t count = 0;
    uint64_t start = sq_now_ns();
    for (;;) {
        sq_status status = sq_take(queue, space, 1, &count);
        if (count == 1) {
            open_message(queue, (sq_taken *)space, m);
            return ((sq_taken *)space)->deliveries;
        }
        CHECK(status == SQ_EMPTY);
        CHECK(sq_check_cursors(queue) == SQ_OK);
        sq_await_message(queue, HANG_NS);
        CHECK(sq_now_ns() - start < HANG_NS);
    }
}

#endif
