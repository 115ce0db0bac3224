#include "segment.h"

#include "inherited.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIRECTORY "/dev/shm"
#define PATH_MAX_BYTES (sizeof DIRECTORY + 1 + SQ_FILE_NAME_MAX)
#define SMALLEST_CHUNK 256u
#define HEADROOM_SMALL 256u    /* room for a codec's header, so that 2^k bytes of data fit 2^k */
#define HEADROOM_LARGE SQ_PAGE /* likewise, where chunks are aligned to pages */
#define LARGE (64u << 10)

static void close_quietly(int fd) {
    int error = errno;
    close(fd);
    errno = error;
}

static uint64_t align(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

static void file_path(char path[PATH_MAX_BYTES], const char *file_name) {
    snprintf(path, PATH_MAX_BYTES, DIRECTORY "/%s", file_name);
}

static void lay_out_class(sq_segment *segment, uint64_t chunk_bytes, uint64_t count) {
    uint32_t size_class = segment->classes++;
    uint64_t first = 0;
    if (size_class > 0) {
        first = segment->first[size_class - 1] + segment->count[size_class - 1];
    }
    segment->chunk_bytes[size_class] = chunk_bytes;
    segment->stride[size_class] = chunk_bytes;
    segment->count[size_class] = (uint32_t)count;
    segment->first[size_class] = first;
}

/* Behind the copies, of which there may be as many as slots, size classes double from 256 bytes to
 * the pool's size. Each may use all of the pool's bytes, but no more chunks than the ring can name
 * and as many leases: untouched ones cost nothing. */
static void lay_out_classes(sq_segment *segment) {
    segment->classes = 0;
    lay_out_class(segment, segment->slot_bytes, segment->capacity);
    for (uint64_t size = SMALLEST_CHUNK;
         size <= segment->pool_bytes && segment->classes < SQ_CLASSES_MAX; size *= 2) {
        uint64_t headroom = size < LARGE ? HEADROOM_SMALL : HEADROOM_LARGE;
        uint64_t count = segment->pool_bytes / size;
        uint64_t most = 2ull * segment->capacity;
        lay_out_class(segment, size + headroom, count < most ? count : most);
    }
    uint32_t last = segment->classes - 1;
    uint64_t chunks = segment->first[last] + segment->count[last];
    uint64_t offset = align(segment->chunks_offset + chunks * sizeof(sq_chunk), SQ_PAGE);
    for (uint32_t i = 0; i < segment->classes; i++) {
        segment->data_offset[i] = offset;
        offset = align(offset + segment->stride[i] * segment->count[i], SQ_PAGE);
    }
    segment->bytes = offset;
}

static void lay_out(sq_segment *segment) {
    segment->participants_offset = sizeof(sq_header);
    segment->classes_offset =
        segment->participants_offset + (uint64_t)segment->participants * sizeof(sq_participant);
    segment->slots_offset =
        align(segment->classes_offset + SQ_CLASSES_MAX * sizeof(sq_class), SQ_PAGE);
    segment->chunks_offset =
        align(segment->slots_offset + (uint64_t)segment->capacity * segment->slot_bytes, SQ_PAGE);
    lay_out_classes(segment);
}

static bool is_ascii(const char text[SQ_CODEC_MAX]) {
    for (uint32_t i = 0; i < SQ_CODEC_MAX; i++) {
        if (text[i] == '\0') {
            return true;
        }
        if ((unsigned char)text[i] > 126) {
            return false;
        }
    }
    return false;
}

static bool options_allowed(const sq_segment *segment) {
    return segment->capacity >= SQ_CAPACITY_MIN && segment->capacity <= SQ_CAPACITY_MAX &&
           (segment->capacity & (segment->capacity - 1)) == 0 &&
           segment->maxsize <= segment->capacity && segment->slot_bytes >= SQ_SLOT_MIN &&
           segment->slot_bytes <= SQ_SLOT_MAX && segment->slot_bytes % 64 == 0 &&
           segment->participants >= 1 && segment->participants <= SQ_PARTICIPANTS_MAX &&
           segment->mode <= (SQ_SINGLE_PRODUCER | SQ_SINGLE_CONSUMER) &&
           segment->recovery_ms >= 1 && segment->recovery_ms <= 60000 &&
           segment->pool_bytes >= SQ_POOL_MIN && segment->pool_bytes <= SQ_POOL_MAX &&
           is_ascii(segment->codec);
}

static sq_status back(int fd, uint64_t offset, uint64_t length) {
    while (fallocate(fd, 0, (off_t)offset, (off_t)length) != 0) {
        if (errno == EINTR) {
            continue;
        }
        return errno == ENOSPC || errno == ENOMEM ? SQ_NO_MEMORY : SQ_SYSTEM;
    }
    return SQ_OK;
}

sq_status sq_segment_back(const sq_segment *segment, uint64_t offset, uint64_t length) {
    return sq_segment_is_open(segment) ? back(segment->fd, offset, length) : SQ_SYSTEM;
}

static void write_header(const sq_segment *segment) {
    sq_header *header = sq_segment_header(segment);
    header->version = SQ_LAYOUT_VERSION;
    header->mode = segment->mode;
    header->segment_bytes = segment->bytes;
    header->maxsize = segment->maxsize;
    header->capacity = segment->capacity;
    header->slot_bytes = segment->slot_bytes;
    header->participants = segment->participants;
    header->classes = segment->classes;
    header->chunks =
        (uint32_t)(segment->first[segment->classes - 1] + segment->count[segment->classes - 1]);
    header->recovery_ms = segment->recovery_ms;
    header->pool_bytes = segment->pool_bytes;
    header->participants_offset = segment->participants_offset;
    header->slots_offset = segment->slots_offset;
    header->classes_offset = segment->classes_offset;
    header->chunks_offset = segment->chunks_offset;
    header->birth = segment->birth;
    memcpy(header->codec, segment->codec, SQ_CODEC_MAX);
    for (uint32_t i = 0; i < segment->classes; i++) {
        sq_class *size_class = sq_segment_class(segment, i);
        size_class->chunk_bytes = segment->chunk_bytes[i];
        size_class->stride = segment->stride[i];
        size_class->data_offset = segment->data_offset[i];
        size_class->first = segment->first[i];
        size_class->count = segment->count[i];
    }
    header->magic = SQ_MAGIC;
}

int sq_reopen(int fd) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

int sq_segment_reopen(const sq_segment *segment) {
    return sq_segment_is_open(segment) ? sq_reopen(segment->fd) : -1;
}

sq_status sq_segment_own(sq_segment *segment, int fd) {
    struct stat status;
    int own = sq_reopen(fd);
    if (own < 0) {
        return SQ_SYSTEM;
    }
    if (fstat(own, &status) != 0 || !sq_inherited_add(own, false)) {
        close_quietly(own);
        return SQ_SYSTEM;
    }
    segment->fd = own;
    segment->device = status.st_dev;
    segment->inode = status.st_ino;
    segment->forks = sq_forks;
    segment->serial = sq_inherited_serial(own);
    return SQ_OK;
}

static bool is_same_file(const sq_segment *segment, const struct stat *status) {
    return status->st_dev == segment->device && status->st_ino == segment->inode;
}

bool sq_segment_is_open(const sq_segment *segment) {
    struct stat status;
    if (fstat(segment->fd, &status) != 0) {
        return false;
    }
    if (!is_same_file(segment, &status) || segment->forks != sq_forks ||
        sq_inherited_serial(segment->fd) != segment->serial) {
        errno = EBADF;
        return false;
    }
    return true;
}

static void disown(sq_segment *segment) {
    if (sq_segment_is_open(segment)) {
        sq_inherited_remove(segment->fd);
        close_quietly(segment->fd);
    }
    segment->fd = -1;
}

/* Give a new file its size, the memory that every queue uses, and its header. */
static sq_status fill(sq_segment *segment, int fd) {
    if (ftruncate(fd, (off_t)segment->bytes) != 0) {
        return SQ_SYSTEM;
    }
    /* the first slot too: a consumer of an empty queue looks at it */
    sq_status status = back(fd, 0, segment->slots_offset + segment->slot_bytes);
    if (status != SQ_OK) {
        return status;
    }
    void *base =
        mmap(NULL, segment->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        return SQ_SYSTEM;
    }
    segment->base = base;
    write_header(segment);
    return SQ_OK;
}

static sq_status own_or_unmap(sq_segment *segment, int fd) {
    sq_status status = sq_segment_own(segment, fd);
    if (status != SQ_OK) {
        int error = errno;
        munmap(segment->base, segment->bytes);
        segment->base = NULL;
        errno = error;
    }
    return status;
}

sq_status sq_segment_create(sq_segment *segment, const sq_options *options) {
    memset(segment, 0, sizeof *segment);
    segment->fd = -1;
    segment->maxsize = options->maxsize;
    segment->capacity = options->capacity;
    segment->slot_bytes = options->slot_bytes;
    segment->participants = options->participants;
    segment->mode = options->mode;
    segment->recovery_ms = options->recovery_ms;
    segment->pool_bytes = options->pool_bytes;
    memcpy(segment->codec, options->codec, SQ_CODEC_MAX);
    if (!options_allowed(segment)) {
        return SQ_BAD_OPTION;
    }
    lay_out(segment);
    if (getrandom(&segment->birth, sizeof segment->birth, 0) != sizeof segment->birth) {
        return SQ_SYSTEM;
    }

    /* O_TMPFILE: until it is published the segment vanishes with its creator */
    int fd = open(DIRECTORY, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        return SQ_SYSTEM;
    }
    sq_status status = fill(segment, fd);
    if (status == SQ_OK) {
        status = own_or_unmap(segment, fd);
    }
    close_quietly(fd);
    return status;
}

sq_status sq_segment_publish(const sq_segment *segment, const char *file_name) {
    char path[PATH_MAX_BYTES];
    char source[32];
    if (!sq_segment_is_open(segment)) {
        return SQ_SYSTEM;
    }
    file_path(path, file_name);
    snprintf(source, sizeof source, "/proc/self/fd/%d", segment->fd);
    if (linkat(AT_FDCWD, source, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0) {
        return SQ_OK;
    }
    return errno == EEXIST ? SQ_EXISTS : SQ_SYSTEM;
}

/* Copy the header out, then compute from its options alone where everything must be: a header
 * that says anything else was not written by this layout. */
static sq_status check_header(sq_segment *segment, uint64_t file_bytes) {
    sq_header header;
    memcpy(&header, segment->base, offsetof(sq_header, control));
    if (header.magic != SQ_MAGIC || header.version != SQ_LAYOUT_VERSION) {
        return SQ_INCOMPATIBLE;
    }
    segment->maxsize = header.maxsize;
    segment->capacity = header.capacity;
    segment->slot_bytes = header.slot_bytes;
    segment->participants = header.participants;
    segment->mode = header.mode;
    segment->recovery_ms = header.recovery_ms;
    segment->pool_bytes = header.pool_bytes;
    segment->birth = header.birth;
    memcpy(segment->codec, header.codec, SQ_CODEC_MAX);
    if (!options_allowed(segment)) {
        return SQ_CORRUPT;
    }
    lay_out(segment);
    bool agrees = header.segment_bytes == segment->bytes && file_bytes == segment->bytes &&
                  header.classes == segment->classes &&
                  header.participants_offset == segment->participants_offset &&
                  header.slots_offset == segment->slots_offset &&
                  header.classes_offset == segment->classes_offset &&
                  header.chunks_offset == segment->chunks_offset;
    return agrees ? SQ_OK : SQ_CORRUPT;
}

static sq_status map_checked(sq_segment *segment, int fd, sq_access access) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return SQ_SYSTEM;
    }
    if (status.st_uid != geteuid() || (status.st_mode & 077) != 0) {
        return SQ_FOREIGN;
    }
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size < sizeof(sq_header)) {
        return SQ_INCOMPATIBLE;
    }
    uint64_t file_bytes = (uint64_t)status.st_size;
    int protection = access == SQ_READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, file_bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        return SQ_SYSTEM;
    }
    segment->base = base;
    sq_status result = check_header(segment, file_bytes);
    if (result != SQ_OK) {
        munmap(base, file_bytes);
        segment->base = NULL;
    }
    return result;
}

