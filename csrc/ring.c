/* The ring: D. Vyukov's bounded queue (1024cores) with turns, so that all-zero slots are empty
 * ones, and with four cases that differ only in how a cursor moves:
 *
 *   one producer:   write slots, then advance the tail: nothing is ever reserved and unwritten
 *   many producers: reserve by CAS of the tail, write, commit each slot by its sequence word
 *   one consumer:   read slots, then advance the head: the head is the acknowledgement
 *   many consumers: claim by CAS of the head, read, release each slot by its sequence word
 *
 * Between a CAS and its commit or release, the participant's intent says what is in flight; it is
 * published before the CAS and withdrawn after, so the owner of such a slot is always known.
 */
#include "ring.h"

#include "control.h"
#include "participant.h"
#include "pool.h"
#include "recovery.h"
#include "redelivery.h"
#include "slots.h"
#include "wait.h"

#include <string.h>

#define CURSOR_READS_MAX 100u /* before a size is given that may be a little off */

/* ---- intents ---- */

static void publish(_Atomic uint64_t *intent, uint64_t value) {
    if (SQ_RECOVERY) {
        /* relaxed: the CAS that follows releases it. Pairs with sq_intended_by and
         * settle_reservations, which read the cursor first: who sees the CAS's effect sees the
         * intent */
        atomic_store_explicit(intent, value, memory_order_relaxed);
    }
}

static void withdraw(_Atomic uint64_t *intent) {
    if (SQ_RECOVERY) {
        /* release, pairs with sq_intended_by: who sees the intent withdrawn sees the slots settled
         */
        atomic_store_explicit(intent, 0, memory_order_release);
    }
}

/* Put on a chunk's record which message it is. */
static void set_place(sq_chunk *entry, uint64_t position) {
    if (SQ_RECOVERY) {
        /* relaxed: the slot's sequence word, or the chunk's own, releases it. Pairs with
         * settle_chunk */
        atomic_store_explicit(&entry->place, position + 1, memory_order_relaxed);
    }
}

/* ---- what can be reserved, what can be claimed ---- */

/* Whether a slot at or behind the tail may be written. One producer commits slots before it
 * moves the tail: if it died in between, they look committed and yet were never put. */
static bool slot_is_free(const sq_queue *queue, uint64_t position) {
    return sq_slot_is(queue, position, SQ_EMPTY_SLOT) ||
           (queue->single_producer && sq_slot_is(queue, position, SQ_COMMITTED));
}

/* Cursors are cached, because reading one takes its cache line from the side that moves it. Threads
 * of the process share the caches. */
static uint64_t load_cached_cursor(const _Atomic uint64_t *cache) {
    /* acquire, pairs with refresh_cursor of another thread: what that one acquired is ours, too */
    return atomic_load_explicit(cache, memory_order_acquire);
}

static uint64_t refresh_cursor(_Atomic uint64_t *cache, const _Atomic uint64_t *cursor) {
    /* acquire, pairs with the CAS in sq_put and with take_as_only_consumer: slots on the far side
     * of the cursor were written, or read, before it moved; seq_cst, as in sq_slot_is */
    uint64_t value = atomic_load_explicit(cursor, memory_order_seq_cst) & ~SQ_TAIL_CLOSED;
    /* release, pairs with load_cached_cursor */
    atomic_store_explicit(cache, value, memory_order_release);
    return value;
}

/* What waits to be delivered again counts for a maxsize, too. */
SQ_COLD static uint64_t limit_beside_returned(sq_queue *queue) {
    uint64_t returned = sq_count_returned(queue);
    return returned < queue->limit ? queue->limit - returned : 0;
}

static inline uint64_t limit_of(sq_queue *queue) {
    return queue->bounded && sq_control_changed(queue) ? limit_beside_returned(queue)
                                                       : queue->limit;
}

