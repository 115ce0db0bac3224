#include "inherited.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct noted {
    int fd;
    dev_t device; /* the file it stood for: somebody may have closed it and opened another */
    ino_t inode;
    pthread_t owner;
    bool hand_on;
} noted;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static noted *list;
static size_t count, room;

static void lock(void) {
    pthread_mutex_lock(&mutex);
}

static void unlock(void) {
    pthread_mutex_unlock(&mutex);
}

static void close_in_child(void) {
    for (size_t i = 0; i < count; i++) {
        struct stat status;
        const noted *one = &list[i];
        bool ours = one->hand_on && pthread_equal(one->owner, pthread_self());
        if (!ours && fstat(one->fd, &status) == 0 && status.st_dev == one->device &&
            status.st_ino == one->inode) {
            close(one->fd);
        }
    }
    count = 0;
    unlock();
}

static void follow_forks(void) {
    pthread_atfork(lock, unlock, close_in_child);
}

static bool make_room(void) {
    if (count == room) {
        size_t more = room == 0 ? 16 : 2 * room;
        noted *larger = realloc(list, more * sizeof *larger);
        if (larger == NULL) {
            return false;
        }
        list = larger;
        room = more;
    }
    return true;
}

bool sq_inherited_add(int fd, bool hand_on) {
    struct stat status;
    pthread_once(&once, follow_forks);
    if (fstat(fd, &status) != 0) {
        return false;
    }
    lock();
    bool added = make_room();
    if (added) {
        list[count++] = (noted){.fd = fd,
                                .device = status.st_dev,
                                .inode = status.st_ino,
                                .owner = pthread_self(),
                                .hand_on = hand_on};
    }
    unlock();
    return added;
}

void sq_inherited_remove(int fd) {
    lock();
    for (size_t i = 0; i < count; i++) {
        if (list[i].fd == fd) {
            list[i] = list[--count];
            break;
        }
    }
    unlock();
}
