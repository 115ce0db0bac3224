#include "await.h"

#include "control.h"
#include "pool.h"
#include "recovery.h"
#include "ring.h"
#include "tasks.h"
#include "wait.h"

#define SPIN_LEAST_NS 2000u
#define SPIN_MOST_NS 50000u
#define SPIN_ROUNDS 64u

static bool spin_rounds(sq_queue *queue, bool (*ready)(sq_queue *), uint32_t rounds) {
    for (uint32_t i = 0; i < rounds; i++) {
        if (ready(queue)) {
            return true;
        }
        sq_pause();
    }
    return false;
}

bool sq_spin_message(sq_queue *queue, uint32_t rounds) {
    return spin_rounds(queue, sq_message_ready, rounds);
}

bool sq_spin_room(sq_queue *queue, uint32_t rounds) {
    return spin_rounds(queue, sq_room_ready, rounds);
}

static uint64_t recovery_ns(const sq_queue *queue) {
    return (uint64_t)queue->segment.recovery_ms * 1000000u;
}

/* Half the interval at most: a death just after one look is found by the next, within the interval.
 */
static void sleep_on(sq_queue *queue, sq_event *event, uint32_t key, uint64_t timeout_ns) {
    uint64_t most = recovery_ns(queue) / 2;
    sq_event_sleep(event, key, timeout_ns < most ? timeout_ns : most);
}

/* Spin for as long as spinning has paid off lately, then sleep. */
static void await(sq_queue *queue, sq_event *event, bool (*ready)(sq_queue *),
                  uint64_t timeout_ns) {
    uint64_t start = sq_now_ns();
    /* relaxed: only advice */
    uint64_t spin = atomic_load_explicit(&queue->spin_ns, memory_order_relaxed);
    do {
        if (spin_rounds(queue, ready, SPIN_ROUNDS)) {
            spin = spin * 2 < SPIN_MOST_NS ? spin * 2 : SPIN_MOST_NS;
            atomic_store_explicit(&queue->spin_ns, spin, memory_order_relaxed);
            return;
        }
    } while (sq_now_ns() - start < (spin < timeout_ns ? spin : timeout_ns));
    spin = spin / 2 > SPIN_LEAST_NS ? spin / 2 : SPIN_LEAST_NS;
    atomic_store_explicit(&queue->spin_ns, spin, memory_order_relaxed);

    uint32_t key = sq_event_prepare(event);
    if (ready(queue)) {
        return;
    }
    sleep_on(queue, event, key, timeout_ns);
    /* also when it was not the timeout: traffic behind a dead one's slot wakes us all the time */
    if (SQ_RECOVERY && !ready(queue)) {
        sq_complete_shutdown(queue);
        sq_recover_if_due(queue, recovery_ns(queue) / 4);
    }
}

static bool all_done(sq_queue *queue) {
    return sq_unfinished(queue) == 0;
}

void sq_wakeup(sq_queue *queue) {
    /* seq_cst and a read-modify-write, as sq_event_notify wants it; pairs with wakeup_wanted:
     * either the waiter, who has announced itself, sees the flag, or we see the waiter */
    atomic_exchange_explicit(&queue->wakeup, true, memory_order_seq_cst);
    sq_event_notify(&queue->header->not_empty, INT32_MAX);
    sq_event_notify(&queue->header->chunk_free, INT32_MAX);
}

static bool wakeup_wanted(const sq_queue *queue) {
    /* seq_cst, pairs with sq_wakeup: between sq_event_prepare and the sleep this load is not done
     * before the waiter is announced */
    return atomic_load_explicit(&queue->wakeup, memory_order_seq_cst);
}

bool sq_take_wakeup(sq_queue *queue) {
    /* acquire, pairs with sq_wakeup: who takes it sees what was written before it */
    return wakeup_wanted(queue) &&
           atomic_exchange_explicit(&queue->wakeup, false, memory_order_acquire);
}

static bool message_ready_or_wakeup(sq_queue *queue) {
    return sq_message_ready(queue) || wakeup_wanted(queue);
}

void sq_await_message(sq_queue *queue, uint64_t timeout_ns) {
    await(queue, &queue->header->not_empty, message_ready_or_wakeup, timeout_ns);
}

void sq_await_room(sq_queue *queue, uint64_t timeout_ns) {
    await(queue, &queue->header->not_full, sq_room_ready, timeout_ns);
}

void sq_await_done(sq_queue *queue, uint64_t timeout_ns) {
    await(queue, &queue->header->all_done, all_done, timeout_ns);
}

void sq_await_chunk(sq_queue *queue, uint64_t bytes, uint64_t timeout_ns) {
    uint32_t key = sq_event_prepare(&queue->header->chunk_free);
    if (!sq_chunk_is_free(queue, bytes)) {
        sleep_on(queue, &queue->header->chunk_free, key, timeout_ns);
        sq_recover_if_due(queue, recovery_ns(queue) / 4);
    }
}

void sq_await_copy(sq_queue *queue, uint64_t timeout_ns) {
    uint32_t key = sq_event_prepare(&queue->header->chunk_free);
    if (!sq_copy_is_free(queue) && !wakeup_wanted(queue)) {
        sleep_on(queue, &queue->header->chunk_free, key, timeout_ns);
        sq_recover_if_due(queue, recovery_ns(queue) / 4);
    }
}