/* How many of n positions from `tail` on can be reserved. */
static uint32_t room_at(sq_queue *queue, uint64_t tail, uint32_t n) {
    uint64_t limit = limit_of(queue);
    uint64_t waiting = tail - load_cached_cursor(&queue->head_cache);
    if ((int64_t)waiting < 0 || waiting + n > limit) {
        waiting = tail - refresh_cursor(&queue->head_cache, &queue->header->head);
        if ((int64_t)waiting < 0) {
            return 0; /* the tail we know is old */
        }
        if (waiting >= limit) {
            return 0;
        }
        uint64_t room = limit - waiting;
        n = room < n ? (uint32_t)room : n;
    }
    if (!queue->single_consumer) {
        for (uint32_t i = 0; i < n; i++) {
            if (!slot_is_free(queue, tail + i)) {
                return i; /* claimed in its former turn and not yet released */
            }
        }
    }
    return n;
}

/* How many of n positions from `head` on can be claimed: committed ones and tombstones. */
static uint32_t committed_at(sq_queue *queue, uint64_t head, uint32_t n) {
    if (queue->single_producer) {
        uint64_t waiting = load_cached_cursor(&queue->tail_cache) - head;
        if ((int64_t)waiting < (int64_t)n) {
            /* The slot says whether the tail is worth a look: the producer works on that line. */
            uint64_t next = (int64_t)waiting > 0 ? head + waiting : head;
            if (sq_slot_is(queue, next, SQ_COMMITTED)) {
                waiting = refresh_cursor(&queue->tail_cache, &queue->header->tail) - head;
            }
        }
        if ((int64_t)waiting <= 0) {
            return 0;
        }
        return waiting < n ? (uint32_t)waiting : n;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!sq_slot_is(queue, head + i, SQ_COMMITTED) &&
            !sq_slot_is(queue, head + i, SQ_TOMBSTONE)) {
            return i;
        }
    }
    return n;
}

/* ---- put ---- */

/* Memory behind slots that were never used before (see sq_segment_back), and behind the next one,
 * which a consumer looks at when it has taken these. */
static sq_status back_slots(sq_queue *queue, uint64_t position, uint32_t n) {
    uint64_t capacity = queue->segment.capacity;
    uint64_t slot_bytes = queue->segment.slot_bytes;
    uint64_t ahead = (256u << 10) / slot_bytes;
    uint64_t wanted = position + n + 1 < capacity ? position + n + 1 : capacity;
    /* acquire, pairs with the CAS below: the memory was there before the count said so */
    uint64_t backed = atomic_load_explicit(&queue->header->slots_backed, memory_order_acquire);
    if (wanted * slot_bytes > backed) {
        wanted = wanted + ahead < capacity ? wanted + ahead : capacity;
        sq_status status =
            sq_segment_back(&queue->segment, queue->segment.slots_offset, wanted * slot_bytes);
        if (status != SQ_OK) {
            return status;
        }
        while (backed < wanted * slot_bytes &&
               !atomic_compare_exchange_weak_explicit(&queue->header->slots_backed, &backed,
                                                      wanted * slot_bytes, memory_order_acq_rel,
                                                      memory_order_acquire)) {
        }
        backed = wanted * slot_bytes;
    }
    queue->backed = backed >= capacity * slot_bytes ? UINT64_MAX : backed / slot_bytes;
    return SQ_OK;
}

static void write_slot(sq_queue *queue, uint64_t position, const sq_item *item) {
    sq_slot *slot = sq_segment_slot(&queue->segment, position);
    slot->length = item->length;
    slot->tag = item->tag;
    slot->storage = item->storage;
    slot->deliveries = 0;
    if (item->storage == SQ_INLINE) {
        memcpy(slot->body, item->body, item->length);
    } else {
        memcpy(slot->body, &item->chunk, sizeof item->chunk);
        set_place(sq_chunk_at(queue, item->chunk), position);
    }
}

static void write_committed(sq_queue *queue, uint64_t position, const sq_item *items, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        write_slot(queue, position + i, items + i);
        /* release, pairs with sq_slot_is: who sees the slot committed sees its bytes */
        atomic_store_explicit(&sq_segment_slot(&queue->segment, position + i)->sequence,
                              sq_sequence(queue, position + i, SQ_COMMITTED), memory_order_release);
    }
}

