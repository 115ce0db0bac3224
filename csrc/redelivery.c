#include "redelivery.h"

#include "control.h"
#include "slots.h"

typedef struct scan {
    sq_returned oldest;
    uint32_t count;
} scan;

static void scan_slots(const sq_queue *queue, bool all, scan *scan) {
    const sq_header *header = queue->header;
    uint64_t head = sq_load_head(queue);
    /* acquire, both: pair with widen_redelivery */
    uint64_t from = atomic_load_explicit(&header->redelivery_from, memory_order_acquire);
    uint64_t to = atomic_load_explicit(&header->redelivery_to, memory_order_acquire);
    if (head > queue->segment.capacity && from < head - queue->segment.capacity) {
        from = head - queue->segment.capacity;
    }
    to = to < head ? to : head;
    for (uint64_t position = from; position < to && (all || scan->count == 0); position++) {
        if (sq_slot_is(queue, position, SQ_REDELIVER) && scan->count++ == 0) {
            scan->oldest = (sq_returned){.position = position, .in_slot = true, .found = true};
        }
    }
}

static void scan_chunks(const sq_queue *queue, scan *scan) {
    for (uint32_t size_class = 0; size_class < queue->segment.classes; size_class++) {
        uint32_t used = sq_chunks_used(queue, size_class);
        for (uint32_t index = 0; index < used; index++) {
            uint32_t chunk = sq_chunk_name(size_class, index);
            sq_chunk *entry = sq_chunk_at(queue, chunk);
            /* acquire, pairs with settle_chunk and change_word: the chunk's place */
            uint64_t word = atomic_load_explicit(&entry->word, memory_order_acquire);
            if (sq_chunk_state(word) != SQ_CHUNK_RETURNED) {
                continue;
            }
            uint64_t position = atomic_load_explicit(&entry->place, memory_order_relaxed) - 1;
            if (scan->count++ == 0 || position < scan->oldest.position) {
                scan->oldest = (sq_returned){
                    .position = position, .word = word, .chunk = chunk, .found = true};
            }
        }
    }
}

static scan scan_returned(sq_queue *queue, bool all, bool slots_too) {
    scan scan = {0};
    uint64_t control = sq_control(queue); /* first, so that what comes later is a change again */
    if (slots_too) {
        scan_slots(queue, all, &scan);
    }
    scan_chunks(queue, &scan);
    if (scan.count == 0 && slots_too) {
        /* the end is never seen: every take is to come upon it. relaxed: see sq_control_changed */
        atomic_store_explicit(&queue->control_seen, control & ~(uint64_t)SQ_SHUTDOWN_IMMEDIATE,
                              memory_order_relaxed);
    }
    return scan;
}

sq_returned sq_find_returned(sq_queue *queue, bool slots_too) {
    return scan_returned(queue, false, slots_too).oldest;
}

uint32_t sq_count_returned(sq_queue *queue) {
    return scan_returned(queue, true, true).count;
}
