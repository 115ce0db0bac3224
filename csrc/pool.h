/* The chunk pool. A chunk is allocated by one CAS of its word from free to (owned, me): who holds
 * it is on record from the first instant, so a crash cannot lose one. */
#ifndef SQ_POOL_H
#define SQ_POOL_H

#include "words.h"

uint64_t sq_chunk_largest(const sq_queue *queue);

/* A chunk of at least `bytes`, owned by the caller; SQ_NO_CHUNK or SQ_NO_MEMORY otherwise. */
sq_status sq_chunk_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk);

/* Whether an acquire of this size may find one. */
bool sq_chunk_is_free(const sq_queue *queue, uint64_t bytes);

void sq_chunk_describe(sq_queue *queue, uint32_t chunk, uint64_t length, uint8_t tag);
unsigned char *sq_chunk_data(const sq_queue *queue, uint32_t chunk);

/* Give a chunk back to the pool: an owner that will not put it, or a consumer that is done. What
 * another participant holds, as the parent of a fork does, stays as it is. */
void sq_chunk_release(sq_queue *queue, uint32_t chunk);

/* Free a chunk of a participant that is dead, or is leaving: no slot names it. Only the recoverer,
 * or the one who leaves, may. It may be repeated, by another recoverer too, until it is free. */
void sq_chunk_settle(sq_queue *queue, uint32_t chunk, uint32_t holder);

/* A chunk of the size of a slot's body, for a message that is claimed from its slot. */
sq_status sq_copy_acquire(sq_queue *queue, uint32_t *chunk);
bool sq_copy_is_free(const sq_queue *queue);

/* A lease's message is done with, but its chunk has views until it is released. */
void sq_lease_acknowledge(sq_queue *queue, uint32_t chunk);

/* A lease's message is to be delivered again. */
void sq_lease_return(sq_queue *queue, uint32_t chunk);

/* An owned chunk that is about to be put has views of ours beyond that: it is not used again before
 * we unpin it. */
void sq_chunk_pin(sq_queue *queue, uint32_t chunk);
void sq_chunk_unpin(sq_queue *queue, uint32_t chunk);

/* The body lives in a segment of its own, which the chunk stands for. */
sq_status sq_external_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk,
                              unsigned char **data);
/* SQ_EMPTY: the chunk holds the body itself, all `bytes` of it; SQ_GONE: the queue was removed, and
 * its messages with it. */
sq_status sq_external_map(sq_queue *queue, uint32_t chunk, uint64_t bytes, unsigned char **data);
/* Remove the segments of all messages: the queue is being removed. */
void sq_external_drop_all(sq_queue *queue);

#endif
