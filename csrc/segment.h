/* Segments: files of /dev/shm, the same objects that shm_open and multiprocessing.shared_memory
 * name. A queue's segment gets its name only when it is complete: no process sees half of one.
 */
#ifndef SQ_SEGMENT_H
#define SQ_SEGMENT_H

#include "layout.h"

#include <stdbool.h>
#include <sys/types.h>

typedef enum sq_status {
    SQ_OK = 0,
    SQ_EMPTY,        /* nothing to take */
    SQ_FULL,         /* no room to put */
    SQ_CLOSED,       /* shut down */
    SQ_NO_CHUNK,     /* every fitting chunk of the pool is in use */
    SQ_NO_MEMORY,    /* the shared-memory file system is full */
    SQ_CORRUPT,      /* shared memory holds what no participant writes */
    SQ_ROLE_TAKEN,   /* another live participant is the one producer or consumer */
    SQ_TABLE_FULL,   /* no free participant entry */
    SQ_GONE,         /* no such segment, or its last participant left */
    SQ_EXISTS,       /* the name is in use by a live queue */
    SQ_FOREIGN,      /* another user's, or others may write it */
    SQ_INCOMPATIBLE, /* not a queue, or another layout version */
    SQ_BAD_OPTION,   /* an option is out of range */
    SQ_BUSY,         /* another participant is doing the same: try again in a moment */
    SQ_SYSTEM,       /* errno says */
} sq_status;

#define SQ_QUEUE_NAME_MAX 200
#define SQ_FILE_NAME_MAX 240 /* a queue's name and the number of a segment of its own */

typedef struct sq_options {
    uint64_t maxsize;
    uint64_t pool_bytes;
    uint32_t capacity;
    uint32_t slot_bytes;
    uint32_t participants;
    uint32_t mode;
    uint32_t recovery_ms;
    char codec[SQ_CODEC_MAX];
} sq_options;

/* A mapped segment. The geometry is copied out of shared memory once it has been checked, so
 * that nothing written there later can move a pointer. */
typedef struct sq_segment {
    int fd;
    dev_t device; /* of the file, and its inode: they show that fd was closed by other code */
    ino_t inode;
    uint32_t forks;  /* of the process whose descriptor it is (see inherited.h) */
    uint64_t serial; /* of the descriptor */
    unsigned char *base;
    uint64_t bytes;
    uint64_t birth;
    uint64_t maxsize;
    uint32_t capacity;
    uint32_t slot_bytes;
    uint32_t participants;
    uint32_t classes;
    uint32_t mode;
    uint32_t recovery_ms;
    uint64_t pool_bytes;
    uint64_t participants_offset;
    uint64_t slots_offset;
    uint64_t classes_offset;
    uint64_t chunks_offset;
    uint64_t chunk_bytes[SQ_CLASSES_MAX];
    uint64_t stride[SQ_CLASSES_MAX];
    uint64_t data_offset[SQ_CLASSES_MAX];
    uint64_t first[SQ_CLASSES_MAX];
    uint32_t count[SQ_CLASSES_MAX];
    char codec[SQ_CODEC_MAX];
} sq_segment;

/* A complete queue segment without a name yet. */
sq_status sq_segment_create(sq_segment *segment, const sq_options *options);

/* Give it its name; SQ_EXISTS when a segment has it already. */
sq_status sq_segment_publish(const sq_segment *segment, const char *file_name);

/* How an existing segment is mapped. */
typedef enum sq_access { SQ_READ_ONLY, SQ_READ_WRITE } sq_access;

/* Open a named file. The descriptor is open for writing in any case, which locks need. */
sq_status sq_segment_open(const char *file_name, int *fd);

/* Check what a file descriptor holds and map it; nothing in it is trusted. The descriptor belongs
 * to the segment from then on, and is closed when this fails. */
sq_status sq_segment_map(sq_segment *segment, int fd, sq_access access);

void sq_segment_unmap(sq_segment *segment);

/* A new open file description of the same file; -1: errno says. */
int sq_reopen(int fd);
int sq_segment_reopen(const sq_segment *segment);

/* Let the segment have a descriptor of its own for the file that fd stands for. Forked children
 * lose it, and no mapping keeps its description: what is locked through it ends with the process.
 * SQ_SYSTEM. */
sq_status sq_segment_own(sq_segment *segment, int fd);

/* Whether fd is still the segment's file. Others in the process may close any descriptor. */
bool sq_segment_is_open(const sq_segment *segment);

/* Whether this name is the segment's, and not gone or a newer segment's. */
bool sq_segment_has_name(const sq_segment *segment, const char *file_name);

sq_status sq_segment_unlink(const char *file_name);

/* Make sure that [offset, offset + length) has memory behind it: a full file system is told
 * here, as SQ_NO_MEMORY, and not later by SIGBUS. */
sq_status sq_segment_back(const sq_segment *segment, uint64_t offset, uint64_t length);

/* A plain segment for one message that no chunk can hold. */
sq_status sq_external_create(const char *file_name, uint64_t bytes, unsigned char **data);
sq_status sq_external_open(const char *file_name, uint64_t bytes, unsigned char **data);
void sq_external_unmap(unsigned char *data, uint64_t bytes);

static inline sq_header *sq_segment_header(const sq_segment *segment) {
    return (sq_header *)segment->base;
}
static inline sq_participant *sq_segment_participant(const sq_segment *segment, uint32_t index) {
    return (sq_participant *)(segment->base + segment->participants_offset) + index;
}
static inline sq_slot *sq_segment_slot(const sq_segment *segment, uint64_t position) {
    return (sq_slot *)(segment->base + segment->slots_offset +
                       (position & (segment->capacity - 1)) * segment->slot_bytes);
}
static inline sq_class *sq_segment_class(const sq_segment *segment, uint32_t size_class) {
    return (sq_class *)(segment->base + segment->classes_offset) + size_class;
}

#endif
