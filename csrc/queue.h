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

/* Remove the name and the segments of messages; SQ_EXISTS when somebody takes part, unless they are
 * to be shut out; then also what is no queue. SQ_BUSY: another one is at it. */
sq_status sq_queue_remove(const char *file_name, bool force);

/* Give up the entry; the last one out removes the name. The mapping stays. */
void sq_queue_leave(sq_queue *queue);

/* Unmap without deregistering. */
void sq_queue_unmap(sq_queue *queue);

/* A fork: before it, the parent enters for the child; after it, the parent closes its copy of the
 * membership, and the child takes part by its own. So there is no moment at which the child's queue
 * has no participant. The parent's handle in the child, without a membership, is only to be
 * unmapped. */
sq_status sq_queue_fork_prepare(sq_queue *queue, sq_membership *child);
void sq_queue_fork_parent(sq_queue *queue, sq_membership *child);
sq_status sq_queue_fork_child(sq_queue *queue, sq_membership *own);

/* A process that is started afresh: a descriptor to hand to it, which keeps the queue from being
 * removed until all its copies are closed; -1: errno says. The new process opens the queue by it,
 * which closes its copy; the other one ends its own. */
int sq_queue_invite(const sq_queue *queue);
void sq_queue_end_invitation(sq_queue *queue, int invitation);
sq_status sq_queue_accept(sq_queue *queue, const char *file_name, int invitation);

/* Take the role of the one producer or consumer, where there is one. SQ_ROLE_TAKEN; SQ_BUSY: by a
 * dead one that another is settling. */
sq_status sq_queue_enrol_producer(sq_queue *queue);
sq_status sq_queue_enrol_consumer(sq_queue *queue);

#endif
