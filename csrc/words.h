/* Arithmetic of sequence words, intents and chunk words: no shared state is touched here. */
#ifndef SQ_WORDS_H
#define SQ_WORDS_H

#include "handle.h"

/* Off the path that every message takes, so that the compiler keeps that one together. */
#define SQ_COLD __attribute__((cold, noinline))

/* 0 leaves out what a death is settled by: only to measure what that costs. */
#ifndef SQ_RECOVERY
#define SQ_RECOVERY 1
#endif

static inline uint64_t sq_sequence(const sq_queue *queue, uint64_t position, unsigned state) {
    return (position >> queue->turn_shift) << 2 | state;
}

/* Bytes of a body that a slot can hold. */
static inline uint32_t sq_inline_max(const sq_queue *queue) {
    return queue->segment.slot_bytes - (uint32_t)sizeof(sq_slot);
}

/* An intent is a range of positions in one word: 48 bits of position, 16 of length. 0: none. */
#define SQ_INTENT_BITS 48
#define SQ_INTENT_MASK ((UINT64_C(1) << SQ_INTENT_BITS) - 1)

static inline uint64_t sq_intent(uint64_t position, uint32_t n) {
    return (position & SQ_INTENT_MASK) << 16 | n;
}
static inline uint32_t sq_intent_length(uint64_t intent) {
    uint32_t length = intent & 0xffff;
    return length < SQ_BATCH_MAX ? length : SQ_BATCH_MAX;
}
static inline bool sq_intent_covers(uint64_t intent, uint64_t position) {
    return ((position - (intent >> 16)) & SQ_INTENT_MASK) < sq_intent_length(intent);
}
/* The full position where it starts, given a cursor that is not before it. */
static inline uint64_t sq_intent_start(uint64_t intent, uint64_t cursor) {
    return cursor - ((cursor - (intent >> 16)) & SQ_INTENT_MASK);
}

#define SQ_PIN_MASK UINT64_C(0xffff0000)

static inline uint64_t sq_chunk_word(unsigned state, uint32_t participant) {
    return (uint64_t)state << 32 | participant;
}
static inline unsigned sq_chunk_state(uint64_t word) {
    return (unsigned)(word >> 32);
}
static inline uint32_t sq_chunk_holder(uint64_t word) {
    return word & 0xffff;
}
static inline uint32_t sq_chunk_pinner(uint64_t word) {
    return word >> 16 & 0xffff;
}
/* What becomes of a chunk when its message is done with: free, unless its producer pins it. */
static inline uint64_t sq_chunk_done_with(uint64_t word) {
    return sq_chunk_pinner(word) != 0 ? sq_chunk_word(SQ_CHUNK_PINNED, sq_chunk_pinner(word)) : 0;
}

/* A chunk's name: size size class << 26 | index. */
static inline uint32_t sq_chunk_name(uint32_t size_class, uint32_t index) {
    return size_class << 26 | index;
}
static inline uint32_t sq_chunk_class(uint32_t chunk) {
    return chunk >> 26;
}
static inline uint32_t sq_chunk_index(uint32_t chunk) {
    return chunk & ((1u << 26) - 1);
}
/* How many chunks of a size class have ever been used: the others are free. */
static inline uint32_t sq_chunks_used(const sq_queue *queue, uint32_t size_class) {
    /* acquire, pairs with extend: a chunk that was owned before we look is below the mark */
    uint32_t used = atomic_load_explicit(&sq_segment_class(&queue->segment, size_class)->high_water,
                                         memory_order_acquire);
    return used < queue->segment.count[size_class] ? used : queue->segment.count[size_class];
}
static inline bool sq_chunk_exists(const sq_queue *queue, uint32_t chunk) {
    uint32_t size_class = sq_chunk_class(chunk);
    return size_class < queue->segment.classes &&
           sq_chunk_index(chunk) < queue->segment.count[size_class];
}
static inline sq_chunk *sq_chunk_at(const sq_queue *queue, uint32_t chunk) {
    uint64_t index = queue->segment.first[sq_chunk_class(chunk)] + sq_chunk_index(chunk);
    return (sq_chunk *)(queue->segment.base + queue->segment.chunks_offset) + index;
}
static inline sq_participant *sq_entry_at(const sq_queue *queue, uint32_t index) {
    return sq_segment_participant(&queue->segment, index);
}

/* Read a plain field of shared memory once, so that what is used is what was checked. */
#define SQ_ONCE(field) (*(const volatile __typeof__(field) *)&(field))

static inline uint32_t sq_slot_chunk(const sq_slot *slot) {
    return *(const volatile uint32_t *)slot->body;
}

#endif
