#include "tasks.h"

#include "control.h"
#include "wait.h"

uint64_t sq_unfinished(const sq_queue *queue) {
    const sq_header *header = queue->header;
    /* seq_cst, all: pair with sq_task_done, complete_tombstone and sq_event_prepare */
    uint64_t answered = atomic_load_explicit(&header->done, memory_order_seq_cst) +
                        atomic_load_explicit(&header->dropped, memory_order_seq_cst);
    uint64_t put = atomic_load_explicit(&header->tail, memory_order_seq_cst) & ~SQ_TAIL_CLOSED;
    if (sq_is_over(queue)) {
        /* what was waiting was dropped: only what had been taken can still be answered */
        put = atomic_load_explicit(&header->head, memory_order_seq_cst);
    }
    return put > answered ? put - answered : 0;
}

sq_status sq_task_done(sq_queue *queue) {
    sq_header *header = queue->header;
    /* relaxed: the CAS decides whether it is right */
    uint64_t done = atomic_load_explicit(&header->done, memory_order_relaxed);
    do {
        if (sq_unfinished(queue) == 0) {
            return SQ_BAD_OPTION;
        }
        /* seq_cst, pairs with sq_unfinished of a waiter: before the load in notify */
    } while (!atomic_compare_exchange_weak_explicit(&header->done, &done, done + 1,
                                                    memory_order_seq_cst, memory_order_relaxed));
    if (sq_unfinished(queue) == 0) {
        sq_event_notify(&header->all_done, INT32_MAX);
    }
    return SQ_OK;
}
