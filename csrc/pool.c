/* The lowest free chunk is preferred, which keeps the memory in use small and warm. */
#include "pool.h"

#include "control.h"
#include "wait.h"

#include <errno.h>
#include <stdio.h>

#define CLASSES_TO_TRY 3u /* a message may take a chunk up to four times its size */

uint64_t sq_chunk_largest(const sq_queue *queue) {
    return queue->segment.chunk_bytes[queue->segment.classes - 1];
}

unsigned char *sq_chunk_data(const sq_queue *queue, uint32_t chunk) {
    uint32_t size_class = sq_chunk_class(chunk);
    return queue->segment.base + queue->segment.data_offset[size_class] +
           queue->segment.stride[size_class] * sq_chunk_index(chunk);
}

static sq_status back_data(sq_queue *queue, uint32_t chunk, uint64_t bytes) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    if (entry->backed >= bytes) {
        return SQ_OK;
    }
    uint64_t offset = (uint64_t)(sq_chunk_data(queue, chunk) - queue->segment.base);
    sq_status status = sq_segment_back(&queue->segment, offset, bytes);
    if (status == SQ_OK) {
        entry->backed = bytes;
    }
    return status;
}

static bool try_own(sq_queue *queue, uint32_t chunk) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    /* relaxed: the CAS acquires */
    uint64_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    /* acquire, pairs with change_word, sq_chunk_unpin and settle_chunk: the former holder's reads
     * and writes of the chunk are over */
    return word == 0 && atomic_compare_exchange_strong_explicit(
                            &entry->word, &word, sq_chunk_word(SQ_CHUNK_OWNED, queue->id),
                            memory_order_acquire, memory_order_relaxed);
}

/* Raise the high-water mark by one, with memory behind the new descriptor. The mark goes up
 * before the chunk is owned, so recovery, which looks below it, sees every owned chunk. */
static sq_status extend(sq_queue *queue, uint32_t size_class, uint32_t index) {
    sq_chunk *entry = sq_chunk_at(queue, sq_chunk_name(size_class, index));
    uint64_t offset = (uint64_t)((unsigned char *)entry - queue->segment.base);
    sq_status status = sq_segment_back(&queue->segment, offset, sizeof *entry);
    if (status == SQ_OK) {
        /* release, pairs with sq_chunks_used; seq_cst costs nothing here */
        atomic_compare_exchange_strong_explicit(
            &sq_segment_class(&queue->segment, size_class)->high_water, &index, index + 1,
            memory_order_seq_cst, memory_order_relaxed);
    }
    return status;
}

static sq_status acquire_in_class(sq_queue *queue, uint32_t size_class, uint64_t bytes,
                                  uint32_t *chunk) {
    sq_class *shared = sq_segment_class(&queue->segment, size_class);
    uint32_t count = queue->segment.count[size_class];
    for (;;) {
        /* relaxed, like the hint: try_own looks at the chunk itself */
        uint32_t used = atomic_load_explicit(&shared->high_water, memory_order_relaxed);
        used = used < count ? used : count;
        uint32_t hint = atomic_load_explicit(&shared->hint, memory_order_relaxed);
        hint = hint < used ? hint : 0;
        for (uint32_t step = 0; step < used; step++) {
            uint32_t index = hint + step < used ? hint + step : hint + step - used;
            if (try_own(queue, sq_chunk_name(size_class, index))) {
                atomic_store_explicit(&shared->hint, index + 1, memory_order_relaxed);
                *chunk = sq_chunk_name(size_class, index);
                sq_chunk *entry = sq_chunk_at(queue, *chunk);
                entry->external = 0;
                entry->deliveries = 0;
                sq_status status = back_data(queue, *chunk, bytes);
                if (status != SQ_OK) {
                    sq_chunk_release(queue, *chunk);
                }
                return status;
            }
        }
        if (used == count) {
            return SQ_NO_CHUNK;
        }
        sq_status status = extend(queue, size_class, used);
        if (status != SQ_OK) {
            return status;
        }
    }
}

/* The size classes that a body may go to: [first, end). */
typedef struct classes {
    uint32_t first, end;
} classes;

static classes classes_for(const sq_queue *queue, uint64_t bytes) {
    uint32_t first = SQ_FIRST_CLASS;
    while (first < queue->segment.classes && queue->segment.chunk_bytes[first] < bytes) {
        first++;
    }
    uint32_t end = first + CLASSES_TO_TRY;
    return (classes){first, end < queue->segment.classes ? end : queue->segment.classes};
}

