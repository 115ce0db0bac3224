#include "inherited.h"

#include "layout.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct noted {
    void *page; /* NULL: it is a descriptor */
    int fd;
    dev_t device; /* the file: somebody may have closed the descriptor and opened another */
    ino_t inode;
    pthread_t owner;
    bool hand_on;
    uint64_t serial;
} noted;

uint32_t sq_forks;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static noted *list;
static size_t count, room;
static uint64_t serials;

static void lock(void) {
    pthread_mutex_lock(&mutex);
}

static void unlock(void) {
    pthread_mutex_unlock(&mutex);
}

static void close_descriptor(const noted *one) {
    struct stat status;
    bool ours = one->hand_on && pthread_equal(one->owner, pthread_self());
    if (!ours && fstat(one->fd, &status) == 0 && status.st_dev == one->device &&
        status.st_ino == one->inode) {
        close(one->fd);
    }
}

/* Whether a line of /proc/self/maps is that of the page: "start-end mode offset device inode path".
 */
static bool is_line_of(const char *line, const noted *one) {
    unsigned long start, inode;
    return sscanf(line, "%lx-%*x %*s %*x %*s %lu", &start, &inode) == 2 &&
           start == (unsigned long)one->page && inode == (unsigned long)one->inode;
}

/* Whether the page is mapped here, and has not become another mapping of somebody else's. */
static bool is_page_mapped(const noted *one) {
    char text[4096];
    size_t length = 0;
    bool found = false;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    for (ssize_t n;
         fd >= 0 && !found && (n = read(fd, text + length, sizeof text - 1 - length)) > 0;) {
        char *line = text, *end;
        length += (size_t)n;
        text[length] = '\0';
        for (; !found && (end = strchr(line, '\n')) != NULL; line = end + 1) {
            *end = '\0';
            found = is_line_of(line, one);
        }
        length = strlen(line);
        memmove(text, line, length);
    }
    close(fd);
    return found;
}

static void unmap_page(const noted *one) {
    /* where MADV_DONTFORK has its effect nothing is mapped there, as a rule, and this tells at once
     */
    if (msync(one->page, SQ_PAGE, MS_ASYNC) == 0 && is_page_mapped(one)) {
        munmap(one->page, SQ_PAGE);
    }
}

static void close_in_child(void) {
    sq_forks++;
    for (size_t i = 0; i < count; i++) {
        if (list[i].page != NULL) {
            unmap_page(&list[i]);
        } else {
            close_descriptor(&list[i]);
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

/* The place of a note, or `count`. */
static size_t find(int fd, const void *page) {
    size_t i = 0;
    while (i < count && (list[i].fd != fd || list[i].page != page)) {
        i++;
    }
    return i;
}

static bool add(noted one) {
    pthread_once(&once, follow_forks);
    lock();
    size_t at = find(one.fd, one.page); /* in place of one that was closed behind our back */
    bool added = at < count || make_room();
    if (added) {
        one.serial = ++serials;
        list[at] = one;
        count += at == count;
    }
    unlock();
    return added;
}

static void forget(int fd, const void *page) {
    lock();
    size_t at = find(fd, page);
    if (at < count) {
        list[at] = list[--count];
    }
    unlock();
}

uint64_t sq_inherited_serial(int fd) {
    lock();
    size_t at = find(fd, NULL);
    uint64_t serial = at < count ? list[at].serial : 0;
    unlock();
    return serial;
}

bool sq_inherited_add(int fd, bool hand_on) {
    struct stat status;
    return fstat(fd, &status) == 0 && add((noted){.fd = fd,
                                                  .device = status.st_dev,
                                                  .inode = status.st_ino,
                                                  .owner = pthread_self(),
                                                  .hand_on = hand_on});
}

void sq_inherited_remove(int fd) {
    forget(fd, NULL);
}

bool sq_inherited_add_page(void *page, int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && add((noted){.fd = -1, .page = page, .inode = status.st_ino});
}

void sq_inherited_remove_page(void *page) {
    forget(-1, page);
}