/* A producer that committed behind our positions before we did woke consumers that found a hole and
 * went back to sleep: then everybody is called.
 *
 * A consumer that announces itself either sees the slot committed or is seen here. With many
 * producers the last slot is committed by a seq_cst exchange. With one, a release store of the slot
 * is followed by the seq_cst CAS of the tail: C11 alone does not order that store before the load
 * of the event, but both machines do (x86: the CAS drains the store buffer; aarch64: a load-acquire
 * is not done before an earlier store-release). */
static void notify_committed(sq_queue *queue, uint64_t position, uint32_t n) {
    if (sq_event_awaited(&queue->header->not_empty)) {
        bool more = sq_slot_is(queue, position + n, SQ_COMMITTED);
        sq_event_wake(&queue->header->not_empty, more ? INT32_MAX : n);
    }
}

sq_status sq_put(sq_queue *queue, const sq_item *items, uint32_t n, uint32_t *accepted) {
    sq_header *header = queue->header;
    /* relaxed, here and when it has moved: the CAS decides whether it is right */
    uint64_t tail = atomic_load_explicit(&header->tail, memory_order_relaxed);
    uint32_t room;
    *accepted = 0;
    n = n < SQ_BATCH_MAX ? n : SQ_BATCH_MAX;
    n = n < queue->limit ? n : (uint32_t)queue->limit;
    for (;;) {
        if (tail & SQ_TAIL_CLOSED) {
            return SQ_CLOSED;
        }
        if (tail + n >= queue->backed) {
            sq_status status = back_slots(queue, tail, n);
            if (status != SQ_OK) {
                return status;
            }
        }
        room = room_at(queue, tail, n);
        if (room == 0) {
            uint64_t now = atomic_load_explicit(&header->tail, memory_order_relaxed);
            if (now != tail) {
                tail = now;
                continue;
            }
            return sq_check_cursors(queue) == SQ_OK ? SQ_FULL : SQ_CORRUPT;
        }
        if (queue->single_producer) {
            write_committed(queue, tail, items, room);
        } else {
            publish(&queue->self->put_intent, sq_intent(tail, room));
        }
        /* seq_cst: releases the intent or the slots, pairs with refresh_cursor and
         * settle_reservations; stands before the load in notify_committed. A CAS, because a
         * shutdown sets the closed bit. */
        if (atomic_compare_exchange_strong_explicit(&header->tail, &tail, tail + room,
                                                    memory_order_seq_cst, memory_order_relaxed)) {
            break;
        }
        /* a stale intent would shield a position that another one reserved and died on */
        publish(&queue->self->put_intent, 0);
    }
    if (!queue->single_producer) {
        write_committed(queue, tail, items, room - 1);
        write_slot(queue, tail + room - 1, items + room - 1);
        /* seq_cst exchange: releases the last slot, pairs with sq_slot_is; stands before the load
         * in notify_committed */
        atomic_exchange_explicit(&sq_segment_slot(&queue->segment, tail + room - 1)->sequence,
                                 sq_sequence(queue, tail + room - 1, SQ_COMMITTED),
                                 memory_order_seq_cst);
        withdraw(&queue->self->put_intent);
    }
    *accepted = room;
    notify_committed(queue, tail, room);
    return SQ_OK;
}

/* ---- take ---- */

static sq_taken *taken_at(const sq_queue *queue, void *taken, uint32_t i) {
    return (sq_taken *)((unsigned char *)taken + i * sq_taken_stride(queue));
}

/* Lease the chunk a slot names to us. Its word is no longer the producer's: from here on the
 * lease is the message, and the slot may go. */
