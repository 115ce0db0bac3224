/* Any participant that has waited for a while looks through the table. One at a time settles what
 * it finds, under a lock of the kernel that ends with its holder. Every step is one CAS or store
 * that can be done again, and the dead participant's entry is freed last, so a recoverer that dies
 * on the way leaves the rest to the next one.
 *
 * A position belongs to the dead when a cursor has passed it, its slot is not yet committed (or
 * released), and no living participant's intent covers it. The order of the looks matters: the
 * cursor, the slot, the intents, and then a CAS of the slot. An intent is published before its
 * cursor moves (or its slot is claimed again) and withdrawn after its slots are settled, so a
 * living owner is seen in its intent or has changed the slot, and then the CAS fails. */
#include "recovery.h"

#include "control.h"
#include "participant.h"
#include "pool.h"
#include "slots.h"
#include "wait.h"

#include <unistd.h>

/* Tombstones are counted, and a recoverer may die at it: what the count is to be is on record
 * before the slot changes. Only the recoverer writes these words. */
static void complete_tombstone(sq_queue *queue) {
    sq_header *header = queue->header;
    /* acquire, pairs with write_tombstone of the recoverer before us */
    uint64_t pending = atomic_load_explicit(&header->pending_tombstone, memory_order_acquire);
    if (pending == 0) {
        return;
    }
    const sq_slot *slot = sq_segment_slot(&queue->segment, pending - 1);
    /* acquire, pairs with write_tombstone */
    if (atomic_load_explicit(&slot->sequence, memory_order_acquire) >=
        sq_sequence(queue, pending - 1, SQ_TOMBSTONE)) {
        /* relaxed: acquired with pending_tombstone */
        uint64_t dropped = atomic_load_explicit(&header->tombstones_after, memory_order_relaxed);
        /* seq_cst, pairs with sq_unfinished */
        atomic_store_explicit(&header->dropped, dropped, memory_order_seq_cst);
    }
    /* release: the count is right before there is nothing left to complete */
    atomic_store_explicit(&header->pending_tombstone, 0, memory_order_release);
}

