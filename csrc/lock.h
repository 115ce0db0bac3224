/* Locks of the kernel on bytes of a segment: they say who takes part and who is dead.
 *
 * An open file description lock lives as long as its description. A participant keeps a description
 * with its locks by a one-page mapping that a fork does not inherit and no stray close() can lose:
 * the kernel drops it when the process dies or executes another program, in any pid or time
 * namespace. The locks of the recoverer, and of one who removes a queue, are held for a
 * moment through the segment's own descriptor. No lock is ever waited for.
 *
 *   if (sq_lock_try(segment->fd, SQ_LOCK_RECOVERY, SQ_LOCK_EXCLUSIVE) == SQ_OK) {
 *       ...
 *       sq_lock_drop(segment->fd, SQ_LOCK_RECOVERY);
 *   }
 */
#ifndef SQ_LOCK_H
#define SQ_LOCK_H

#include "inherited.h"
#include "segment.h"

/* What a byte of the file stands for; the bytes' contents do not matter. */
enum {
    SQ_LOCK_MEMBERS = 0,  /* shared by all participants; exclusive: the queue is being removed */
    SQ_LOCK_NAME = 1,     /* exclusive: the name is being unlinked */
    SQ_LOCK_RECOVERY = 2, /* exclusive: the dead are being settled */
    SQ_LOCK_ENTRIES = 16, /* and on: exclusive, by the participant in that entry of the table */
    SQ_LOCK_NEWCOMERS = SQ_LOCK_ENTRIES + SQ_PARTICIPANTS_MAX, /* and on: exclusive, by one who is
                                                                  about to take that entry */
};

typedef enum sq_lock_kind { SQ_LOCK_SHARED, SQ_LOCK_EXCLUSIVE } sq_lock_kind;

/* SQ_OK, SQ_BUSY when another description's lock forbids it, or SQ_SYSTEM. */
sq_status sq_lock_try(int fd, uint32_t byte, sq_lock_kind kind);
void sq_lock_drop(int fd, uint32_t byte);

/* Whether a lock of this kind would be refused. True also when that cannot be determined, because
 * the holder of a free lock is taken for dead. */
bool sq_lock_is_refused(const sq_segment *segment, uint32_t byte, sq_lock_kind kind);

/* Keep what fd holds, beyond its closing, until this process ends or sq_inherited_unmap_page. NULL:
 * errno says. */
sq_inherited_page *sq_lock_keep(int fd);

#endif
