/* Waiting without a lock: an event count over a futex.
 *
 * A waiter takes a key, looks again, and sleeps only while the key is current. A notifier that
 * finds bit 0 clear makes no system call. A waiter that dies asleep leaves at most bit 0 set,
 * which costs the next notifier one futile wake and is then gone.
 */
#ifndef SQ_WAIT_H
#define SQ_WAIT_H

#include "layout.h"

#include <stdbool.h>

static inline void sq_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

uint64_t sq_now_ns(void);

/* Announce a waiter; the caller looks at its condition once more before it sleeps. */
static inline uint32_t sq_event_prepare(sq_event *event) {
    /* seq_cst, pairs with sq_event_awaited: either we see the change that is being notified, or the
     * notifier sees bit 0 */
    return atomic_fetch_or_explicit(&event->word, 1, memory_order_seq_cst) | 1;
}

/* Sleep until notified, a signal, or timeout_ns. */
void sq_event_sleep(sq_event *event, uint32_t key, uint64_t timeout_ns);

void sq_event_wake(sq_event *event, uint32_t waiters);

/* Whether anybody may be asleep. The change they wait for must have been made by a seq_cst
 * read-modify-write, so that this load cannot be done before it. Pairs with sq_event_prepare. */
static inline bool sq_event_awaited(const sq_event *event) {
    return atomic_load_explicit(&event->word, memory_order_seq_cst) & 1;
}

/* Wake up to `waiters` sleepers, after a change as sq_event_awaited wants it. */
static inline void sq_event_notify(sq_event *event, uint32_t waiters) {
    if (sq_event_awaited(event)) {
        sq_event_wake(event, waiters);
    }
}

#endif