sq_status sq_segment_map(sq_segment *segment, int fd, sq_access access) {
    memset(segment, 0, sizeof *segment);
    segment->fd = -1;
    sq_status status = map_checked(segment, fd, access);
    if (status == SQ_OK) {
        status = own_or_unmap(segment, fd);
    }
    close_quietly(fd);
    return status;
}

sq_status sq_segment_open(const char *file_name, int *fd) {
    char path[PATH_MAX_BYTES];
    file_path(path, file_name);
    *fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (*fd >= 0) {
        return SQ_OK;
    }
    switch (errno) {
    case ENOENT:
        return SQ_GONE;
    case EACCES:
    case EPERM:
    case ELOOP:
        return SQ_FOREIGN;
    default:
        return SQ_SYSTEM;
    }
}

void sq_segment_unmap(sq_segment *segment) {
    munmap(segment->base, segment->bytes);
    segment->base = NULL;
    disown(segment);
}

bool sq_segment_has_name(const sq_segment *segment, const char *file_name) {
    char path[PATH_MAX_BYTES];
    struct stat status;
    file_path(path, file_name);
    return lstat(path, &status) == 0 && is_same_file(segment, &status);
}

sq_status sq_segment_unlink(const char *file_name) {
    char path[PATH_MAX_BYTES];
    file_path(path, file_name);
    if (unlink(path) == 0) {
        return SQ_OK;
    }
    return errno == ENOENT ? SQ_GONE : SQ_SYSTEM;
}

