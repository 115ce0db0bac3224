/* Coming and going. An entry is taken by one CAS that also names its process, and given up by one
 * store; roles are words that hold the entry's number. */
#include "process.h"
#include "queue.h"
#include "ring_words.h"
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SPIN_FIRST_NS 20000u
#define PATIENCE_MS 1000u /* with another one that is recovering the dead */

static bool take_entry(sq_queue *queue, uint32_t index, uint64_t identity, uint64_t former) {
    sq_participant *entry = sq_segment_participant(&queue->segment, index);
    /* acquire: what the former bearer left is settled */
    if (!atomic_compare_exchange_strong_explicit(&entry->identity, &former, identity,
                                                 memory_order_acq_rel, memory_order_relaxed)) {
        return false;
    }
    queue->self = entry;
    queue->id = index + 1;
    return true;
}

static sq_status join(sq_queue *queue) {
    uint64_t identity = sq_process_identity();
    if (identity == 0) {
        errno = ENOSYS; /* no /proc: the dead could not be told from the living */
        return SQ_SYSTEM;
    }
    for (uint32_t index = 0; index + 1 < queue->segment.participants; index++) {
        if (take_entry(queue, index, identity, 0)) {
            return SQ_OK;
        }
    }
    return SQ_TABLE_FULL;
}

static bool somebody_recovers(const sq_queue *queue) {
    return atomic_load_explicit(&queue->header->recoverer, memory_order_acquire) % SQ_TERM != 0;
}

/* The caller holds the segment's lock. To recover the dead one must be a participant; when the
 * table is full of them, the last entry, which the lock guards, serves the newcomer meanwhile. */
static sq_status join_or_recover(sq_queue *queue) {
    sq_status status = join(queue);
    if (status != SQ_TABLE_FULL) {
        return status;
    }
    uint32_t last = queue->segment.participants - 1;
    sq_participant *entry = sq_segment_participant(&queue->segment, last);
    uint64_t former = atomic_load_explicit(&entry->identity, memory_order_acquire);
    if (!take_entry(queue, last, sq_process_identity(), former)) {
        return SQ_TABLE_FULL;
    }
    for (uint32_t tries = 0; tries < PATIENCE_MS; tries++) {
        sq_recover(queue, 0);
        status = join(queue);
        if (status != SQ_TABLE_FULL || !somebody_recovers(queue)) {
            break;
        }
        usleep(1000);
    }
    if (status != SQ_OK) {
        queue->self = NULL;
        queue->id = 0;
    }
    atomic_store_explicit(&entry->identity, 0, memory_order_release);
    return status;
}

static bool anybody_alive(const sq_segment *segment) {
    for (uint32_t i = 0; i < segment->participants; i++) {
        uint64_t identity = atomic_load_explicit(&sq_segment_participant(segment, i)->identity,
                                                 memory_order_acquire);
        if (identity != 0 && sq_process_alive(identity)) {
            return true;
        }
    }
    return false;
}

/* Prepare a handle for this name. */
static sq_status name_handle(sq_queue *queue, const char *file_name) {
    size_t length = strnlen(file_name, SQ_QUEUE_NAME_MAX + 1);
    memset(queue, 0, sizeof *queue);
    if (length == 0 || length > SQ_QUEUE_NAME_MAX || strchr(file_name, '/') != NULL) {
        return SQ_BAD_OPTION;
    }
    memcpy(queue->file_name, file_name, length);
    return SQ_OK;
}

static void open_handle(sq_queue *queue) {
    queue->header = sq_segment_header(&queue->segment);
    queue->single_producer = queue->segment.mode & SQ_SINGLE_PRODUCER;
    queue->single_consumer = queue->segment.mode & SQ_SINGLE_CONSUMER;
    queue->limit = queue->segment.maxsize ? queue->segment.maxsize : queue->segment.capacity;
    queue->turn_shift = (uint64_t)__builtin_ctz(queue->segment.capacity);
    atomic_store_explicit(&queue->spin_ns, SPIN_FIRST_NS, memory_order_relaxed);
    atomic_flag_clear(&queue->recovering);
}

/* The caller holds the segment's lock, and nobody else is left. */
static void remove_name(sq_queue *queue) {
    if (sq_segment_named(&queue->segment)) {
        sq_external_drop_all(queue);
        sq_segment_unlink(queue->file_name);
    }
}

sq_status sq_queue_look(sq_queue *queue, const char *file_name) {
    sq_status status = name_handle(queue, file_name);
    if (status == SQ_OK) {
        status = sq_segment_attach(&queue->segment, file_name);
    }
    if (status == SQ_OK) {
        open_handle(queue);
    }
    return status;
}

