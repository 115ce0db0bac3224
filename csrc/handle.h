/* A handle: one participant's view of one queue.
 *
 * Threads may share it if they put, take, acquire and release one at a time, each seeing what the
 * one before did. Beside them may run, at any time and in any number: the await and spin functions,
 * sq_recover, sq_shutdown, sq_wake_all, sq_wakeup, and sq_queue_leave, after which nobody puts or
 * takes. */
#ifndef SQ_HANDLE_H
#define SQ_HANDLE_H

#include "segment.h"

typedef struct sq_queue {
    sq_segment segment;
    sq_header *header;
    sq_participant *self;
    void *locks; /* keeps the participant's locks */
    uint32_t id; /* index in the participant table + 1 */
    bool single_producer;
    bool single_consumer;
    bool producing; /* role taken */
    bool consuming;
    bool corrupt;        /* found so by a take, which is final */
    bool bounded;        /* by a maxsize, which is exact */
    uint64_t limit;      /* most messages at a time */
    uint64_t turn_shift; /* position >> turn_shift is its turn */
    uint64_t backed;     /* positions below this have memory behind their slots */
    /* Shared by the threads of the process. */
    _Atomic uint64_t head_cache;   /* what the head was when it was last read: it only grows */
    _Atomic uint64_t tail_cache;   /* likewise */
    _Atomic uint64_t control_seen; /* control word after which nothing was left to deliver again */
    _Atomic uint64_t spin_ns;      /* how long waiting by spinning has paid off lately */
    _Atomic bool end_pending;      /* drained, but the dead are not settled yet */
    _Atomic bool wakeup;           /* a take that would wait is to return instead: see sq_wakeup */
    atomic_flag recovering;        /* a thread of this handle is at it */
    char file_name[SQ_QUEUE_NAME_MAX + 1];
} sq_queue;

#endif
