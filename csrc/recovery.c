/* What the dead left behind. Any participant that has waited for long looks; one at a time does
 * the work, and who dies at it is found dead by the next. Every step is decided by one CAS or
 * store and can be done again.
 *
 * A position belongs to the dead when a cursor has passed it, its slot is not yet committed (or
 * released), and no living participant's intent covers it. The order of the looks matters: the
 * cursor, the slot, the intents, and then a CAS of the slot. An intent is published before its
 * cursor moves (or its slot is claimed again) and withdrawn after its slots are settled, so a
 * living owner is seen in its intent or has changed the slot, and then the CAS fails. */
#include "process.h"
#include "ring_words.h"
#include "wait.h"

static sq_participant *entry_of(const sq_queue *queue, uint32_t index) {
    return sq_segment_participant(&queue->segment, index);
}

bool sq_is_intended(const sq_queue *queue, uint64_t position, bool taking) {
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        sq_participant *entry = entry_of(queue, index);
        /* acquire: an intent withdrawn means its slots were settled before */
        uint64_t intent = atomic_load_explicit(taking ? &entry->take_intent : &entry->put_intent,
                                               memory_order_acquire);
        if (sq_intent_covers(intent, position) &&
            atomic_load_explicit(&entry->identity, memory_order_acquire) != 0) {
            return true;
        }
    }
    return false;
}

static bool covered_by_the_living(const sq_queue *queue, uint32_t dead, uint64_t position,
                                  bool taking) {
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        sq_participant *entry = entry_of(queue, index);
        /* acquire: an intent withdrawn means its slots were settled before */
        uint64_t intent = atomic_load_explicit(taking ? &entry->take_intent : &entry->put_intent,
                                               memory_order_acquire);
        if (index != dead && intent != 0 && sq_intent_covers(intent, position) &&
            sq_process_alive(atomic_load_explicit(&entry->identity, memory_order_acquire))) {
            return true;
        }
    }
    return false;
}

/* Tombstones are counted, and whoever counts may die at it: what the count is to be is on record
 * before the slot changes. Only the recoverer writes these words. */
static void complete_burial(sq_queue *queue) {
    sq_header *header = queue->header;
    uint64_t burial = atomic_load_explicit(&header->burial, memory_order_acquire);
    if (burial == 0) {
        return;
    }
    const sq_slot *slot = sq_segment_slot(&queue->segment, burial - 1);
    if (atomic_load_explicit(&slot->sequence, memory_order_acquire) >=
        sq_sequence(queue, burial - 1, SQ_TOMBSTONE)) {
        uint64_t dropped = atomic_load_explicit(&header->dropped_by_burial, memory_order_relaxed);
        atomic_store_explicit(&header->dropped, dropped, memory_order_seq_cst);
    }
    /* release: the count is right before there is nothing left to complete */
    atomic_store_explicit(&header->burial, 0, memory_order_release);
}

