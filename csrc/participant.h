/* The participant table: who takes part, and who of them is dead.
 *
 * An entry is a participant's from the moment its identity is set until that is 0 again. Its lock
 * is taken before and dropped after, so an identity whose lock is free is a dead one's. */
#ifndef SQ_PARTICIPANT_H
#define SQ_PARTICIPANT_H

#include "lock.h"
#include "words.h"

static inline uint32_t sq_identity_pid(uint64_t identity) {
    return (uint32_t)(identity & ((UINT64_C(1) << SQ_PID_BITS) - 1));
}

/* Take part: an entry of the table for this handle, and its lock. SQ_TABLE_FULL: no entry is free;
 * SQ_GONE: the queue is being removed; SQ_SYSTEM. A caller that fails has been a member for a
 * moment: it must look whether it was the last one. */
sq_status sq_participant_enter(sq_queue *queue);

/* Give up a handle's entry and locks; what it held has been settled. */
void sq_participant_exit(sq_queue *queue);

/* Whether the participant in this entry is dead; only a recoverer changes the entry then. */
bool sq_participant_is_dead(const sq_queue *queue, uint32_t index);

/* Whether a live participant is in this entry; yes if that cannot be determined. */
bool sq_participant_lives(const sq_queue *queue, uint32_t index);

/* The identity of a participant other than `but` (an index) whose intent to put, or to take, covers
 * the position; 0: there is none. With `living`, dead ones do not count. */
uint64_t sq_intended_by(const sq_queue *queue, uint64_t position, bool taking, uint32_t but,
                        bool living);
#define SQ_NOBODY UINT32_MAX

#endif
