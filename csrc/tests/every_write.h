/* The core, compiled so that each of its writes to shared memory and each of its system calls that
 * others can notice is a point at which the process may be killed or stopped.
 *
 * The compiler finds the writes: -fsanitize=thread has it call a hook before each plain write and
 * in place of each atomic one, and these hooks are not ThreadSanitizer's but ours. */
#ifndef SQ_TESTS_EVERY_WRITE_H
#define SQ_TESTS_EVERY_WRITE_H

#include <stdint.h>

/* Count from 0, and raise this signal at the point with this number, from 1; 0: at none. */
void every_write_arm(uint64_t hit_at, int signal);

/* Points passed since then. */
uint64_t every_write_count(void);

#endif
