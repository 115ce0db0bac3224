#include "wait.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t sq_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *timeout) {
    return syscall(SYS_futex, (uint32_t *)word, operation, value, timeout, NULL, 0);
}

void sq_event_sleep(sq_event *event, uint32_t key, uint64_t timeout_ns) {
    struct timespec timeout = {
        .tv_sec = (time_t)(timeout_ns / 1000000000u),
        .tv_nsec = (long)(timeout_ns % 1000000000u),
    };
    futex(&event->word, FUTEX_WAIT, key, &timeout);
}

void sq_event_wake(sq_event *event, uint32_t waiters) {
    /* a new count first: who took the old key and is not yet asleep will not fall asleep; seq_cst,
     * pairs with sq_event_prepare */
    atomic_fetch_add_explicit(&event->word, 2, memory_order_seq_cst);
    int wanted = waiters > INT_MAX ? INT_MAX : (int)waiters;
    long woken = futex(&event->word, FUTEX_WAKE, (uint32_t)wanted, NULL);
    if (woken >= wanted) {
        return; /* others may still be asleep: bit 0 stays */
    }
    /* No sleeper is left: clear the bit. A waiter that fell asleep since then did so on a word that
     * still had the bit set and would be forgotten, so wake them all to announce themselves again.
     */
    /* relaxed: the CAS decides; seq_cst there, pairs with sq_event_prepare */
    uint32_t word = atomic_load_explicit(&event->word, memory_order_relaxed);
    while ((word & 1) &&
           !atomic_compare_exchange_weak_explicit(&event->word, &word, (word + 2) & ~UINT32_C(1),
                                                  memory_order_seq_cst, memory_order_relaxed)) {
    }
    futex(&event->word, FUTEX_WAKE, INT_MAX, NULL);
}
