/* Waiting. Each call waits at most timeout_ns; it returns early for a signal, a shutdown or without
 * reason, and looks for the dead when nothing has happened for half the queue's recovery interval.
 * A wake-up that a stopped or dead participant still owes costs its waiter that time, and no more.
 */
#ifndef SQ_AWAIT_H
#define SQ_AWAIT_H

#include "handle.h"

void sq_await_message(sq_queue *queue, uint64_t timeout_ns);
void sq_await_room(sq_queue *queue, uint64_t timeout_ns);
void sq_await_chunk(sq_queue *queue, uint64_t bytes, uint64_t timeout_ns);
void sq_await_copy(sq_queue *queue, uint64_t timeout_ns);
void sq_await_done(sq_queue *queue, uint64_t timeout_ns);

/* Have the consumers among this handle's waiters (sq_await_message, sq_await_copy) return, and the
 * next to wait, until one of them takes the wake-up. Participants with another handle see a wake-up
 * without reason. */
void sq_wakeup(sq_queue *queue);

/* Whether there was a wake-up, which is then taken. */
bool sq_take_wakeup(sq_queue *queue);

/* Spin a moment; true when there may be something to take or room to put. */
bool sq_spin_message(sq_queue *queue, uint32_t rounds);
bool sq_spin_room(sq_queue *queue, uint32_t rounds);

#endif
