/* A queue from its creation to its removal: opening, forking, closing. Nothing here waits for
 * another process. A name is one of /dev/shm's, at most SQ_QUEUE_NAME_MAX bytes and without a
 * slash; SQ_BAD_OPTION otherwise. */
#ifndef SQ_QUEUE_H
#define SQ_QUEUE_H

#include "participant.h"

/* SQ_EXISTS: a live queue has the name; SQ_BUSY: one is being removed at this moment. */
sq_status sq_queue_create(sq_queue *queue, const char *file_name, const sq_options *options);

/* SQ_TABLE_FULL; SQ_BUSY: it is full, but of dead participants that another is settling. */
sq_status sq_queue_attach(sq_queue *queue, const char *file_name);

/* Map a queue without taking part in it, to look at it; sq_queue_unmap when done. */
sq_status sq_queue_open_readonly(sq_queue *queue, const char *file_name);

/* Remove the name and the segments of messages; SQ_EXISTS if there are participants. With `force`
 * they are shut out, and a file that is no queue is removed, too. SQ_BUSY: another process is
 * removing it. */
sq_status sq_queue_remove(const char *file_name, bool force);

/* Give up the entry; the last one out removes the name. The mapping stays. */
void sq_queue_leave(sq_queue *queue);

/* Unmap without deregistering. */
void sq_queue_unmap(sq_queue *queue);

/* Another process of ours, which is forked or started: a descriptor to hand to it, which keeps the
 * queue from being removed until all its copies are closed; -1: errno says. With `for_fork` the
 * child of this thread inherits it, and no other child. We end our copy when the process has been
 * started, and so does the process when it takes part. It enters the table by itself: an entry's
 * lock is never in two processes, so the death of one is never hidden by the other. */
int sq_queue_invite(const sq_queue *queue, bool for_fork);
void sq_queue_end_invitation(sq_queue *queue, int invitation);

/* In a forked child: take part by the handle that it inherited; the invitation is closed. When it
 * fails, as sq_queue_attach does, the handle is only to be unmapped. */
sq_status sq_queue_fork_child(sq_queue *queue, int invitation);

/* In a process that was started: open the queue; the invitation is closed. */
sq_status sq_queue_accept(sq_queue *queue, const char *file_name, int invitation);

/* Take the role of the one producer or consumer, where there is one. SQ_ROLE_TAKEN; SQ_BUSY: by a
 * dead one that another is settling. */
sq_status sq_queue_enrol_producer(sq_queue *queue);
sq_status sq_queue_enrol_consumer(sq_queue *queue);

/* The pid of the one producer, or consumer; 0: there is none at this moment. */
uint32_t sq_queue_producer_pid(const sq_queue *queue);
uint32_t sq_queue_consumer_pid(const sq_queue *queue);

#endif
