/* A handle: one participant's view of one queue. Threads may share it if they put, take, acquire
 * and release one at a time; only the await and spin functions may run beside them. */
#ifndef SQ_QUEUE_H
#define SQ_QUEUE_H

#include "segment.h"

typedef struct sq_queue {
    sq_segment segment;
    sq_header *header;
    sq_participant *self;
    uint32_t id; /* index in the participant table + 1 */
    bool single_producer;
    bool single_consumer;
    bool producing; /* role taken */
    bool consuming;
    bool corrupt;        /* found so by a take, which is final */
    uint64_t limit;      /* most messages at a time */
    uint64_t turn_shift; /* position >> turn_shift is its turn */
    uint64_t backed;     /* positions below this have memory behind their slots */
    /* Shared with threads that wait, hence atomic; relaxed, because each is only advice. */
    _Atomic uint64_t head_seen; /* what the head was when it was last read: it only grows */
    _Atomic uint64_t tail_seen; /* likewise */
    _Atomic uint64_t news_seen; /* news after which nothing was left to deliver again */
    _Atomic uint64_t spin_ns;   /* how long waiting by spinning has paid off lately */
    atomic_flag recovering;     /* a thread of this process is at it */
    char file_name[SQ_QUEUE_NAME_MAX + 1];
} sq_queue;

/* participant.c: coming, going, roles. A name is one of /dev/shm's, at most SQ_QUEUE_NAME_MAX
 * bytes and without a slash; SQ_BAD_OPTION otherwise. */
sq_status sq_queue_create(sq_queue *queue, const char *file_name, const sq_options *options);
sq_status sq_queue_attach(sq_queue *queue, const char *file_name);
/* Map a queue without taking part in it, to look at it; sq_queue_unmap when done. */
sq_status sq_queue_look(sq_queue *queue, const char *file_name);
/* Remove the name and the segments of messages; SQ_EXISTS when somebody alive takes part, unless
 * they are to be shut out. */
sq_status sq_queue_remove(const char *file_name, bool alive_too);
/* After fork: the child's own entry in the same segment. When it fails, nothing is left to do but
 * sq_queue_unmap. */
sq_status sq_queue_rejoin(sq_queue *queue);
/* Give up the entry; the last one out removes the name. The mapping stays. */
void sq_queue_leave(sq_queue *queue);
/* Forget the mapping, without a word to anybody. */
void sq_queue_unmap(sq_queue *queue);
sq_status sq_queue_enrol_producer(sq_queue *queue);
sq_status sq_queue_enrol_consumer(sq_queue *queue);

/* ring.c: the positions */
typedef struct sq_item {
    const void *body; /* SQ_INLINE: at most sq_inline_max bytes; the length is `length` */
    uint32_t chunk;   /* SQ_IN_CHUNK: the chunk that holds the body */
    uint32_t length;
    uint8_t tag;
    uint8_t storage;
} sq_item;

typedef struct sq_taken {
    uint64_t length; /* bytes of the body */
    uint32_t chunk;  /* SQ_IN_CHUNK: leased to the caller, who releases it */
    uint16_t deliveries;
    uint8_t tag;
    uint8_t storage;
    unsigned char body[]; /* SQ_INLINE: room for sq_inline_max bytes */
} sq_taken;

/* 64-bit words of one record, whatever the queue's slots. */
#define SQ_TAKEN_WORDS ((sizeof(sq_taken) + SQ_SLOT_MAX) / sizeof(uint64_t))

static inline uint32_t sq_inline_max(const sq_queue *queue) {
    return queue->segment.slot_bytes - (uint32_t)sizeof(sq_slot);
}
static inline size_t sq_taken_stride(const sq_queue *queue) {
    return sizeof(sq_taken) + queue->segment.slot_bytes;
}

/* Put the first of n items, as many as there is room for, as one batch; SQ_OK when *accepted is
 * not 0. An accepted chunk belongs to the queue from then on. */
sq_status sq_put(sq_queue *queue, const sq_item *items, uint32_t n, uint32_t *accepted);

/* Take up to n messages in order into `taken` (n records, sq_taken_stride apart); SQ_OK when
 * *count is not 0. */
sq_status sq_take(sq_queue *queue, void *taken, uint32_t n, uint32_t *count);

/* Likewise, but each message stays the caller's lease, in a chunk, until it is released, returned
 * or the caller dies; SQ_NO_CHUNK while as many leases are out as there are slots. */
