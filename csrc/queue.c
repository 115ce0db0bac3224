#include "queue.h"

#include "control.h"
#include "inherited.h"
#include "pool.h"
#include "recovery.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPIN_FIRST_NS 20000u
#define NOT_INVITED -1

/* ---- the last one out ---- */

/* The caller has locked the name, so it does not become another segment's. */
static void remove_name(sq_queue *queue) {
    sq_mark_removed(queue);
    sq_external_drop_all(queue);
    if (sq_segment_has_name(&queue->segment, queue->file_name)) {
        sq_segment_unlink(queue->file_name);
    }
}

static sq_status lock_name(int fd) {
    return sq_lock_try(fd, SQ_LOCK_NAME, SQ_LOCK_EXCLUSIVE);
}

/* SQ_EXISTS unless nobody takes part, and from then on nobody can. */
static sq_status shut_out_members(const sq_segment *segment) {
    sq_status status = sq_lock_try(segment->fd, SQ_LOCK_MEMBERS, SQ_LOCK_EXCLUSIVE);
    if (status != SQ_BUSY) {
        return status;
    }
    /* a lock that even members are refused is that of another one who removes it */
    return sq_lock_is_refused(segment, SQ_LOCK_MEMBERS, SQ_LOCK_SHARED) ? SQ_BUSY : SQ_EXISTS;
}

static void remove_if_last(sq_queue *queue) {
    const sq_segment *segment = &queue->segment;
    if (sq_segment_is_open(segment) && shut_out_members(segment) == SQ_OK) {
        if (lock_name(segment->fd) == SQ_OK) {
            remove_name(queue);
            sq_lock_drop(segment->fd, SQ_LOCK_NAME);
        }
        sq_lock_drop(segment->fd, SQ_LOCK_MEMBERS);
    }
}

/* ---- opening ---- */

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
    queue->bounded = queue->segment.maxsize != 0;
    queue->limit = queue->bounded ? queue->segment.maxsize : queue->segment.capacity;
    queue->turn_shift = (uint64_t)__builtin_ctz(queue->segment.capacity);
    /* relaxed, both: nobody else has the handle yet */
    atomic_store_explicit(&queue->spin_ns, SPIN_FIRST_NS, memory_order_relaxed);
    atomic_flag_clear_explicit(&queue->recovering, memory_order_relaxed);
}

static sq_status unmap_unless_ok(sq_queue *queue, sq_status status) {
    if (status != SQ_OK) {
        int error = errno;
        sq_segment_unmap(&queue->segment);
        errno = error;
    }
    return status;
}

static sq_status map_handle(sq_queue *queue, int fd, sq_access access) {
    sq_status status = sq_segment_map(&queue->segment, fd, access);
    if (status == SQ_OK) {
        open_handle(queue);
    }
    return status;
}

static sq_status look_up(sq_queue *queue, const char *file_name, sq_access access) {
    int fd;
    sq_status status = name_handle(queue, file_name);
    if (status == SQ_OK) {
        status = sq_segment_open(file_name, &fd);
    }
    return status == SQ_OK ? map_handle(queue, fd, access) : status;
}

sq_status sq_queue_open_readonly(sq_queue *queue, const char *file_name) {
    return look_up(queue, file_name, SQ_READ_ONLY);
}

/* Enter the table; one that is full may be full of the dead. */
static sq_status enter(sq_queue *queue, sq_membership *membership) {
    sq_status status = sq_participant_enter(queue, membership);
    if (status != SQ_TABLE_FULL) {
        return status;
    }
    uint32_t found;
    status = sq_recover(queue, &found);
    if (status != SQ_OK && status != SQ_BUSY) {
        return status;
    }
    sq_status again = sq_participant_enter(queue, membership);
    return again == SQ_TABLE_FULL && status == SQ_BUSY ? SQ_BUSY : again;
}

/* Take part, and end the invitation, if there is one. */
static sq_status join(sq_queue *queue, int invitation) {
    sq_membership membership;
    sq_status status = enter(queue, &membership);
    if (status == SQ_OK) {
        status = sq_participant_adopt(queue, &membership);
    }
    int error = errno;
    if (invitation >= 0) {
        sq_queue_end_invitation(queue, invitation);
    }
    if (status != SQ_OK) {
        remove_if_last(queue); /* all others may have left while we were a member */
    }
    errno = error;
    return status;
}

static sq_status join_mapped(sq_queue *queue, int invitation) {
    sq_status status = join(queue, invitation);
    /* while we take part nobody removes the name, but it may have been removed before */
    if (status == SQ_OK && ((sq_control(queue) & SQ_REMOVED) ||
                            !sq_segment_has_name(&queue->segment, queue->file_name))) {
        sq_queue_leave(queue);
        status = SQ_GONE;
    }
    return unmap_unless_ok(queue, status);
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
    status = join(queue, NOT_INVITED);
    while (status == SQ_OK) {
        status = sq_segment_publish(&queue->segment, file_name);
        if (status != SQ_EXISTS) {
            break;
        }
        status = sq_queue_remove(file_name, false); /* if nobody alive holds it */
        status = status == SQ_GONE ? SQ_OK : status;
    }
    if (status != SQ_OK && queue->self != NULL) {
        int error = errno;
        sq_participant_exit(queue);
        errno = error;
    }
    return unmap_unless_ok(queue, status);
}

sq_status sq_queue_attach(sq_queue *queue, const char *file_name) {
    sq_status status = look_up(queue, file_name, SQ_READ_WRITE);
    return status == SQ_OK ? join_mapped(queue, NOT_INVITED) : status;
}

