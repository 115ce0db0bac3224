#include "control.h"
#include "wait.h"

static void set_flags(sq_queue *queue, uint64_t flags) {
    /* seq_cst, pairs with sq_control: before the loads that ask who waits (sq_event_awaited) */
    atomic_fetch_or_explicit(&queue->header->control, flags, memory_order_seq_cst);
}

void sq_announce_returned(sq_queue *queue) {
    /* seq_cst, pairs with sq_control: after the messages are ready, before the loads in notify */
    atomic_fetch_add_explicit(&queue->header->control, SQ_EPOCH, memory_order_seq_cst);
    sq_event_notify(&queue->header->not_empty, INT32_MAX);
    sq_event_notify(&queue->header->chunk_free, INT32_MAX); /* they may claim it without a copy */
}

void sq_wake_all(sq_queue *queue) {
    sq_event_wake(&queue->header->not_empty, INT32_MAX);
    sq_event_wake(&queue->header->not_full, INT32_MAX);
    sq_event_wake(&queue->header->chunk_free, INT32_MAX);
    sq_event_wake(&queue->header->all_done, INT32_MAX);
}

bool sq_is_shutdown(const sq_queue *queue) {
    /* acquire, pairs with sq_shutdown */
    return atomic_load_explicit(&queue->header->tail, memory_order_acquire) & SQ_TAIL_CLOSED;
}

void sq_complete_shutdown(sq_queue *queue) {
    if (sq_is_shutdown(queue) && !(sq_control(queue) & SQ_SHUTDOWN)) {
        set_flags(queue, SQ_SHUTDOWN);
    }
}

void sq_shutdown(sq_queue *queue, bool immediate) {
    /* seq_cst, pairs with the CAS in sq_put: in one order with every reservation */
    atomic_fetch_or_explicit(&queue->header->tail, SQ_TAIL_CLOSED, memory_order_seq_cst);
    set_flags(queue, SQ_SHUTDOWN | (immediate ? SQ_SHUTDOWN_IMMEDIATE : 0));
    sq_wake_all(queue);
}

bool sq_is_drained(const sq_queue *queue) {
    const sq_header *header = queue->header;
    /* the control word first: it rarely changes, while producers write the tail's cache line */
    if (!(sq_control(queue) & (SQ_SHUTDOWN | SQ_SHUTDOWN_IMMEDIATE))) {
        return false;
    }
    /* acquire, pairs with sq_put: a closed tail is final */
    uint64_t tail = atomic_load_explicit(&header->tail, memory_order_acquire);
    /* acquire, pairs with take_as_only_consumer and take_as_one_of_many */
    return tail == (atomic_load_explicit(&header->head, memory_order_acquire) | SQ_TAIL_CLOSED);
}

void sq_mark_removed(sq_queue *queue) {
    set_flags(queue, SQ_REMOVED);
}
