#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STATE = 3, THREADS = 20, START_TIME = 22 }; /* fields of /proc/<pid>/stat, from 1 */

/* Start time of a process in clock ticks since boot; 0: no such process, or all its threads have
 * ended; UINT64_MAX: it cannot be told. */
static uint64_t start_time(uint32_t pid) {
    char path[32];
    char text[512];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT || errno == ESRCH ? 0 : UINT64_MAX;
    }
    ssize_t length = read(fd, text, sizeof text - 1);
    int error = errno;
    close(fd);
    if (length <= 0) {
        return length < 0 && error == ESRCH ? 0 : UINT64_MAX;
    }
    text[length] = '\0';
    /* the command's name may hold spaces and brackets: fields are counted from its last ')' */
    char *field = strrchr(text, ')');
    if (field == NULL || field[1] != ' ') {
        return UINT64_MAX;
    }
    field += 2;
    bool ended = *field == 'Z' || *field == 'X';
    for (int number = STATE; number < START_TIME; number++) {
        field = strchr(field, ' ');
        if (field == NULL) {
            return UINT64_MAX;
        }
        field++;
        /* a first thread that has ended may leave others at work */
        if (number + 1 == THREADS && ended && strtoul(field, NULL, 10) <= 1) {
            return 0;
        }
    }
    return strtoull(field, NULL, 10);
}

uint64_t sq_process_identity(void) {
    uint32_t pid = (uint32_t)getpid();
    uint64_t start = start_time(pid);
    return start == UINT64_MAX ? 0 : start << 22 | pid;
}

bool sq_process_alive(uint64_t identity) {
    uint64_t start = start_time(sq_process_pid(identity));
    /* in doubt it lives: a live one taken for dead would be robbed */
    return start == UINT64_MAX || start == identity >> 22;
}

uint64_t sq_process_namespace(void) {
    struct stat status;
    return stat("/proc/self/ns/pid", &status) == 0 ? (uint64_t)status.st_ino : 0;
}
