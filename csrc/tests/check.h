/* What every test of the core needs: a check, a name, and a queue. */
#ifndef SQ_TESTS_CHECK_H
#define SQ_TESTS_CHECK_H

#include "queue.h"
#include "ring_words.h"
#include "wait.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define MANY (SQ_LONG ? 20u : 1u)

enum { SQ_SPSC = 3, SQ_MPSC = 2, SQ_SPMC = 1, SQ_MPMC = 0 };

static inline const char *mode_name(uint32_t mode) {
    static const char *const names[] = {"mpmc", "spmc", "mpsc", "spsc"};
    return names[mode];
}

static inline sq_options options_of(uint32_t mode, uint64_t maxsize, uint32_t capacity) {
    return (sq_options){
        .maxsize = maxsize,
        .pool_bytes = 1u << 20,
        .capacity = capacity,
        .slot_bytes = 128,
        .participants = 32,
        .mode = mode,
        .recovery_ms = 20,
        .codec = "test",
    };
}

static inline const char *fresh_name(void) {
    static char name[64];
    static unsigned number;
    snprintf(name, sizeof name, "sagequeue-ctest-%d-%u", (int)getpid(), number++);
    return name;
}

/* One message: a sequence number, a length and a checksum over the body. */
typedef struct message {
    uint32_t producer;
    uint32_t length;
    uint64_t number;
    uint64_t checksum;
    unsigned char body[2000];
} message;
#define MESSAGE_HEAD offsetof(message, body)

static inline uint64_t checksum_of(const message *m) {
    uint64_t sum = m->producer * 31u + m->number;
    for (uint32_t i = 0; i < m->length; i++) {
        sum = sum * 1099511628211u + m->body[i];
    }
    return sum;
}

static inline uint32_t write_message(message *m, uint32_t producer, uint64_t number,
                                     uint32_t largest) {
    uint64_t mixed = (number + producer) * UINT64_C(0x9e3779b97f4a7c15);
    m->producer = producer;
    m->number = number;
    m->length = largest ? (uint32_t)((mixed >> 33) % largest) : 0;
    memset(m->body, (int)(mixed >> 56), m->length);
    m->checksum = checksum_of(m);
    return (uint32_t)MESSAGE_HEAD + m->length;
}

/* Put messages numbered from `first` on, waiting for room; bodies that fit no slot go to chunks. */
static inline void put_messages(sq_queue *queue, uint32_t producer, uint64_t first, uint32_t n,
                                uint32_t largest) {
    message *messages = calloc(n, sizeof *messages);
    sq_item *items = calloc(n, sizeof *items);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = write_message(&messages[i], producer, first + i, largest);
        if (length <= sq_inline_max(queue)) {
            items[i] =
                (sq_item){.body = &messages[i], .length = length, .tag = 1, .storage = SQ_INLINE};
            continue;
        }
        uint32_t chunk;
        sq_status status;
        while ((status = sq_chunk_acquire(queue, length, &chunk)) == SQ_NO_CHUNK) {
            sq_await_chunk(queue, length, 50000000);
        }
        CHECK(status == SQ_OK);
        memcpy(sq_chunk_data(queue, chunk), &messages[i], length);
        sq_chunk_describe(queue, chunk, length, 1);
        items[i] = (sq_item){.chunk = chunk, .tag = 1, .storage = SQ_IN_CHUNK};
    }
    for (uint32_t done = 0; done < n;) {
        uint32_t accepted;
        sq_status status = sq_put(queue, items + done, n - done, &accepted);
        CHECK(status == SQ_OK || status == SQ_FULL);
        done += accepted;
        if (status == SQ_FULL) {
            sq_await_room(queue, 50000000);
        }
    }
    free(items);
    free(messages);
}

/* Check a taken message, release its chunk, and copy its head out. */
static inline message open_message(sq_queue *queue, const sq_taken *taken) {
    static _Thread_local message m;
    CHECK(taken->length >= MESSAGE_HEAD && taken->length <= sizeof m);
    if (taken->storage == SQ_INLINE) {
        memcpy(&m, taken->body, taken->length);
    } else {
        memcpy(&m, sq_chunk_data(queue, taken->chunk), taken->length);
        sq_chunk_release(queue, taken->chunk);
    }
    CHECK(taken->tag == 1 && taken->length == MESSAGE_HEAD + m.length);
    CHECK(m.checksum == checksum_of(&m));
    return m;
}

static inline uint32_t chunks_in_use(const sq_queue *queue) {
    uint32_t used = 0;
    for (uint32_t c = 0; c < queue->segment.classes; c++) {
        for (uint32_t i = 0; i < sq_segment_class(&queue->segment, c)->high_water; i++) {
            used += atomic_load(&sq_chunk_at(queue, sq_chunk_name(c, i))->word) != 0;
        }
    }
    return used;
}

static inline void leave_and_unmap(sq_queue *queue) {
    sq_queue_leave(queue);
    sq_queue_unmap(queue);
}

#endif
