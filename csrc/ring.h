/* The ring of slots: putting messages, taking and claiming them. */
#ifndef SQ_RING_H
#define SQ_RING_H

#include "words.h"

typedef struct sq_item {
    const void *body; /* SQ_INLINE: at most sq_inline_max bytes; the length is `length` */
    uint32_t chunk;   /* SQ_IN_CHUNK: the chunk that holds the body */
    uint32_t length;
    uint8_t tag;
    uint8_t storage;
} sq_item;

typedef struct sq_taken {
    uint64_t position;
    uint64_t length; /* bytes of the body */
    uint32_t chunk;  /* SQ_IN_CHUNK: leased to the caller, who releases it */
    uint16_t deliveries;
    uint8_t tag;
    uint8_t storage;
    unsigned char body[]; /* SQ_INLINE: room for sq_inline_max bytes */
} sq_taken;

/* 64-bit words of one record, whatever the queue's slots. */
#define SQ_TAKEN_WORDS ((sizeof(sq_taken) + SQ_SLOT_MAX) / sizeof(uint64_t))

static inline size_t sq_taken_stride(const sq_queue *queue) {
    return sizeof(sq_taken) + queue->segment.slot_bytes;
}

/* Put the first of n items, as many as there is room for, as one batch; SQ_OK when *accepted is
 * not 0. An accepted chunk belongs to the queue from then on. */
sq_status sq_put(sq_queue *queue, const sq_item *items, uint32_t n, uint32_t *accepted);

/* Take up to n messages in order into `taken` (n records, sq_taken_stride apart); SQ_OK when
 * *count is not 0. */
sq_status sq_take(sq_queue *queue, void *taken, uint32_t n, uint32_t *count);

/* The same, but each message stays the caller's lease, in a chunk, until it is released, returned
 * or the caller dies; SQ_NO_CHUNK while as many leases are out as there are slots. */
sq_status sq_claim(sq_queue *queue, void *taken, uint32_t n, uint32_t *count);
#define SQ_CLAIM_MAX 256u /* messages claimed at a time */

/* Make a message that was taken from its slot a lease, as if it had been claimed; what lies in a
 * chunk is one already. SQ_NO_CHUNK, SQ_NO_MEMORY: then it is as it was. */
sq_status sq_lease_taken(sq_queue *queue, sq_taken *taken);

/* Messages that wait, those to be delivered again among them. */
uint64_t sq_size(sq_queue *queue);

/* Whether a take may find something, or a put room, at this moment. */
bool sq_message_ready(sq_queue *queue);
bool sq_room_ready(sq_queue *queue);

/* SQ_CORRUPT when the cursors, or the slots at them, are as no participant leaves them, so that
 * waiting would never end. */
sq_status sq_check_cursors(const sq_queue *queue);

typedef struct sq_holdup {
    uint64_t position; /* the cursor that cannot move: the head or, with `room`, the tail */
    uint32_t pid;      /* 0: there is none */
} sq_holdup;

/* The participant that the others wait for: it has reserved the position at the head and not
 * committed it or, with `room`, it has claimed the position whose slot comes next and not released
 * it; or it is the recoverer. Each takes microseconds unless it is stopped: then the answer stays
 * the same. */
sq_holdup sq_held_up_by(const sq_queue *queue, bool room);

#endif
