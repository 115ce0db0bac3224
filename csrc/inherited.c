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

/* What is known of a descriptor; its number is the index in the table. */
typedef struct descriptor {
    dev_t device; /* the file: somebody may have closed the descriptor and opened another */
    ino_t inode;
    pthread_t owner;
    bool hand_on;
    uint64_t serial; /* 0: not added, or removed */
} descriptor;

struct sq_inherited_page {
    void *address; /* NULL: this process does not have it */
    ino_t inode;
    sq_inherited_page *previous, *next;
};

uint32_t sq_forks;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static descriptor *descriptors;
static size_t room;
static uint64_t serials;
static sq_inherited_page *pages;

static void lock(void) {
    pthread_mutex_lock(&mutex);
}

static void unlock(void) {
    pthread_mutex_unlock(&mutex);
}

/* ---- pages ---- */

/* Whether a line of /proc/self/maps is that of the page: "start-end mode offset device inode path".
 */
static bool is_line_of(const char *line, const sq_inherited_page *page) {
    unsigned long start, inode;
    return sscanf(line, "%lx-%*x %*s %*x %*s %lu", &start, &inode) == 2 &&
           start == (unsigned long)page->address && inode == (unsigned long)page->inode;
}

/* Whether the page is mapped here, and has not become another mapping of somebody else's. */
static bool is_page_mapped(const sq_inherited_page *page) {
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
            found = is_line_of(line, page);
        }
        length = strlen(line);
        memmove(text, line, length);
    }
    close(fd);
    return found;
}

static void unmap_in_child(const sq_inherited_page *page) {
    /* where MADV_DONTFORK has its effect nothing is mapped there, as a rule, and this tells at once
     */
    if (msync(page->address, SQ_PAGE, MS_ASYNC) == 0 && is_page_mapped(page)) {
        munmap(page->address, SQ_PAGE);
    }
}

static void unmap_pages_in_child(void) {
    for (sq_inherited_page *page = pages; page != NULL; page = page->next) {
        if (page->address != NULL) {
            unmap_in_child(page);
            page->address = NULL;
        }
    }
}

/* ---- descriptors ---- */

static void close_in_child(int fd) {
    const descriptor *noted = &descriptors[fd];
    struct stat status;
    bool ours = noted->hand_on && pthread_equal(noted->owner, pthread_self());
    if (!ours && fstat(fd, &status) == 0 && status.st_dev == noted->device &&
        status.st_ino == noted->inode) {
        close(fd);
    }
}

static void close_descriptors_in_child(void) {
    for (size_t fd = 0; fd < room; fd++) {
        if (descriptors[fd].serial != 0) {
            close_in_child((int)fd);
            descriptors[fd].serial = 0;
        }
    }
}

static bool make_room(size_t fd) {
    if (fd >= room) {
        size_t more = fd < 32 ? 64 : 2 * fd;
        descriptor *larger = realloc(descriptors, more * sizeof *larger);
        if (larger == NULL) {
            return false;
        }
        memset(larger + room, 0, (more - room) * sizeof *larger);
        descriptors = larger;
        room = more;
    }
    return true;
}

/* ---- both ---- */

static void enter_child(void) {
    sq_forks++;
    unmap_pages_in_child();
    close_descriptors_in_child();
    unlock();
}

static void follow_forks(void) {
    pthread_atfork(lock, unlock, enter_child);
}

bool sq_inherited_add(int fd, bool hand_on) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return false;
    }
    pthread_once(&once, follow_forks);
    lock();
    bool added = make_room((size_t)fd);
    if (added) {
        descriptors[fd] = (descriptor){.device = status.st_dev,
                                       .inode = status.st_ino,
                                       .owner = pthread_self(),
                                       .hand_on = hand_on,
                                       .serial = ++serials};
    }
    unlock();
    return added;
}

void sq_inherited_remove(int fd) {
    lock();
    if (fd >= 0 && (size_t)fd < room) {
        descriptors[fd].serial = 0;
    }
    unlock();
}

uint64_t sq_inherited_serial(int fd) {
    lock();
    uint64_t serial = fd >= 0 && (size_t)fd < room ? descriptors[fd].serial : 0;
    unlock();
    return serial;
}

sq_inherited_page *sq_inherited_add_page(void *address, int fd) {
    struct stat status;
    sq_inherited_page *page = malloc(sizeof *page);
    if (page == NULL || fstat(fd, &status) != 0) {
        free(page);
        return NULL;
    }
    pthread_once(&once, follow_forks);
    lock();
    *page = (sq_inherited_page){.address = address, .inode = status.st_ino, .next = pages};
    if (pages != NULL) {
        pages->previous = page;
    }
    pages = page;
    unlock();
    return page;
}

void sq_inherited_unmap_page(sq_inherited_page *page) {
    lock();
    if (page->next != NULL) {
        page->next->previous = page->previous;
    }
    if (page->previous != NULL) {
        page->previous->next = page->next;
    } else {
        pages = page->next;
    }
    unlock();
    if (page->address != NULL) {
        munmap(page->address, SQ_PAGE);
    }
    free(page);
}
