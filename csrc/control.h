/* The life of the queue as a whole: the control word, the closed bit of the tail, and the events.
 */
#ifndef SQ_CONTROL_H
#define SQ_CONTROL_H

#include "handle.h"

static inline uint64_t sq_control(const sq_queue *queue) {
    /* acquire, pairs with sq_announce_returned and set_flags: the messages to deliver again were
     * made ready before the epoch grew */
    return atomic_load_explicit(&queue->header->control, memory_order_acquire);
}

/* True if the control word has changed since the last scan found nothing to deliver again. */
static inline bool sq_control_changed(const sq_queue *queue) {
    /* relaxed: an old value only makes us scan once more */
    return sq_control(queue) != atomic_load_explicit(&queue->control_seen, memory_order_relaxed);
}

/* Shut down with everything dropped. */
static inline bool sq_is_over(const sq_queue *queue) {
    return sq_control(queue) & SQ_SHUTDOWN_IMMEDIATE;
}

/* Let consumers know that there is something to deliver again. */
void sq_announce_returned(sq_queue *queue);

void sq_wake_all(sq_queue *queue);

void sq_shutdown(sq_queue *queue, bool immediate);
bool sq_is_shutdown(const sq_queue *queue);

/* A participant that shut the queue down may have died before it set the flag: set it. */
void sq_complete_shutdown(sq_queue *queue);

/* Shut down, and every position below the tail claimed. */
bool sq_is_drained(const sq_queue *queue);

/* The segment is about to lose its name; who opened it before must not use it. */
void sq_mark_removed(sq_queue *queue);

#endif