/* The caller knows that the slot is the dead one's: nobody else changes it. */
static void write_tombstone(sq_queue *queue, uint64_t position, uint64_t sequence) {
    sq_header *header = queue->header;
    /* relaxed, both: only the recoverer writes them */
    atomic_store_explicit(&header->tombstones_after,
                          atomic_load_explicit(&header->dropped, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    /* release, pairs with complete_tombstone: the count with it */
    atomic_store_explicit(&header->pending_tombstone, position + 1, memory_order_release);
    /* seq_cst, pairs with sq_slot_is */
    atomic_compare_exchange_strong_explicit(&sq_segment_slot(&queue->segment, position)->sequence,
                                            &sequence, sq_sequence(queue, position, SQ_TOMBSTONE),
                                            memory_order_seq_cst, memory_order_relaxed);
    complete_tombstone(queue);
}

/* How many positions an intent may be about: none is longer than the ring. */
static uint32_t intended(const sq_queue *queue, uint64_t intent) {
    uint32_t length = sq_intent_length(intent);
    return length < queue->segment.capacity ? length : queue->segment.capacity;
}

/* Reserved by the dead and never committed: consumers shall skip it. False when a living
 * participant's intent covers a position too: which of the two it is shows in a moment. */
static bool settle_reservations(sq_queue *queue, uint32_t dead) {
    /* acquire, pairs with publish */
    uint64_t intent =
        atomic_load_explicit(&sq_entry_at(queue, dead)->put_intent, memory_order_acquire);
    /* seq_cst, pairs with the CAS in sq_put: a living owner published its intent before */
    uint64_t tail =
        atomic_load_explicit(&queue->header->tail, memory_order_seq_cst) & ~SQ_TAIL_CLOSED;
    uint64_t start = sq_intent_start(intent, tail);
    bool settled = true;
    for (uint32_t i = 0; i < intended(queue, intent); i++) {
        uint64_t position = start + i;
        _Atomic uint64_t *word = &sq_segment_slot(&queue->segment, position)->sequence;
        /* acquire, pairs with write_committed: looked at before the intents */
        uint64_t sequence = atomic_load_explicit(word, memory_order_acquire);
        /* one consumer does not write sequence words: an empty slot still shows its last turn */
        if (position >= tail || sequence >= sq_sequence(queue, position, SQ_COMMITTED)) {
            continue;
        }
        if (sq_intended_by(queue, position, false, dead, true) != 0) {
            settled = false;
        } else if (sequence == atomic_load_explicit(word, memory_order_acquire)) {
            /* acquire, pairs with withdraw: a living one whose intent is gone had committed before
             */
            write_tombstone(queue, position, sequence);
        }
    }
    return settled;
}

/* Consumers look for slots to deliver again in [from, to). Only the recoverer writes these words.
 */
static void widen_redelivery(sq_queue *queue, uint64_t position) {
    sq_header *header = queue->header;
    /* relaxed, both: we are the only writer */
    uint64_t from = atomic_load_explicit(&header->redelivery_from, memory_order_relaxed);
    uint64_t to = atomic_load_explicit(&header->redelivery_to, memory_order_relaxed);
    /* release, both: pair with find_returned_slots */
    if (from > position || from >= to) {
        atomic_store_explicit(&header->redelivery_from, position, memory_order_release);
    }
    if (to <= position) {
        atomic_store_explicit(&header->redelivery_to, position + 1, memory_order_release);
    }
}

/* Claimed by the dead and never released: to be delivered again, which sets `returned`; a tombstone
 * is just released. False when a living participant's intent covers a position too. */
static bool settle_claims(sq_queue *queue, uint32_t dead, bool *returned) {
    /* acquire, pairs with publish */
    uint64_t intent =
        atomic_load_explicit(&sq_entry_at(queue, dead)->take_intent, memory_order_acquire);
    /* seq_cst, pairs with the CAS in take_as_one_of_many: a living owner published its intent
     * before */
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_seq_cst);
    uint64_t start = sq_intent_start(intent, head);
    uint64_t next_turn = UINT64_C(1) << queue->turn_shift;
    bool settled = true;
    for (uint32_t i = 0; i < intended(queue, intent); i++) {
        uint64_t position = start + i;
        _Atomic uint64_t *word = &sq_segment_slot(&queue->segment, position)->sequence;
        /* acquire, pairs with release_slots: looked at before the intents */
        uint64_t sequence = atomic_load_explicit(word, memory_order_acquire);
        bool committed = sequence == sq_sequence(queue, position, SQ_COMMITTED);
        bool tombstone = sequence == sq_sequence(queue, position, SQ_TOMBSTONE);
        if (position >= head || (!committed && !tombstone)) {
            continue;
        }
        if (sq_intended_by(queue, position, true, dead, true) != 0) {
            settled = false;
            continue;
        }
        if (committed) {
            widen_redelivery(queue, position);
        }
        uint64_t settled_word = committed ? sq_sequence(queue, position, SQ_REDELIVER)
                                          : sq_sequence(queue, position + next_turn, SQ_EMPTY_SLOT);
        /* acq_rel, pairs with sq_slot_is and claim_returned */
        if (atomic_compare_exchange_strong_explicit(word, &sequence, settled_word,
                                                    memory_order_acq_rel, memory_order_relaxed)) {
            *returned |= committed;
        }
    }
    return settled;
}

/* True when the chunk is now to be delivered again. Each case is one CAS from the word that was
 * read before: a consumer that has leased the chunk from its slot since then wins. The chunk stays
 * its holder's until that CAS, so another recoverer would decide the same. */
static bool settle_chunk(sq_queue *queue, uint32_t chunk, uint64_t word) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    /* relaxed: acquired with the word (drop_pin) */
    uint64_t place = atomic_load_explicit(&entry->place, memory_order_relaxed);
    bool pinned = sq_chunk_state(word) == SQ_CHUNK_PINNED;
    bool in_slot = !pinned && place != 0 && sq_slot_holds(queue, place - 1);
    bool returned = sq_chunk_state(word) == SQ_CHUNK_LEASED && !in_slot;
    bool queued = in_slot && sq_chunk_class(chunk) != SQ_COPIES; /* a copy is not: its slot is */
    if (!queued && !returned) {
        sq_chunk_settle(queue, chunk, sq_chunk_holder(word));
        return false;
    }
    unsigned state = returned ? SQ_CHUNK_RETURNED : SQ_CHUNK_OWNED;
    /* acq_rel, pairs with claim_returned and lease: what its holder did is done */
    return atomic_compare_exchange_strong_explicit(&entry->word, &word,
                                                   (word & SQ_PIN_MASK) | sq_chunk_word(state, 0),
                                                   memory_order_acq_rel, memory_order_relaxed) &&
           returned;
}

/* The participant has no views any more. Returns the word as it is then. */
static uint64_t drop_pin(sq_chunk *entry, uint32_t participant) {
    /* acquire, pairs with what wrote the word: the chunk's record is as it was left */
    uint64_t word = atomic_load_explicit(&entry->word, memory_order_acquire);
    while (sq_chunk_pinner(word) == participant &&
           !atomic_compare_exchange_weak_explicit(&entry->word, &word, word & ~SQ_PIN_MASK,
                                                  memory_order_acq_rel, memory_order_acquire)) {
    }
    return sq_chunk_pinner(word) == participant ? word & ~SQ_PIN_MASK : word;
}