sq_status sq_chunk_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk) {
    classes range = classes_for(queue, bytes);
    sq_status status = SQ_NO_CHUNK;
    for (uint32_t c = range.first; c < range.end && status == SQ_NO_CHUNK; c++) {
        status = acquire_in_class(queue, c, bytes, chunk);
    }
    return status;
}

static bool is_free_in_class(const sq_queue *queue, uint32_t size_class) {
    uint32_t used = sq_chunks_used(queue, size_class);
    for (uint32_t index = 0; index < used; index++) {
        sq_chunk *entry = sq_chunk_at(queue, sq_chunk_name(size_class, index));
        /* seq_cst, pairs with sq_event_prepare: a waiter looks after it announced itself */
        if (atomic_load_explicit(&entry->word, memory_order_seq_cst) == 0) {
            return true;
        }
    }
    return used < queue->segment.count[size_class];
}

bool sq_chunk_is_free(const sq_queue *queue, uint64_t bytes) {
    classes range = classes_for(queue, bytes);
    for (uint32_t c = range.first; c < range.end; c++) {
        if (is_free_in_class(queue, c)) {
            return true;
        }
    }
    return false;
}

bool sq_copy_is_free(const sq_queue *queue) {
    return is_free_in_class(queue, SQ_COPIES);
}

sq_status sq_copy_acquire(sq_queue *queue, uint32_t *chunk) {
    return acquire_in_class(queue, SQ_COPIES, sq_inline_max(queue), chunk);
}

void sq_chunk_describe(sq_queue *queue, uint32_t chunk, uint64_t length, uint8_t tag) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    entry->length = length;
    entry->tag = tag;
}

static void external_name(const sq_queue *queue, uint64_t number, char name[SQ_FILE_NAME_MAX]) {
    snprintf(name, SQ_FILE_NAME_MAX, "%s.%016llx-%llx", queue->file_name,
             (unsigned long long)queue->segment.birth, (unsigned long long)number);
}

static void unlink_external(const sq_queue *queue, const sq_chunk *entry) {
    uint64_t external = SQ_ONCE(entry->external);
    if (external != 0) {
        char name[SQ_FILE_NAME_MAX];
        external_name(queue, external, name);
        sq_segment_unlink(name);
    }
}

static void drop_external(const sq_queue *queue, sq_chunk *entry) {
    unlink_external(queue, entry);
    entry->external = 0;
}

void sq_external_drop_all(sq_queue *queue) {
    for (uint32_t size_class = 0; size_class < queue->segment.classes; size_class++) {
        uint32_t used = sq_chunks_used(queue, size_class);
        for (uint32_t index = 0; index < used; index++) {
            /* it stays on record: a lease on it must not take the chunk for its body */
            unlink_external(queue, sq_chunk_at(queue, sq_chunk_name(size_class, index)));
        }
    }
}

/* Replace the word of a chunk of this holder: ourselves, or a dead one whose recoverer we are. A
 * CAS, because its producer may unpin it at any time. Returns the former word; 0: it is not the
 * holder's. */
static uint64_t change_word(sq_queue *queue, uint32_t chunk, uint32_t holder,
                            uint64_t (*next)(uint64_t word)) {
    _Atomic uint64_t *shared = &sq_chunk_at(queue, chunk)->word;
    /* relaxed: if it is ours, we wrote the word, and a dead one's was acquired by settle_chunk */
    uint64_t word = atomic_load_explicit(shared, memory_order_relaxed);
    /* seq_cst, pairs with try_own and claim_returned: the holder's use of the chunk is over before
     * another may have it, and that before the load that asks whether anybody waits for it */
    while (sq_chunk_holder(word) == holder) {
        if (atomic_compare_exchange_weak_explicit(shared, &word, next(word), memory_order_seq_cst,
                                                  memory_order_relaxed)) {
            return word;
        }
    }
    return 0;
}

static uint64_t pinned_by_holder(uint64_t word) {
    return (word & SQ_PIN_MASK) | sq_chunk_word(SQ_CHUNK_PINNED, sq_chunk_holder(word));
}

static uint64_t returned_by_holder(uint64_t word) {
    return (word & SQ_PIN_MASK) | sq_chunk_word(SQ_CHUNK_RETURNED, 0);
}

static uint64_t pinned_too(uint64_t word) {
    return word | (uint64_t)sq_chunk_holder(word) << 16;
}

void sq_lease_acknowledge(sq_queue *queue, uint32_t chunk) {
    change_word(queue, chunk, queue->id, pinned_by_holder);
}