static inline sq_status lease(sq_queue *queue, uint32_t chunk, uint64_t position, sq_taken *taken) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    /* relaxed: acquired with the slot's sequence word, or by claim_returned */
    uint64_t word = atomic_load_explicit(&entry->word, memory_order_relaxed);
    unsigned state = sq_chunk_state(word);
    uint64_t room = queue->segment.chunk_bytes[sq_chunk_class(chunk)];
    taken->chunk = chunk;
    taken->length = SQ_ONCE(entry->length);
    taken->tag = entry->tag;
    taken->storage = SQ_IN_CHUNK;
    if ((state != SQ_CHUNK_OWNED && state != SQ_CHUNK_LEASED) ||
        (SQ_ONCE(entry->external) == 0 && taken->length > room)) {
        return SQ_CORRUPT;
    }
    entry->deliveries = taken->deliveries;
    set_place(entry, position);
    uint64_t leased = sq_chunk_word(SQ_CHUNK_LEASED, queue->id);
    if (sq_chunk_pinner(word) == 0) {
        /* release, pairs with drop_pin: the recoverer sees the place */
        atomic_store_explicit(&entry->word, leased, memory_order_release);
        return SQ_OK;
    }
    /* a CAS: its producer may unpin it at any time */
    while (!atomic_compare_exchange_weak_explicit(&entry->word, &word,
                                                  (word & SQ_PIN_MASK) | leased,
                                                  memory_order_release, memory_order_relaxed)) {
    }
    return SQ_OK;
}

/* Chunks for the bodies of slots that are claimed to be leased. */
typedef struct copies {
    uint32_t chunks[SQ_CLAIM_MAX];
    uint32_t count;
    uint32_t used;
} copies;

/* Lease a copy of a body, in a chunk that we own. */
static __attribute__((noinline)) void lease_copy(sq_queue *queue, uint32_t chunk, const void *body,
                                                 sq_taken *taken) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    memcpy(sq_chunk_data(queue, chunk), body, taken->length);
    sq_chunk_describe(queue, chunk, taken->length, taken->tag);
    entry->deliveries = taken->deliveries;
    taken->chunk = chunk;
    taken->storage = SQ_IN_CHUNK;
    set_place(entry, taken->position);
    /* release, pairs with drop_pin: who finds the lease finds all of the message in it */
    atomic_store_explicit(&entry->word, sq_chunk_word(SQ_CHUNK_LEASED, queue->id),
                          memory_order_release);
}

sq_status sq_lease_taken(sq_queue *queue, sq_taken *taken) {
    uint32_t chunk;
    if (taken->storage == SQ_IN_CHUNK) {
        return SQ_OK;
    }
    sq_status status = sq_copy_acquire(queue, &chunk);
    if (status == SQ_OK) {
        lease_copy(queue, chunk, taken->body, taken);
    }
    return status;
}

/* Copy a claimed slot out, or lease what it holds. Every field is checked before it is used. */
static inline sq_status read_slot(sq_queue *queue, uint64_t position, sq_taken *taken,
                                  copies *copies) {
    const sq_slot *slot = sq_segment_slot(&queue->segment, position);
    uint8_t storage = SQ_ONCE(slot->storage);
    taken->position = position;
    taken->deliveries = slot->deliveries;
    if (storage == SQ_INLINE) {
        uint32_t length = SQ_ONCE(slot->length);
        if (length > sq_inline_max(queue)) {
            return SQ_CORRUPT;
        }
        taken->length = length;
        taken->tag = slot->tag;
        taken->storage = SQ_INLINE;
        if (copies != NULL) {
            lease_copy(queue, copies->chunks[copies->used++], slot->body, taken);
        } else {
            memcpy(taken->body, slot->body, length);
        }
        return SQ_OK;
    }
    uint32_t chunk = sq_slot_chunk(slot);
    if (storage != SQ_IN_CHUNK || !sq_chunk_exists(queue, chunk)) {
        return SQ_CORRUPT;
    }
    return lease(queue, chunk, position, taken);
}

/* Read n claimed positions, skipping tombstones; the number read, or the first error. */
static sq_status read_claimed(sq_queue *queue, uint64_t head, uint32_t n, void *taken,
                              uint32_t *count, copies *copies) {
    sq_status result = SQ_OK;
    for (uint32_t i = 0; i < n; i++) {
        if (!queue->single_producer && sq_slot_is(queue, head + i, SQ_TOMBSTONE)) {
            continue;
        }
        sq_status status = read_slot(queue, head + i, taken_at(queue, taken, *count), copies);
        if (status == SQ_OK) {
            ++*count;
        } else {
            result = status;
        }
    }
    return result;
}