sq_status sq_queue_remove(const char *file_name, bool alive_too) {
    sq_queue other;
    sq_status status = sq_queue_look(&other, file_name);
    if (status != SQ_OK) {
        return status;
    }
    status = sq_segment_lock(&other.segment);
    if (status == SQ_OK) {
        if (!alive_too && sq_segment_named(&other.segment) && anybody_alive(&other.segment)) {
            status = SQ_EXISTS;
        } else {
            sq_shutdown(&other, true); /* whoever is left comes out of every wait */
            remove_name(&other);
        }
        sq_segment_unlock(&other.segment);
    }
    sq_segment_unmap(&other.segment);
    return status;
}

sq_status sq_queue_create(sq_queue *queue, const char *file_name, const sq_options *options) {
    sq_status status = name_handle(queue, file_name);
    if (status == SQ_OK) {
        status = sq_segment_create(&queue->segment, options);
    }
    if (status != SQ_OK) {
        return status;
    }
    open_handle(queue);
    status = join(queue);
    while (status == SQ_OK) {
        status = sq_segment_publish(&queue->segment, file_name);
        if (status != SQ_EXISTS) {
            break;
        }
        status = sq_queue_remove(file_name, false); /* if nobody alive holds it */
        status = status == SQ_GONE ? SQ_OK : status;
    }
    if (status != SQ_OK) {
        int error = errno;
        sq_segment_unmap(&queue->segment);
        errno = error;
    }
    return status;
}

sq_status sq_queue_attach(sq_queue *queue, const char *file_name) {
    sq_status status = sq_queue_look(queue, file_name);
    if (status != SQ_OK) {
        return status;
    }
    /* under the lock, so that the last one out either sees us or is seen to have gone */
    status = sq_segment_lock(&queue->segment);
    if (status == SQ_OK) {
        status = sq_segment_named(&queue->segment) ? join_or_recover(queue) : SQ_GONE;
        sq_segment_unlock(&queue->segment);
    }
    if (status != SQ_OK) {
        int error = errno;
        sq_segment_unmap(&queue->segment);
        errno = error;
    }
    return status;
}

sq_status sq_queue_rejoin(sq_queue *queue) {
    /* a file description of our own: locks of the one we inherited are the parent's too */
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", queue->segment.fd);
    queue->self = NULL; /* the parent's */
    queue->id = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return SQ_SYSTEM;
    }
    close(queue->segment.fd);
    queue->segment.fd = fd;
    queue->producing = false;
    queue->consuming = false;
    atomic_store_explicit(&queue->news_seen, 0, memory_order_relaxed);
    atomic_flag_clear(&queue->recovering);
    sq_status status = sq_segment_lock(&queue->segment);
    if (status == SQ_OK) {
        status = join_or_recover(queue);
        sq_segment_unlock(&queue->segment);
    }
    return status;
}

void sq_queue_leave(sq_queue *queue) {
    sq_settle_chunks(queue, queue->id);
    uint32_t id = queue->id;
    atomic_compare_exchange_strong_explicit(&queue->header->producer, &id, 0, memory_order_release,
                                            memory_order_relaxed);
    id = queue->id;
    atomic_compare_exchange_strong_explicit(&queue->header->consumer, &id, 0, memory_order_release,
                                            memory_order_relaxed);
    bool locked = sq_segment_lock(&queue->segment) == SQ_OK;
    sq_recover(queue, 0);
    /* release: all that we did is visible to whoever takes the entry next */
    atomic_store_explicit(&queue->self->identity, 0, memory_order_release);
    queue->self = NULL;
    if (locked) {
        if (!anybody_alive(&queue->segment)) {
            remove_name(queue);
        }
        sq_segment_unlock(&queue->segment);
    }
}

void sq_queue_unmap(sq_queue *queue) {
    sq_segment_unmap(&queue->segment);
}

static sq_status take_role(sq_queue *queue, _Atomic uint32_t *role, bool single) {
    if (!single) {
        return SQ_OK;
    }
    for (uint32_t tries = 0; tries < PATIENCE_MS; tries++) {
        uint32_t holder = 0;
        /* acquire: the former holder's last operations are complete to us */
        if (atomic_compare_exchange_strong_explicit(role, &holder, queue->id, memory_order_acquire,
                                                    memory_order_relaxed) ||
            holder == queue->id) {
            return SQ_OK;
        }
        if (holder > queue->segment.participants) {
            return SQ_CORRUPT;
        }
        uint64_t identity = atomic_load_explicit(
            &sq_segment_participant(&queue->segment, holder - 1)->identity, memory_order_acquire);
        if (identity != 0 && sq_process_alive(identity)) {
            return SQ_ROLE_TAKEN;
        }
        if (sq_recover(queue, 0) == 0) {
            usleep(1000); /* another one is recovering it */
        }
    }
    return SQ_ROLE_TAKEN;
}

sq_status sq_queue_enrol_producer(sq_queue *queue) {
    sq_status status = take_role(queue, &queue->header->producer, queue->single_producer);
    queue->producing = status == SQ_OK;
    return status;
}

sq_status sq_queue_enrol_consumer(sq_queue *queue) {
    sq_status status = take_role(queue, &queue->header->consumer, queue->single_consumer);
    queue->consuming = status == SQ_OK;
    return status;
}