void sq_settle_chunks(sq_queue *queue, uint32_t participant) {
    bool any = false;
    for (uint32_t size_class = 0; size_class < queue->segment.classes; size_class++) {
        uint32_t used = sq_chunks_used(queue, size_class);
        for (uint32_t index = 0; index < used; index++) {
            uint32_t chunk = sq_chunk_name(size_class, index);
            uint64_t word = drop_pin(sq_chunk_at(queue, chunk), participant);
            if (word != 0 && sq_chunk_holder(word) == participant) {
                any |= settle_chunk(queue, chunk, word);
            }
        }
    }
    if (any) {
        sq_announce_returned(queue);
    }
}

static void give_up_role(_Atomic uint32_t *role, uint32_t participant) {
    /* release, pairs with take_role: what the dead left is settled before another takes the role */
    atomic_compare_exchange_strong_explicit(role, &participant, 0, memory_order_release,
                                            memory_order_relaxed);
}

static bool settle_participant(sq_queue *queue, uint32_t index) {
    sq_participant *entry = sq_entry_at(queue, index);
    /* chunks first: once a slot is to be delivered again, it no longer tells what was in flight */
    sq_settle_chunks(queue, index + 1);
    bool returned = false;
    bool settled = settle_reservations(queue, index);
    settled &= settle_claims(queue, index, &returned);
    /* Once all is settled in any case: another recoverer may have died before it said so. Before,
     * only what there is: a waiter for the end of a queue checks again after a change. */
    if (settled || returned) {
        sq_announce_returned(queue);
    }
    if (!settled) {
        return false; /* it keeps its entry and intents until the next look */
    }
    give_up_role(&queue->header->producer, index + 1);
    give_up_role(&queue->header->consumer, index + 1);
    /* relaxed, all: the identity releases them */
    atomic_store_explicit(&entry->put_intent, 0, memory_order_relaxed);
    atomic_store_explicit(&entry->take_intent, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&queue->header->deaths, 1, memory_order_relaxed);
    /* release, pairs with load_identity: the entry is free only when all of that is done */
    atomic_store_explicit(&entry->identity, 0, memory_order_release);
    return true;
}

static sq_status settle_the_dead(sq_queue *queue, uint32_t *found) {
    sq_status status = SQ_OK;
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        if (!sq_participant_is_dead(queue, index)) {
            continue;
        }
        if (settle_participant(queue, index)) {
            ++*found;
        } else {
            status = SQ_BUSY;
        }
    }
    return status;
}

static bool is_anybody_dead(const sq_queue *queue) {
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        if (sq_participant_is_dead(queue, index)) {
            return true;
        }
    }
    return false;
}

static sq_status settle_alone(sq_queue *queue, uint32_t *found) {
    _Atomic uint32_t *recoverer = &queue->header->recoverer;
    int fd = queue->segment.fd;
    sq_status status = sq_lock_try(fd, SQ_LOCK_RECOVERY, SQ_LOCK_EXCLUSIVE);
    if (status != SQ_OK) {
        return status;
    }
    /* acquire: pairs with the release below; what the former recoverer settled is settled */
    atomic_load_explicit(recoverer, memory_order_acquire);
    atomic_store_explicit(recoverer, (uint32_t)getpid(), memory_order_relaxed);
    complete_tombstone(queue);
    status = settle_the_dead(queue, found);
    /* release: pairs with the acquire above, in the next one with the lock */
    atomic_store_explicit(recoverer, 0, memory_order_release);
    sq_lock_drop(fd, SQ_LOCK_RECOVERY);
    return status;
}

sq_status sq_recover(sq_queue *queue, uint32_t *found) {
    *found = 0;
    /* relaxed: only advice for sq_recover_if_due */
    atomic_store_explicit(&queue->header->last_recovery_ns, sq_now_ns(), memory_order_relaxed);
    if (!is_anybody_dead(queue)) {
        /* checked afterwards: without its descriptor no death can be detected */
        return sq_segment_is_open(&queue->segment) ? SQ_OK : SQ_SYSTEM;
    }
    /* acquire, pairs with the clear below, of another thread of ours */
    if (atomic_flag_test_and_set_explicit(&queue->recovering, memory_order_acquire)) {
        return SQ_BUSY; /* another thread of ours */
    }
    sq_status status = settle_alone(queue, found);
    /* release, pairs with the test above */
    atomic_flag_clear_explicit(&queue->recovering, memory_order_release);
    if (*found > 0) {
        sq_wake_all(queue);
    }
    return status;
}

uint32_t sq_recover_if_due(sq_queue *queue, uint64_t every_ns) {
    uint64_t now = sq_now_ns();
    /* relaxed: only advice */
    uint64_t last = atomic_load_explicit(&queue->header->last_recovery_ns, memory_order_relaxed);
    uint32_t found = 0;
    if (last > now || now - last >= every_ns) {
        sq_recover(queue, &found);
    }
    return found;
}