/* ---- other processes of ours ---- */

int sq_queue_invite(const sq_queue *queue, bool for_fork) {
    int fd = sq_segment_reopen(&queue->segment);
    if (fd >= 0 && (sq_lock_try(fd, SQ_LOCK_MEMBERS, SQ_LOCK_SHARED) != SQ_OK ||
                    (for_fork && !sq_inherited_add(fd, true)))) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

void sq_queue_end_invitation(sq_queue *queue, int invitation) {
    sq_inherited_remove(invitation);
    close(invitation);
    if (queue->self == NULL) {
        remove_if_last(queue);
    }
}

sq_status sq_queue_fork_child(sq_queue *queue, int invitation) {
    queue->self = NULL; /* the parent's, like its locks, which are not mapped here */
    queue->locks = NULL;
    queue->id = 0;
    queue->producing = false;
    queue->consuming = false;
    /* relaxed, all: the other threads are the parent's */
    atomic_store_explicit(&queue->control_seen, 0, memory_order_relaxed);
    atomic_store_explicit(&queue->wakeup, false, memory_order_relaxed);
    atomic_flag_clear_explicit(&queue->recovering, memory_order_relaxed);
    sq_status status = sq_segment_own(&queue->segment, invitation);
    if (status == SQ_OK) {
        return join(queue, invitation);
    }
    int error = errno;
    close(invitation);
    errno = error;
    return status;
}

sq_status sq_queue_accept(sq_queue *queue, const char *file_name, int invitation) {
    sq_status status = name_handle(queue, file_name);
    if (status == SQ_OK) {
        int fd = sq_reopen(invitation);
        status = fd < 0 ? SQ_SYSTEM : map_handle(queue, fd, SQ_READ_WRITE);
    }
    if (status == SQ_OK) {
        return join_mapped(queue, invitation);
    }
    int error = errno;
    close(invitation);
    errno = error;
    return status;
}

/* ---- closing ---- */

void sq_queue_leave(sq_queue *queue) {
    sq_settle_chunks(queue, queue->id);
    /* release, both, pair with take_role: our last operations are complete to the next one */
    uint32_t id = queue->id;
    atomic_compare_exchange_strong_explicit(&queue->header->producer, &id, 0, memory_order_release,
                                            memory_order_relaxed);
    id = queue->id;
    atomic_compare_exchange_strong_explicit(&queue->header->consumer, &id, 0, memory_order_release,
                                            memory_order_relaxed);
    sq_participant_exit(queue);
    remove_if_last(queue);
}

void sq_queue_unmap(sq_queue *queue) {
    sq_segment_unmap(&queue->segment);
}

static sq_status remove_mapped(sq_queue *queue, bool force) {
    sq_status status = force ? SQ_OK : shut_out_members(&queue->segment);
    if (status == SQ_OK) {
        status = lock_name(queue->segment.fd);
    }
    if (status != SQ_SYSTEM && !sq_segment_has_name(&queue->segment, queue->file_name)) {
        status = SQ_GONE; /* whoever refused us may have just removed it */
    }
    if (status == SQ_OK) {
        if (force) {
            sq_shutdown(queue, true); /* whoever is left comes out of every wait */
        }
        remove_name(queue);
    }
    return status;
}

/* Of a file of ours that is no queue: no more than its name. */
static sq_status remove_file(const char *file_name) {
    int fd;
    struct stat status;
    sq_status result = sq_segment_open(file_name, &fd);
    if (result != SQ_OK) {
        return result;
    }
    result = lock_name(fd);
    if (result == SQ_OK) {
        bool ours = fstat(fd, &status) == 0 && status.st_uid == geteuid();
        const sq_segment segment = {.fd = fd, .device = status.st_dev, .inode = status.st_ino};
        result = !ours                                      ? SQ_FOREIGN
                 : sq_segment_has_name(&segment, file_name) ? sq_segment_unlink(file_name)
                                                            : SQ_GONE;
    }
    close(fd);
    return result;
}

sq_status sq_queue_remove(const char *file_name, bool force) {
    sq_queue other;
    sq_status status = look_up(&other, file_name, SQ_READ_WRITE);
    if (force && (status == SQ_CORRUPT || status == SQ_INCOMPATIBLE)) {
        return remove_file(file_name);
    }
    if (status != SQ_OK) {
        return status;
    }
    status = remove_mapped(&other, force);
    int error = errno;
    sq_segment_unmap(&other.segment); /* and with its descriptor go the locks */
    errno = error;
    return status;
}

/* ---- roles ---- */

static sq_status try_role(sq_queue *queue, _Atomic uint32_t *role) {
    uint32_t holder = 0;
    /* acquire, pairs with give_up_role and sq_queue_leave: the former holder's last operations are
     * complete to us */
    if (atomic_compare_exchange_strong_explicit(role, &holder, queue->id, memory_order_acquire,
                                                memory_order_relaxed) ||
        holder == queue->id) {
        return SQ_OK;
    }
    if (holder > queue->segment.participants) {
        return SQ_CORRUPT;
    }
    return sq_participant_lives(queue, holder - 1) ? SQ_ROLE_TAKEN : SQ_BUSY;
}

static sq_status take_role(sq_queue *queue, _Atomic uint32_t *role, bool single) {
    if (!single) {
        return SQ_OK;
    }
    sq_status status = try_role(queue, role);
    if (status == SQ_BUSY) {
        uint32_t found;
        sq_recover(queue, &found); /* the holder is dead */
        status = try_role(queue, role);
    }
    return status;
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
