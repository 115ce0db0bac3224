/* Descriptors that a forked child must not share.
 *
 * A lock belongs to an open file description, and a fork copies descriptors: the child would keep
 * alive what its parent locked. So those through which the segments' files are locked are closed in
 * every child that fork() makes, before it returns there. What is meant for a child, an invitation,
 * goes to the child of the thread that prepared it and to no other. */
#ifndef SQ_INHERITED_H
#define SQ_INHERITED_H

#include <stdbool.h>
#include <stdint.h>

/* Forks between the first process of the family and this one. It has grown before anything else
 * runs in a child, so what noted it earlier is known to be the parent's. */
extern uint32_t sq_forks;

/* Close fd in forked children, but, with `hand_on`, not in those of the calling thread. False: no
 * memory is left to note it, and errno says so. */
bool sq_inherited_add(int fd, bool hand_on);

/* Forget it; what nobody added is ignored. */
void sq_inherited_remove(int fd);

/* How often this number has been added: it tells a descriptor from a later one of the same number,
 * which is possible when other code of the process has closed it. 0: it is not there. */
uint64_t sq_inherited_serial(int fd);

/* The same for a page of fd's file that is mapped to keep a lock. MADV_DONTFORK does that too, but
 * is ignored where qemu emulates the process. NULL: errno says. */
typedef struct sq_inherited_page sq_inherited_page;
sq_inherited_page *sq_inherited_add_page(void *address, int fd);

/* Unmap it and forget it. In a child, which does not have the page, only the latter. */
void sq_inherited_unmap_page(sq_inherited_page *page);

#endif