sq_status sq_claim(sq_queue *queue, void *taken, uint32_t n, uint32_t *count);
#define SQ_CLAIM_MAX 256u /* messages claimed at a time */

/* SQ_CORRUPT when the cursors, or the slots at them, are as no participant leaves them: waiting
 * would be in vain. */
sq_status sq_check_cursors(const sq_queue *queue);

uint64_t sq_size(sq_queue *queue);
void sq_shutdown(sq_queue *queue, bool immediate);
bool sq_is_shutdown(const sq_queue *queue);
/* SQ_BAD_OPTION: there is no unfinished item. */
sq_status sq_task_done(sq_queue *queue);
uint64_t sq_unfinished(const sq_queue *queue);

/* Wait at most timeout_ns; they return early for a signal, a shutdown or without reason, and look
 * for the dead when nothing has happened for the queue's recovery interval. */
void sq_await_message(sq_queue *queue, uint64_t timeout_ns);
void sq_await_room(sq_queue *queue, uint64_t timeout_ns);
void sq_await_chunk(sq_queue *queue, uint64_t bytes, uint64_t timeout_ns);
void sq_await_copy(sq_queue *queue, uint64_t timeout_ns);
void sq_await_done(sq_queue *queue, uint64_t timeout_ns);
void sq_wake_all(sq_queue *queue);
/* Spin a moment; true when there may be something to take or room to put. */
bool sq_spin_message(sq_queue *queue, uint32_t rounds);
bool sq_spin_room(sq_queue *queue, uint32_t rounds);

/* pool.c: chunks */
uint64_t sq_chunk_largest(const sq_queue *queue);
/* A chunk of at least `bytes`, owned by the caller; SQ_NO_CHUNK or SQ_NO_MEMORY otherwise. */
sq_status sq_chunk_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk);
void sq_chunk_describe(sq_queue *queue, uint32_t chunk, uint64_t length, uint8_t tag);
unsigned char *sq_chunk_data(const sq_queue *queue, uint32_t chunk);
/* Give a chunk back to the pool: an owner that will not put it, or a consumer that is done. What
 * another participant holds, as the parent of a fork does, stays as it is. */
void sq_chunk_release(sq_queue *queue, uint32_t chunk);
/* A chunk of the size of a slot's body, for a message that is claimed from its slot. */
sq_status sq_copy_acquire(sq_queue *queue, uint32_t *chunk);
/* A lease's message is done with, but its chunk is looked at until it is released. */
void sq_lease_acknowledge(sq_queue *queue, uint32_t chunk);
/* A lease's message is to be delivered again. */
void sq_lease_return(sq_queue *queue, uint32_t chunk);
/* An owned chunk that is about to be put is looked at by us beyond that: it is not used again
 * before we unpin it. */
void sq_chunk_pin(sq_queue *queue, uint32_t chunk);
void sq_chunk_unpin(sq_queue *queue, uint32_t chunk);
/* The body lives in a segment of its own, which the chunk stands for. */
sq_status sq_external_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk,
                              unsigned char **data);
/* SQ_EMPTY: the chunk holds the body itself, all `bytes` of it. */
sq_status sq_external_map(sq_queue *queue, uint32_t chunk, uint64_t bytes, unsigned char **data);
/* Remove all segments of messages, which nobody will take any more. */
void sq_external_drop_all(sq_queue *queue);

/* usage.c */
typedef struct sq_usage {
    uint64_t chunk_bytes_held;
    uint32_t slots_held;  /* claimed by somebody and not released */
    uint32_t chunks_held; /* being written, queued, leased or looked at */
    uint32_t leases;
} sq_usage;
sq_usage sq_usage_of(const sq_queue *queue);

/* recovery.c: the dead */
/* Settle what dead participants left; returns how many were found. Cheap when another
 * participant did it within `every_ns`. */
uint32_t sq_recover(sq_queue *queue, uint64_t every_ns);

/* The same at once; false when another one is at it, who may have looked before the last death. */
bool sq_try_recover(sq_queue *queue, uint32_t *found);

/* Settle every chunk that this participant holds: what it was writing goes back to the pool, what
 * it had claimed goes back to the queue, what is queued stays queued. */
void sq_settle_chunks(sq_queue *queue, uint32_t participant);
/* Let consumers know that there is something to deliver again. */
void sq_announce_returned(sq_queue *queue);

#endif
