// Lets a program that runs under valgrind say which part of it is counted.

#include <valgrind/callgrind.h>

void begin_counting(void);
void end_counting(void);

void begin_counting(void) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

// Writes one more file with what was counted.
void end_counting(void) {
    CALLGRIND_DUMP_STATS;
    CALLGRIND_STOP_INSTRUMENTATION;
}