static void release_slots(sq_queue *queue, uint64_t head, uint32_t n) {
    uint64_t next_turn = UINT64_C(1) << queue->turn_shift;
    for (uint32_t i = 0; i < n; i++) {
        _Atomic uint64_t *sequence = &sq_segment_slot(&queue->segment, head + i)->sequence;
        uint64_t empty = sq_sequence(queue, head + i + next_turn, SQ_EMPTY_SLOT);
        if (i + 1 < n) {
            /* release, pairs with sq_slot_is in room_at: we have read the slot before a producer
             * may write it */
            atomic_store_explicit(sequence, empty, memory_order_release);
        } else {
            /* seq_cst exchange: the same, and it stands before the load in notify_released */
            atomic_exchange_explicit(sequence, empty, memory_order_seq_cst);
        }
    }
}

/* As notify_committed does: a consumer that released behind our positions before we did woke
 * producers that found no room. */
static void notify_released(sq_queue *queue, uint64_t position, uint32_t n) {
    if (sq_event_awaited(&queue->header->not_full)) {
        uint64_t next = position + n + queue->segment.capacity;
        bool more = !queue->single_consumer && sq_slot_is(queue, next, SQ_EMPTY_SLOT);
        sq_event_wake(&queue->header->not_full, more ? INT32_MAX : n);
    }
}

/* With one producer the tail alone says what was put; with many, every slot says it for itself. */
static bool overrun(const sq_queue *queue, uint64_t head) {
    return queue->single_producer &&
           load_cached_cursor(&queue->tail_cache) - head > queue->segment.capacity;
}

static sq_status take_as_only_consumer(sq_queue *queue, void *taken, uint32_t n, uint32_t *count,
                                       copies *copies) {
    sq_header *header = queue->header;
    /* relaxed: only we move it */
    uint64_t head = atomic_load_explicit(&header->head, memory_order_relaxed);
    uint32_t claimed = committed_at(queue, head, n);
    if (claimed == 0) {
        return SQ_EMPTY;
    }
    if (overrun(queue, head)) {
        return SQ_CORRUPT;
    }
    sq_status status = read_claimed(queue, head, claimed, taken, count, copies);
    /* seq_cst exchange: releases the slots, pairs with refresh_cursor in room_at; stands before the
     * load in notify_released */
    atomic_exchange_explicit(&header->head, head + claimed, memory_order_seq_cst);
    notify_released(queue, head, claimed);
    return status;
}

static sq_status take_as_one_of_many(sq_queue *queue, void *taken, uint32_t n, uint32_t *count,
                                     copies *copies) {
    sq_header *header = queue->header;
    /* relaxed, here and when it has moved: the CAS decides whether it is right */
    uint64_t head = atomic_load_explicit(&header->head, memory_order_relaxed);
    uint32_t claimed;
    for (;;) {
        claimed = committed_at(queue, head, n);
        if (claimed == 0) {
            uint64_t now = atomic_load_explicit(&header->head, memory_order_relaxed);
            if (now == head) {
                return SQ_EMPTY;
            }
            head = now;
            continue;
        }
        publish(&queue->self->take_intent, sq_intent(head, claimed));
        /* acq_rel: releases the intent, pairs with settle_claims; that the slots are readable was
         * acquired from them */
        if (atomic_compare_exchange_strong_explicit(&header->head, &head, head + claimed,
                                                    memory_order_acq_rel, memory_order_relaxed)) {
            break;
        }
        publish(&queue->self->take_intent, 0);
    }
    sq_status status = overrun(queue, head)
                           ? SQ_CORRUPT
                           : read_claimed(queue, head, claimed, taken, count, copies);
    release_slots(queue, head, claimed);
    withdraw(&queue->self->take_intent);
    notify_released(queue, head, claimed);
    return status;
}

