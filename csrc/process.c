#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Start time of a process in clock ticks since boot; 0: no such process, or a zombie;
 * UINT64_MAX: it cannot be told. */
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
    if (*field == 'Z' || *field == 'X') {
        return 0;
    }
    for (int number = 3; number < 22; number++) {
        field = strchr(field, ' ');
        if (field == NULL) {
            return UINT64_MAX;
        }
        field++;
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
