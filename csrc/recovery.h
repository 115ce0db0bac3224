/* Crash recovery: any live participant settles what dead ones held. */
#ifndef SQ_RECOVERY_H
#define SQ_RECOVERY_H

#include "handle.h"

/* Look for dead participants and settle what they left. SQ_OK: all who died before the call are
 * settled; SQ_BUSY: another participant is settling some, or one cannot be settled yet, because a
 * living participant's intent covers the same position; SQ_SYSTEM. `found` counts those that this
 * call settled. Never waits. */
sq_status sq_recover(sq_queue *queue, uint32_t *found);

/* The same, unless a participant has done it within `every_ns`; returns how many this call
 * settled. */
uint32_t sq_recover_if_due(sq_queue *queue, uint64_t every_ns);

/* Settle every chunk that this participant holds, ourselves or a dead one: what it was writing goes
 * back to the pool, what it had claimed goes back to the queue, what is queued stays queued. */
void sq_settle_chunks(sq_queue *queue, uint32_t participant);

#endif