/* ---- messages to deliver again ---- */

/* Claim it; false when another consumer was faster. */
static bool claim_returned(sq_queue *queue, sq_returned *message) {
    if (!message->in_slot) {
        sq_chunk *entry = sq_chunk_at(queue, message->chunk);
        uint64_t word = message->word;
        uint64_t leased = (word & SQ_PIN_MASK) | sq_chunk_word(SQ_CHUNK_LEASED, queue->id);
        /* acquire, pairs with change_word and settle_chunk: the former holder's use of the chunk is
         * over; seq_cst: before the load that asks who waits for room */
        if (!atomic_compare_exchange_strong_explicit(&entry->word, &word, leased,
                                                     memory_order_seq_cst, memory_order_relaxed)) {
            return false;
        }
        /* again, for the same word may be another message's by now. relaxed: the word acquired it
         */
        message->position = atomic_load_explicit(&entry->place, memory_order_relaxed) - 1;
        return true;
    }
    uint64_t sequence = sq_sequence(queue, message->position, SQ_REDELIVER);
    publish(&queue->self->take_intent, sq_intent(message->position, 1));
    /* acq_rel: releases the intent, acquires the slot's bytes; pairs with settle_claims */
    if (atomic_compare_exchange_strong_explicit(
            &sq_segment_slot(&queue->segment, message->position)->sequence, &sequence,
            sq_sequence(queue, message->position, SQ_COMMITTED), memory_order_acq_rel,
            memory_order_relaxed)) {
        return true;
    }
    withdraw(&queue->self->take_intent);
    return false;
}

static uint16_t once_more(uint16_t deliveries) {
    return deliveries < UINT16_MAX ? deliveries + 1 : deliveries;
}

SQ_COLD static sq_status take_returned(sq_queue *queue, sq_taken *taken, uint32_t *count,
                                       copies *copies) {
    for (;;) {
        /* without a copy to make of a slot's body, there are still chunks: some may be copies of
         * the dead, which keep us from having one */
        sq_returned message = sq_find_returned(queue, copies == NULL || copies->count > 0);
        if (!message.found) {
            return SQ_EMPTY;
        }
        if (!claim_returned(queue, &message)) {
            continue;
        }
        sq_status status;
        if (message.in_slot) {
            sq_slot *slot = sq_segment_slot(&queue->segment, message.position);
            slot->deliveries = once_more(slot->deliveries);
            status = read_slot(queue, message.position, taken, copies);
            release_slots(queue, message.position, 1);
            withdraw(&queue->self->take_intent);
            notify_released(queue, message.position, 1);
        } else {
            taken->position = message.position;
            taken->deliveries = once_more(sq_chunk_at(queue, message.chunk)->deliveries);
            status = lease(queue, message.chunk, message.position, taken);
            if (queue->bounded) {
                sq_event_notify(&queue->header->not_full, 1);
            }
        }
        *count = status == SQ_OK;
        return status;
    }
}

/* Whether the slot at a cursor blocks the queue for good: it is below the tail but not committed
 * (below the head but not released), and in no participant's intent. */
static bool slot_is_stuck(const sq_queue *queue, uint64_t position, bool taking) {
    _Atomic uint64_t *word = &sq_segment_slot(&queue->segment, position)->sequence;
    uint64_t next_turn = UINT64_C(1) << queue->turn_shift;
    /* acquire, pairs with write_committed and release_slots */
    uint64_t sequence = atomic_load_explicit(word, memory_order_acquire);
    bool settled = taking
                       ? sequence == sq_sequence(queue, position + next_turn, SQ_EMPTY_SLOT) ||
                             sequence == sq_sequence(queue, position + next_turn, SQ_COMMITTED) ||
                             sequence == sq_sequence(queue, position, SQ_REDELIVER)
                       : sequence == sq_sequence(queue, position, SQ_COMMITTED) ||
                             sequence == sq_sequence(queue, position, SQ_TOMBSTONE);
    /* an intent is withdrawn after the slot was settled: then the word has changed */
    return !settled && sq_intended_by(queue, position, taking, SQ_NOBODY, false) == 0 &&
           sequence == atomic_load_explicit(word, memory_order_acquire);
}

