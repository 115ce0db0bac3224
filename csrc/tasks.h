/* Items that are not yet dealt with, as queue.Queue counts them. */
#ifndef SQ_TASKS_H
#define SQ_TASKS_H

#include "handle.h"

/* SQ_BAD_OPTION: there is no unfinished item. */
sq_status sq_task_done(sq_queue *queue);
uint64_t sq_unfinished(const sq_queue *queue);

#endif