/* The caller knows that the slot is the dead one's: nobody else changes it. */
static void bury(sq_queue *queue, uint64_t position, uint64_t sequence) {
    sq_header *header = queue->header;
    atomic_store_explicit(&header->dropped_by_burial,
                          atomic_load_explicit(&header->dropped, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    /* release: the count with it */
    atomic_store_explicit(&header->burial, position + 1, memory_order_release);
    atomic_compare_exchange_strong_explicit(&sq_segment_slot(&queue->segment, position)->sequence,
                                            &sequence, sq_sequence(queue, position, SQ_TOMBSTONE),
                                            memory_order_seq_cst, memory_order_relaxed);
    complete_burial(queue);
}

/* How many positions an intent may be about: none is longer than the ring. */
static uint32_t intended(const sq_queue *queue, uint64_t intent) {
    uint32_t length = sq_intent_length(intent);
    return length < queue->segment.capacity ? length : queue->segment.capacity;
}

/* Reserved by the dead and never committed: consumers shall skip it. False when a living
 * participant's intent covers a position too: which of the two it is shows in a moment. */
static bool bury_reservations(sq_queue *queue, uint32_t dead) {
    uint64_t intent =
        atomic_load_explicit(&entry_of(queue, dead)->put_intent, memory_order_acquire);
    uint64_t tail =
        atomic_load_explicit(&queue->header->tail, memory_order_seq_cst) & ~SQ_TAIL_CLOSED;
    uint64_t start = sq_intent_start(intent, tail);
    bool settled = true;
    for (uint32_t i = 0; i < intended(queue, intent); i++) {
        uint64_t position = start + i;
        _Atomic uint64_t *word = &sq_segment_slot(&queue->segment, position)->sequence;
        uint64_t sequence = atomic_load_explicit(word, memory_order_acquire);
        /* one consumer does not write sequence words: an empty slot still shows its last turn */
        if (position >= tail || sequence >= sq_sequence(queue, position, SQ_COMMITTED)) {
            continue;
        }
        if (covered_by_the_living(queue, dead, position, false)) {
            settled = false;
        } else if (sequence == atomic_load_explicit(word, memory_order_acquire)) {
            /* a living one that withdrew its intent meanwhile had committed before */
            bury(queue, position, sequence);
        }
    }
    return settled;
}

/* Consumers look for slots to deliver again in [from, to). */
static void widen_redelivery(sq_queue *queue, uint64_t position) {
    sq_header *header = queue->header;
    uint64_t from = atomic_load_explicit(&header->redelivery_from, memory_order_relaxed);
    uint64_t to = atomic_load_explicit(&header->redelivery_to, memory_order_relaxed);
    if (from > position || from >= to) {
        atomic_store_explicit(&header->redelivery_from, position, memory_order_release);
    }
    if (to <= position) {
        atomic_store_explicit(&header->redelivery_to, position + 1, memory_order_release);
    }
}

/* Claimed by the dead and never released: to be delivered again, which is news; a tombstone is just
 * released. False when a living participant's intent covers a position too. */
static bool return_claims(sq_queue *queue, uint32_t dead, bool *news) {
    uint64_t intent =
        atomic_load_explicit(&entry_of(queue, dead)->take_intent, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_seq_cst);
    uint64_t start = sq_intent_start(intent, head);
    uint64_t next_turn = UINT64_C(1) << queue->turn_shift;
    bool settled = true;
    for (uint32_t i = 0; i < intended(queue, intent); i++) {
        uint64_t position = start + i;
        _Atomic uint64_t *word = &sq_segment_slot(&queue->segment, position)->sequence;
        uint64_t sequence = atomic_load_explicit(word, memory_order_acquire);
        bool committed = sequence == sq_sequence(queue, position, SQ_COMMITTED);
        bool tombstone = sequence == sq_sequence(queue, position, SQ_TOMBSTONE);
        if (position >= head || (!committed && !tombstone)) {
            continue;
        }
        if (covered_by_the_living(queue, dead, position, true)) {
            settled = false;
            continue;
        }
        if (committed) {
            widen_redelivery(queue, position);
        }
        uint64_t settled_word = committed ? sq_sequence(queue, position, SQ_REDELIVER)
                                          : sq_sequence(queue, position + next_turn, SQ_EMPTY_SLOT);
        if (atomic_compare_exchange_strong_explicit(word, &sequence, settled_word,
                                                    memory_order_acq_rel, memory_order_relaxed)) {
            *news |= committed;
        }
    }
    return settled;
}

/* True when the chunk is now to be delivered again. Each case is one CAS from the word that was
 * read before: a consumer that has leased the chunk from its slot since then wins. */
static bool settle_chunk(sq_queue *queue, uint32_t chunk, uint64_t word) {
    sq_chunk *entry = sq_chunk_at(queue, chunk);
    uint64_t place = atomic_load_explicit(&entry->place, memory_order_relaxed);
    bool pinned = sq_chunk_state(word) == SQ_CHUNK_PINNED;
    bool in_slot = !pinned && place != 0 && sq_slot_holds(queue, place - 1);
    bool returned = sq_chunk_state(word) == SQ_CHUNK_LEASED && !in_slot;
    bool queued = in_slot && sq_chunk_class(chunk) != SQ_COPIES; /* a copy is not: its slot is */
    uint64_t settled = queued     ? sq_chunk_word(SQ_CHUNK_OWNED, 0)
                       : returned ? sq_chunk_word(SQ_CHUNK_RETURNED, 0)
                                  : sq_chunk_word(SQ_CHUNK_OWNED, queue->id); /* to be freed */
    /* acq_rel: what its holder did is done, to us and to the next one */
    bool ours =
        atomic_compare_exchange_strong_explicit(&entry->word, &word, (word & SQ_PIN_MASK) | settled,
                                                memory_order_acq_rel, memory_order_relaxed);
    if (ours && !queued && !returned) {
        sq_chunk_release(queue, chunk);
    }
    return ours && returned;
}

/* The participant looks at nothing any more. Returns the word as it is then. */
static uint64_t drop_pin(sq_chunk *entry, uint32_t participant) {
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

void sq_announce_returned(sq_queue *queue) {
    /* seq_cst: after the messages are ready, before the load in notify */
    atomic_fetch_add_explicit(&queue->header->news, SQ_EPOCH, memory_order_seq_cst);
    sq_event_notify(&queue->header->not_empty, INT32_MAX);
    sq_event_notify(&queue->header->chunk_free, INT32_MAX); /* they may claim it without a copy */
}

static void give_up_role(_Atomic uint32_t *role, uint32_t participant) {
    /* release: what the dead left is settled before another one takes the role */
    atomic_compare_exchange_strong_explicit(role, &participant, 0, memory_order_release,
                                            memory_order_relaxed);
}

static bool settle_participant(sq_queue *queue, uint32_t index, uint64_t identity) {
    sq_participant *entry = entry_of(queue, index);
    /* chunks first: once a slot is to be delivered again, it no longer tells what was in flight */
    sq_settle_chunks(queue, index + 1);
    bool news = false;
    bool settled = bury_reservations(queue, index);
    settled &= return_claims(queue, index, &news);
    /* Once all is settled in any case: another recoverer may have died before it said so. Before,
     * only what there is: whoever waits for the end of a queue looks again after news. */
    if (settled || news) {
        sq_announce_returned(queue);
    }
    if (!settled) {
        return false; /* it keeps its entry and intents until the next look */
    }
    give_up_role(&queue->header->producer, index + 1);
    give_up_role(&queue->header->consumer, index + 1);
    atomic_store_explicit(&entry->put_intent, 0, memory_order_relaxed);
    atomic_store_explicit(&entry->take_intent, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&queue->header->deaths, 1, memory_order_relaxed);
    /* release: the entry is free only when all of that is done. A CAS: a newcomer to a full table
     * may have taken the last entry from its dead bearer. */
    atomic_compare_exchange_strong_explicit(&entry->identity, &identity, 0, memory_order_release,
                                            memory_order_relaxed);
    return true;
}

static bool is_alive(const sq_queue *queue, uint32_t participant) {
    uint64_t identity =
        atomic_load_explicit(&entry_of(queue, participant - 1)->identity, memory_order_acquire);
    return identity != 0 && sq_process_alive(identity);
}

/* One recoverer at a time. This word is no lock that the dead can hold: it names its holder, and
 * who finds the holder dead takes it over. Terms are counted, so that one taken for dead is not
 * mistaken for the next bearer of its entry. */
static bool become_recoverer(sq_queue *queue) {
    _Atomic uint32_t *recoverer = &queue->header->recoverer;
    uint32_t word = atomic_load_explicit(recoverer, memory_order_acquire);
    uint32_t holder = word % SQ_TERM;
    if (holder == queue->id) {
        return true;
    }
    if (holder != 0 && holder <= queue->segment.participants && is_alive(queue, holder)) {
        return false;
    }
    /* acquire: what the former recoverer settled is settled */
    return atomic_compare_exchange_strong_explicit(recoverer, &word,
                                                   (word - holder + SQ_TERM) | queue->id,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

static void resign_as_recoverer(sq_queue *queue) {
    /* release: what we settled is settled to the next one; no other writes it in our term */
    atomic_fetch_sub_explicit(&queue->header->recoverer, queue->id, memory_order_release);
}

static uint32_t settle_the_dead(sq_queue *queue) {
    uint32_t found = 0;
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        uint64_t identity =
            atomic_load_explicit(&entry_of(queue, index)->identity, memory_order_acquire);
        if (identity != 0 && !sq_process_alive(identity)) {
            found += settle_participant(queue, index, identity);
        }
    }
    return found;
}

bool sq_try_recover(sq_queue *queue, uint32_t *found) {
    *found = 0;
    if (atomic_flag_test_and_set(&queue->recovering)) {
        return false;
    }
    bool ours = become_recoverer(queue);
    if (ours) {
        complete_burial(queue);
        atomic_store_explicit(&queue->header->last_recovery_ns, sq_now_ns(), memory_order_relaxed);
        *found = settle_the_dead(queue);
        resign_as_recoverer(queue);
    }
    atomic_flag_clear(&queue->recovering);
    if (*found > 0) {
        sq_wake_all(queue);
    }
    return ours;
}

uint32_t sq_recover(sq_queue *queue, uint64_t every_ns) {
    uint64_t now = sq_now_ns();
    uint64_t last = atomic_load_explicit(&queue->header->last_recovery_ns, memory_order_relaxed);
    uint32_t found = 0;
    if (last > now || now - last >= every_ns) {
        sq_try_recover(queue, &found);
    }
    return found;
}
