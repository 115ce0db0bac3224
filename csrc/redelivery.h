/* Messages to deliver again: their consumer died or gave them back. */
#ifndef SQ_REDELIVERY_H
#define SQ_REDELIVERY_H

#include "words.h"

/* The oldest message to deliver again: a slot behind the head, or a chunk. */
typedef struct sq_returned {
    uint64_t position;
    uint64_t word; /* the chunk's */
    uint32_t chunk;
    bool in_slot;
    bool found;
} sq_returned;

/* Without `slots_too` only chunks are looked at. When there is nothing at all, the control word
 * read before is remembered as seen. */
sq_returned sq_find_returned(sq_queue *queue, bool slots_too);

/* How many there are. Remembers as sq_find_returned does. */
uint32_t sq_count_returned(sq_queue *queue);

#endif