static bool cursor_is_stuck(const sq_queue *queue, uint64_t head, uint64_t tail) {
    uint64_t capacity = queue->segment.capacity;
    bool message_stuck = head < tail && slot_is_stuck(queue, head, false);
    bool room_stuck = !queue->single_consumer && tail >= capacity && tail - capacity < head &&
                      slot_is_stuck(queue, tail - capacity, true);
    /* a cursor that has moved since is not stuck */
    return (message_stuck && sq_load_head(queue) == head) ||
           (room_stuck && sq_load_tail(queue) == tail);
}

sq_status sq_check_cursors(const sq_queue *queue) {
    uint64_t before = sq_load_head(queue);
    uint64_t tail = sq_load_tail(queue);
    uint64_t head = sq_load_head(queue);
    /* the tail is not behind a head read before it, nor a lap ahead of one read after it */
    bool sane = before <= tail && (int64_t)(tail - head) <= (int64_t)queue->segment.capacity;
    bool stuck = SQ_RECOVERY && cursor_is_stuck(queue, head, tail);
    return sane && !stuck ? SQ_OK : SQ_CORRUPT;
}

/* A drained queue has ended, SQ_CLOSED, unless a participant died holding one of its last messages.
 * Only a search for the dead of our own, begun now, can tell. SQ_EMPTY: another participant is
 * settling the dead and may return a message yet; SQ_OK: there is something to deliver again. */
static sq_status check_for_end(sq_queue *queue) {
    uint32_t found;
    sq_status status = sq_recover(queue, &found);
    /* relaxed: it only keeps a waiter from spinning, see sq_message_ready */
    atomic_store_explicit(&queue->end_pending, status == SQ_BUSY, memory_order_relaxed);
    if (sq_control_changed(queue)) {
        return SQ_OK;
    }
    return status == SQ_OK ? SQ_CLOSED : status == SQ_BUSY ? SQ_EMPTY : status;
}

static sq_status take_next(sq_queue *queue, void *taken, uint32_t n, uint32_t *count,
                           copies *copies) {
    for (;;) {
        if (sq_control_changed(queue)) {
            if (sq_is_over(queue)) {
                return SQ_CLOSED;
            }
            sq_status status = take_returned(queue, taken, count, copies);
            if (status != SQ_EMPTY) {
                return status;
            }
        }
        if (copies != NULL && copies->count == 0) {
            return SQ_NO_CHUNK;
        }
        sq_status status = queue->single_consumer
                               ? take_as_only_consumer(queue, taken, n, count, copies)
                               : take_as_one_of_many(queue, taken, n, count, copies);
        if (status == SQ_EMPTY) {
            if (!sq_is_drained(queue)) {
                return SQ_EMPTY;
            }
            status = check_for_end(queue);
            if (status != SQ_OK) {
                return status;
            }
            continue;
        }
        if (status != SQ_OK || *count > 0) {
            return status;
        }
        /* nothing but tombstones: look on */
    }
}

static sq_status take_or_claim(sq_queue *queue, void *taken, uint32_t n, uint32_t *count,
                               copies *copies) {
    if (queue->corrupt) {
        return SQ_CORRUPT;
    }
    sq_status status = take_next(queue, taken, n, count, copies);
    queue->corrupt = status == SQ_CORRUPT;
    /* what was good before the corrupt one is delivered; the error comes with the next call */
    return *count > 0 ? SQ_OK : status;
}

sq_status sq_take(sq_queue *queue, void *taken, uint32_t n, uint32_t *count) {
    *count = 0;
    return take_or_claim(queue, taken, n < SQ_BATCH_MAX ? n : SQ_BATCH_MAX, count, NULL);
}

