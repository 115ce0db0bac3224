#include "usage.h"

#include "slots.h"

static uint32_t count_slots_held(const sq_queue *queue) {
    uint64_t capacity = queue->segment.capacity;
    uint64_t head = sq_load_head(queue);
    uint32_t held = 0;
    if (queue->single_consumer) {
        return 0; /* the head is the acknowledgement */
    }
    for (uint64_t position = head > capacity ? head - capacity : 0; position < head; position++) {
        uint64_t sequence = atomic_load_explicit(
            &sq_segment_slot(&queue->segment, position)->sequence, memory_order_acquire);
        held += sequence < sq_sequence(queue, position + capacity, SQ_EMPTY_SLOT);
    }
    return held;
}

sq_usage sq_usage_of(const sq_queue *queue) {
    sq_usage usage = {.slots_held = count_slots_held(queue)};
    for (uint32_t size_class = 0; size_class < queue->segment.classes; size_class++) {
        uint32_t used = sq_chunks_used(queue, size_class);
        for (uint32_t index = 0; index < used; index++) {
            uint64_t word = atomic_load_explicit(
                &sq_chunk_at(queue, sq_chunk_name(size_class, index))->word, memory_order_acquire);
            usage.chunks_held += word != 0;
            usage.leases += sq_chunk_state(word) == SQ_CHUNK_LEASED;
            usage.chunk_bytes_held += word != 0 ? queue->segment.stride[size_class] : 0;
        }
    }
    return usage;
}