void sq_lease_return(sq_queue *queue, uint32_t chunk) {
    if (change_word(queue, chunk, queue->id, returned_by_holder) != 0) {
        sq_announce_returned(queue);
    }
}

void sq_chunk_pin(sq_queue *queue, uint32_t chunk) {
    change_word(queue, chunk, queue->id, pinned_too);
}

static void announce_free(sq_queue *queue, uint32_t chunk) {
    /* relaxed: the hint is only advice */
    sq_class *size_class = sq_segment_class(&queue->segment, sq_chunk_class(chunk));
    if (sq_chunk_index(chunk) < atomic_load_explicit(&size_class->hint, memory_order_relaxed)) {
        atomic_store_explicit(&size_class->hint, sq_chunk_index(chunk), memory_order_relaxed);
    }
    /* all: they wait for chunks of different sizes */
    sq_event_notify(&queue->header->chunk_free, INT32_MAX);
}

static void free_held(sq_queue *queue, uint32_t chunk, uint32_t holder) {
    uint64_t word = change_word(queue, chunk, holder, sq_chunk_done_with);
    if (word != 0 && sq_chunk_pinner(word) == 0) {
        announce_free(queue, chunk);
    }
}

void sq_chunk_release(sq_queue *queue, uint32_t chunk) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    if (SQ_ONCE(entry->external) != 0) {
        /* mark the message as done with before its body is removed, so that no consumer is given a
         * message without a body */
        if (change_word(queue, chunk, queue->id, pinned_by_holder) == 0) {
            return;
        }
        drop_external(queue, entry);
    }
    free_held(queue, chunk, queue->id);
}

void sq_chunk_settle(sq_queue *queue, uint32_t chunk, uint32_t holder) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    /* first make sure that it is the holder's still: from its slot a consumer may have leased it */
    if (change_word(queue, chunk, holder, pinned_by_holder) == 0) {
        return;
    }
    drop_external(queue, entry);
    /* Its slot may be written again, and its next owner may die before it gave the chunk a place,
     * so it must not have this one. relaxed: the word releases it */
    atomic_store_explicit(&entry->place, 0, memory_order_relaxed);
    free_held(queue, chunk, holder);
}

void sq_chunk_unpin(sq_queue *queue, uint32_t chunk) {
    _Atomic uint64_t *shared = &sq_chunk_at(queue, chunk)->word;
    /* relaxed: if it is pinned by us, we wrote that */
    uint64_t word = atomic_load_explicit(shared, memory_order_relaxed);
    while (sq_chunk_pinner(word) == queue->id) {
        /* release, pairs with try_own: we have looked at it for the last time */
        if (atomic_compare_exchange_weak_explicit(shared, &word, word & ~SQ_PIN_MASK,
                                                  memory_order_release, memory_order_relaxed)) {
            return;
        }
    }
    if (sq_chunk_state(word) == SQ_CHUNK_PINNED) {
        sq_chunk_release(queue, chunk); /* its consumer was done before, and left it to us */
    }
}

sq_status sq_external_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk,
                              unsigned char **data) {
    sq_status status = sq_chunk_acquire(queue, 1, chunk);
    if (status != SQ_OK) {
        return status;
    }
    char name[SQ_FILE_NAME_MAX];
    /* relaxed: only that no two are the same matters */
    uint64_t number =
        atomic_fetch_add_explicit(&queue->header->external_segments, 1, memory_order_relaxed) + 1;
    /* on record before it exists: if we die, the recoverer that frees the chunk removes it, too */
    sq_chunk_at(queue, *chunk)->external = number;
    external_name(queue, number, name);
    status = sq_external_create(name, bytes, data);
    if (status != SQ_OK) {
        int error = errno;
        sq_chunk_release(queue, *chunk);
        errno = error;
    }
    return status;
}

sq_status sq_external_map(sq_queue *queue, uint32_t chunk, uint64_t bytes, unsigned char **data) {
    uint64_t number = SQ_ONCE(sq_chunk_at(queue, chunk)->external);
    if (number == 0) {
        return bytes <= queue->segment.chunk_bytes[sq_chunk_class(chunk)] ? SQ_EMPTY : SQ_CORRUPT;
    }
    char name[SQ_FILE_NAME_MAX];
    external_name(queue, number, name);
    sq_status status = sq_external_open(name, bytes, data);
    return status == SQ_CORRUPT && (sq_control(queue) & SQ_REMOVED) ? SQ_GONE : status;
}
