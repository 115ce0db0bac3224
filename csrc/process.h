/* Who a process is, and whether it still lives. */
#ifndef SQ_PROCESS_H
#define SQ_PROCESS_H

#include <stdbool.h>
#include <stdint.h>

/* The calling process: start time in clock ticks << 22 | pid. One word, so that a table entry is
 * taken and named by one CAS; the start time tells a reused pid from its former bearer.
 * 0 when /proc cannot be read. */
uint64_t sq_process_identity(void);

/* False once that very process is gone or a zombie. */
bool sq_process_alive(uint64_t identity);

static inline uint32_t sq_process_pid(uint64_t identity) {
    return (uint32_t)(identity & ((1u << 22) - 1));
}

/* Number of the pid namespace: pids of another one would name the wrong processes. */
uint64_t sq_process_namespace(void);

#endif
