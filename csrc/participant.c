#include "participant.h"

#include <errno.h>
#include <unistd.h>

static uint64_t load_identity(const sq_queue *queue, uint32_t index) {
    /* acquire, pairs with take_entry, sq_participant_exit and settle_participant: what the former
     * participant left is settled */
    return atomic_load_explicit(&sq_entry_at(queue, index)->identity, memory_order_acquire);
}

static uint64_t identity_of(uint64_t incarnation) {
    return incarnation << SQ_PID_BITS | (uint64_t)getpid();
}

/* The caller excludes other newcomers, so an entry that is free stays so. SQ_BUSY: it is not free.
 */
static sq_status take_entry(const sq_queue *queue, int fd, uint32_t index, uint64_t identity) {
    if (load_identity(queue, index) != 0) {
        return SQ_BUSY;
    }
    sq_status status = sq_lock_try(fd, SQ_LOCK_ENTRIES + index, SQ_LOCK_EXCLUSIVE);
    if (status == SQ_OK) {
        /* release, pairs with load_identity: locked before it is seen */
        atomic_store_explicit(&sq_entry_at(queue, index)->identity, identity, memory_order_release);
    }
    return status;
}

static sq_status enter_at(const sq_queue *queue, int fd, uint32_t index, uint64_t identity) {
    if (load_identity(queue, index) != 0) {
        return SQ_BUSY;
    }
    sq_status status = sq_lock_try(fd, SQ_LOCK_NEWCOMERS + index, SQ_LOCK_EXCLUSIVE);
    if (status == SQ_OK) {
        status = take_entry(queue, fd, index, identity);
        sq_lock_drop(fd, SQ_LOCK_NEWCOMERS + index);
    }
    return status;
}

/* `index` is set when an entry was taken. */
static sq_status enter_anywhere(const sq_queue *queue, int fd, uint32_t *index) {
    sq_status status = sq_lock_try(fd, SQ_LOCK_MEMBERS, SQ_LOCK_SHARED);
    if (status != SQ_OK) {
        return status == SQ_BUSY ? SQ_GONE : status;
    }
    /* relaxed: only that no two are the same matters */
    uint64_t identity = identity_of(
        atomic_fetch_add_explicit(&queue->header->incarnations, 1, memory_order_relaxed) + 1);
    for (*index = 0; *index < queue->segment.participants; ++*index) {
        status = enter_at(queue, fd, *index, identity);
        if (status != SQ_BUSY) {
            return status;
        }
    }
    return SQ_TABLE_FULL;
}

static sq_status enter_and_keep(sq_queue *queue, int fd) {
    uint32_t index;
    sq_status status = enter_anywhere(queue, fd, &index);
    if (status != SQ_OK) {
        return status;
    }
    queue->locks = sq_lock_keep(fd);
    if (queue->locks == NULL) {
        return SQ_SYSTEM; /* without its lock the entry is a dead one's, and is settled as such */
    }
    queue->self = sq_entry_at(queue, index);
    queue->id = index + 1;
    return SQ_OK;
}

sq_status sq_participant_enter(sq_queue *queue) {
    int fd = sq_segment_reopen(&queue->segment);
    if (fd < 0) {
        return SQ_SYSTEM;
    }
    sq_status status = sq_inherited_add(fd, false) ? enter_and_keep(queue, fd) : SQ_SYSTEM;
    int error = errno;
    sq_inherited_remove(fd);
    close(fd);
    errno = error;
    return status;
}

void sq_participant_exit(sq_queue *queue) {
    /* release, pairs with load_identity: all that we did is visible to the entry's next
     * participant */
    atomic_store_explicit(&queue->self->identity, 0, memory_order_release);
    queue->self = NULL;
    sq_inherited_unmap_page(queue->locks);
    queue->locks = NULL;
}

static bool is_locked(const sq_queue *queue, uint32_t index) {
    return sq_lock_is_refused(&queue->segment, SQ_LOCK_ENTRIES + index, SQ_LOCK_SHARED);
}

bool sq_participant_is_dead(const sq_queue *queue, uint32_t index) {
    uint64_t identity = load_identity(queue, index);
    /* once more: one that was leaving cleared its identity before its lock went */
    return identity != 0 && !is_locked(queue, index) && identity == load_identity(queue, index);
}

bool sq_participant_lives(const sq_queue *queue, uint32_t index) {
    return load_identity(queue, index) != 0 && is_locked(queue, index);
}

uint64_t sq_intended_by(const sq_queue *queue, uint64_t position, bool taking, uint32_t but,
                        bool living) {
    for (uint32_t index = 0; index < queue->segment.participants; index++) {
        sq_participant *entry = sq_entry_at(queue, index);
        /* acquire, pairs with publish and withdraw: an intent that is gone means that its slots
         * were settled before */
        uint64_t intent = atomic_load_explicit(taking ? &entry->take_intent : &entry->put_intent,
                                               memory_order_acquire);
        if (index == but || !sq_intent_covers(intent, position)) {
            continue;
        }
        uint64_t identity = load_identity(queue, index);
        if (identity != 0 && (!living || is_locked(queue, index))) {
            return identity;
        }
    }
    return 0;
}
