/* What a slot's sequence word says about a position. */
#ifndef SQ_SLOTS_H
#define SQ_SLOTS_H

#include "words.h"

static inline bool sq_slot_is(const sq_queue *queue, uint64_t position, unsigned state) {
    /* acquire, pairs with write_committed, release_slots and write_tombstone: the slot's bytes are
     * ours to use; seq_cst, pairs with sq_event_prepare: a waiter that announced itself must not
     * look before that */
    uint64_t sequence = atomic_load_explicit(&sq_segment_slot(&queue->segment, position)->sequence,
                                             memory_order_seq_cst);
    return sequence == sq_sequence(queue, position, state);
}

static inline uint64_t sq_load_tail(const sq_queue *queue) {
    /* acquire, pairs with sq_put: the slots before it are reserved, or written by one producer */
    return atomic_load_explicit(&queue->header->tail, memory_order_acquire) & ~SQ_TAIL_CLOSED;
}

static inline uint64_t sq_load_head(const sq_queue *queue) {
    /* acquire, pairs with take_as_only_consumer and take_as_one_of_many */
    return atomic_load_explicit(&queue->header->head, memory_order_acquire);
}

/* Whether the slot of this position holds its message: the slot, not a chunk, then says what
 * becomes of it. */
static inline bool sq_slot_holds(const sq_queue *queue, uint64_t position) {
    uint64_t tail = sq_load_tail(queue);
    uint64_t head = sq_load_head(queue);
    if (tail - position - 1 >= queue->segment.capacity) {
        return false; /* not reserved yet, or long ago */
    }
    if (queue->single_consumer && position < head) {
        return false;
    }
    return sq_slot_is(queue, position, SQ_COMMITTED) || sq_slot_is(queue, position, SQ_REDELIVER);
}

#endif
