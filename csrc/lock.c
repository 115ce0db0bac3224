#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static struct flock on_byte(uint32_t byte, short type) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

static short type_of(sq_lock_kind kind) {
    return kind == SQ_LOCK_SHARED ? F_RDLCK : F_WRLCK;
}

sq_status sq_lock_try(int fd, uint32_t byte, sq_lock_kind kind) {
    struct flock lock = on_byte(byte, type_of(kind));
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) {
        return SQ_OK;
    }
    return errno == EAGAIN || errno == EACCES ? SQ_BUSY : SQ_SYSTEM;
}

void sq_lock_drop(int fd, uint32_t byte) {
    struct flock lock = on_byte(byte, F_UNLCK);
    fcntl(fd, F_OFD_SETLK, &lock);
}

bool sq_lock_is_refused(const sq_segment *segment, uint32_t byte, sq_lock_kind kind) {
    struct flock lock = on_byte(byte, type_of(kind));
    if (fcntl(segment->fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) {
        return true;
    }
    /* a descriptor that somebody closed may stand for another file by now */
    return !sq_segment_is_open(segment);
}

sq_inherited_page *sq_lock_keep(int fd) {
    void *address = mmap(NULL, SQ_PAGE, PROT_NONE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
        return NULL;
    }
    sq_inherited_page *kept = NULL;
    if (madvise(address, SQ_PAGE, MADV_DONTFORK) == 0) {
        kept = sq_inherited_add_page(address, fd);
    }
    if (kept == NULL) {
        int error = errno;
        munmap(address, SQ_PAGE);
        errno = error;
    }
    return kept;
}