static sq_status map_external(int fd, uint64_t bytes, unsigned char **data) {
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        return SQ_SYSTEM;
    }
    *data = base;
    return SQ_OK;
}

sq_status sq_external_create(const char *file_name, uint64_t bytes, unsigned char **data) {
    char path[PATH_MAX_BYTES];
    file_path(path, file_name);
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        return SQ_SYSTEM;
    }
    sq_status status = back(fd, 0, bytes);
    if (status == SQ_OK) {
        status = map_external(fd, bytes, data);
    }
    close_quietly(fd);
    if (status != SQ_OK) {
        int error = errno;
        unlink(path);
        errno = error;
    }
    return status;
}

sq_status sq_external_open(const char *file_name, uint64_t bytes, unsigned char **data) {
    char path[PATH_MAX_BYTES];
    struct stat status;
    file_path(path, file_name);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        return errno == ENOENT ? SQ_CORRUPT : SQ_SYSTEM;
    }
    sq_status result = SQ_CORRUPT;
    if (fstat(fd, &status) == 0 && status.st_uid == geteuid() &&
        (uint64_t)status.st_size >= bytes) {
        result = map_external(fd, bytes, data);
    }
    close_quietly(fd);
    return result;
}

void sq_external_unmap(unsigned char *data, uint64_t bytes) {
    munmap(data, bytes);
}
