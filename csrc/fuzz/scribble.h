/* A small queue whose shared memory somebody else writes to: what both fuzz targets share. */
#ifndef SQ_FUZZ_SCRIBBLE_H
#define SQ_FUZZ_SCRIBBLE_H

#include "await.h"
#include "control.h"
#include "pool.h"
#include "queue.h"
#include "recovery.h"
#include "ring.h"
#include "tasks.h"
#include "usage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The input, byte by byte; zeros behind its end. */
typedef struct input {
    const uint8_t *data;
    size_t left;
} input;

static inline uint8_t next_byte(input *in) {
    if (in->left == 0) {
        return 0;
    }
    in->left--;
    return *in->data++;
}

static inline uint64_t next_word(input *in, uint32_t bytes) {
    uint64_t word = 0;
    for (uint32_t i = 0; i < bytes; i++) {
        word |= (uint64_t)next_byte(in) << (8 * i);
    }
    return word;
}

static inline sq_options tiny_queue(uint32_t mode) {
    return (sq_options){.maxsize = 3,
                        .pool_bytes = SQ_POOL_MIN,
                        .capacity = 4,
                        .slot_bytes = 64,
                        .participants = 3,
                        .mode = mode,
                        .recovery_ms = 1,
                        .codec = "fuzz"};
}

/* In place of the kernel's locks, which would take most of the time: the input has participants
 * dead and alive as it likes. */
bool __wrap_sq_lock_is_refused(const sq_segment *segment, uint32_t byte, sq_lock_kind kind);
bool __wrap_sq_lock_is_refused(const sq_segment *segment, uint32_t byte, sq_lock_kind kind) {
    (void)kind;
    return byte < SQ_LOCK_ENTRIES ||
           (atomic_load(&sq_segment_participant(segment, byte - SQ_LOCK_ENTRIES)->identity) & 1);
}

/* One operation of a participant, whatever the memory holds; nothing it returns is trusted. */
static inline void operate(sq_queue *queue, uint8_t what, input *in) {
    static uint64_t space[8 * SQ_TAKEN_WORDS];
    static unsigned char sink[SQ_SLOT_MAX];
    uint32_t count = 0, chunk = 0, accepted;
    unsigned char body[48] = {1, 2, 3}, *data;
    switch (what % 12) {
    case 0:
    case 1: {
        sq_item item = {.body = body, .length = next_byte(in) % 49, .storage = SQ_INLINE};
        sq_put(queue, &item, 1, &accepted);
        break;
    }
    case 2: {
        uint64_t bytes = 1 + next_word(in, 2);
        if (sq_chunk_acquire(queue, bytes, &chunk) == SQ_OK) {
            memset(sq_chunk_data(queue, chunk), 7, bytes);
            sq_chunk_describe(queue, chunk, bytes, 1);
            sq_item item = {.chunk = chunk, .tag = 1, .storage = SQ_IN_CHUNK};
            if (next_byte(in) & 1) {
                sq_chunk_pin(queue, chunk);
                sq_chunk_unpin(queue, chunk);
            }
            if (sq_put(queue, &item, 1, &accepted) != SQ_OK) {
                sq_chunk_release(queue, chunk);
            }
        }
        break;
    }
    case 3:
    case 4:
    case 5: {
        uint32_t n = 1 + next_byte(in) % 4;
        sq_status status =
            what % 12 == 5 ? sq_claim(queue, space, n, &count) : sq_take(queue, space, n, &count);
        (void)status;
        for (uint32_t i = 0; i < count; i++) {
            sq_taken *taken = (sq_taken *)((unsigned char *)space + i * sq_taken_stride(queue));
            if (taken->storage == SQ_INLINE) {
                memcpy(sink, taken->body, taken->length);
                continue;
            }
            sq_status mapped = sq_external_map(queue, taken->chunk, taken->length, &data);
            if (mapped == SQ_EMPTY) {
                /* every byte that a decoder would read */
                const unsigned char *from = sq_chunk_data(queue, taken->chunk);
                for (uint64_t at = 0; at < taken->length; at += 64) {
                    sink[0] ^= from[at];
                }
            } else if (mapped == SQ_OK) {
                sq_external_unmap(data, taken->length);
            }
            switch (next_byte(in) % 3) {
            case 0:
                sq_lease_return(queue, taken->chunk);
                break;
            case 1:
                sq_lease_acknowledge(queue, taken->chunk);
                /* fall through */
            default:
                sq_chunk_release(queue, taken->chunk);
            }
        }
        queue->corrupt = false; /* go on: there is more to find */
        break;
    }
    case 6:
        sq_recover(queue, &count);
        break;
    case 7:
        sq_size(queue);
        sq_check_cursors(queue);
        sq_unfinished(queue);
        sq_usage_of(queue);
        sq_held_up_by(queue, next_byte(in) & 1);
        break;
    case 8:
        sq_task_done(queue);
        break;
    case 9:
        sq_queue_enrol_producer(queue);
        sq_queue_enrol_consumer(queue);
        sq_chunk_unpin(queue, sq_chunk_name(next_byte(in) % queue->segment.classes, 0));
        break;
    case 10:
        sq_settle_chunks(queue, next_byte(in) % 5);
        break;
    default:
        if (next_byte(in) == 255) {
            sq_shutdown(queue, next_byte(in) & 1);
        } else {
            sq_spin_message(queue, 2);
            sq_spin_room(queue, 2);
        }
    }
}

#endif