sq_status sq_claim(sq_queue *queue, void *taken, uint32_t n, uint32_t *count) {
    *count = 0;
    n = n < SQ_CLAIM_MAX ? n : SQ_CLAIM_MAX;
    /* relaxed: only to know how many copies to get ready */
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_relaxed);
    uint32_t ready = committed_at(queue, head, n);
    copies copies = {.count = 0, .used = 0};
    /* one at least: it may be one to deliver again, or come at this moment */
    sq_status status = SQ_OK;
    while (copies.count < (ready > 0 ? ready : 1) && status == SQ_OK) {
        status = sq_copy_acquire(queue, &copies.chunks[copies.count]);
        copies.count += status == SQ_OK;
    }
    if (copies.count > 0 || status == SQ_NO_CHUNK) {
        status = take_or_claim(queue, taken, copies.count, count, &copies);
    }
    while (copies.count > copies.used) {
        sq_chunk_release(queue, copies.chunks[--copies.count]);
    }
    return status;
}

/* ---- looks from outside ---- */

/* Waiting in the ring. The head belongs to the tail read before it if that has not moved since. */
static uint64_t count_waiting(const sq_queue *queue) {
    uint64_t tail = sq_load_tail(queue);
    for (uint32_t tries = 0;; tries++) {
        uint64_t head = sq_load_head(queue);
        uint64_t now = sq_load_tail(queue);
        if (now == tail || tries == CURSOR_READS_MAX) {
            return tail > head ? tail - head : 0;
        }
        tail = now;
    }
}

uint64_t sq_size(sq_queue *queue) {
    if (sq_is_over(queue)) {
        return 0;
    }
    return count_waiting(queue) + (sq_control_changed(queue) ? sq_count_returned(queue) : 0);
}

bool sq_message_ready(sq_queue *queue) {
    /* seq_cst, here and below, pairs with sq_event_prepare: not before the waiter announced itself
     */
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_seq_cst);
    return committed_at(queue, head, 1) != 0 || sq_control_changed(queue) ||
           (sq_is_drained(queue) &&
            !atomic_load_explicit(&queue->end_pending, memory_order_relaxed));
}

bool sq_room_ready(sq_queue *queue) {
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_seq_cst);
    return (tail & SQ_TAIL_CLOSED) || room_at(queue, tail, 1) != 0;
}

/* The identity of the participant that has reserved the position at the head and not committed it.
 */
static uint64_t writing_at_head(const sq_queue *queue, uint64_t head, uint64_t tail) {
    bool writing = head < tail && !queue->single_producer &&
                   !sq_slot_is(queue, head, SQ_COMMITTED) && !sq_slot_is(queue, head, SQ_TOMBSTONE);
    return writing ? sq_intended_by(queue, head, false, SQ_NOBODY, true) : 0;
}

/* Of the one that has claimed the position whose slot is next at the tail and not released it. */
static uint64_t reading_at_tail(const sq_queue *queue, uint64_t head, uint64_t tail) {
    uint64_t capacity = queue->segment.capacity;
    bool reading = !queue->single_consumer && tail >= capacity && tail - capacity < head &&
                   tail - head < queue->limit && !slot_is_free(queue, tail);
    return reading ? sq_intended_by(queue, tail - capacity, true, SQ_NOBODY, true) : 0;
}

/* Its pid, unless it died at it: the word stays then, until the next one comes. */
static uint32_t recoverer_at_work(const sq_queue *queue) {
    /* relaxed: for people only */
    uint32_t pid = atomic_load_explicit(&queue->header->recoverer, memory_order_relaxed);
    bool locked = pid != 0 && sq_lock_is_refused(&queue->segment, SQ_LOCK_RECOVERY, SQ_LOCK_SHARED);
    return locked ? pid : 0;
}

sq_holdup sq_held_up_by(const sq_queue *queue, bool room) {
    uint64_t head = sq_load_head(queue);
    uint64_t tail = sq_load_tail(queue);
    uint64_t identity =
        room ? reading_at_tail(queue, head, tail) : writing_at_head(queue, head, tail);
    return (sq_holdup){
        .position = room ? tail : head,
        .pid = identity != 0 ? sq_identity_pid(identity) : recoverer_at_work(queue),
    };
}
