# The C core's interface, as the headers in csrc declare it.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "wait.h" nogil:
    uint64_t sq_now_ns()

cdef extern from "layout.h" nogil:
    enum:
        SQ_INLINE, SQ_IN_CHUNK
        SQ_SINGLE_PRODUCER, SQ_SINGLE_CONSUMER
        SQ_SLOT_MAX

    ctypedef struct sq_participant:
        uint64_t identity

cdef extern from "segment.h" nogil:
    ctypedef enum sq_status:
        SQ_OK, SQ_EMPTY, SQ_FULL, SQ_CLOSED, SQ_NO_CHUNK, SQ_NO_MEMORY, SQ_CORRUPT, SQ_ROLE_TAKEN
        SQ_TABLE_FULL, SQ_GONE, SQ_EXISTS, SQ_FOREIGN, SQ_INCOMPATIBLE, SQ_BAD_OPTION, SQ_BUSY
        SQ_SYSTEM

    ctypedef struct sq_options:
        uint64_t maxsize
        uint64_t pool_bytes
        uint32_t capacity
        uint32_t slot_bytes
        uint32_t participants
        uint32_t mode
        uint32_t recovery_ms
        char codec[32]

    ctypedef struct sq_segment:
        uint64_t maxsize
        uint64_t bytes
        uint32_t capacity
        uint32_t slot_bytes
        uint32_t participants
        uint32_t mode
        uint64_t pool_bytes
        uint64_t birth
        char codec[32]

    sq_participant *sq_segment_participant(const sq_segment *segment, uint32_t index)
    void sq_external_unmap(unsigned char *data, uint64_t bytes)

cdef extern from "inherited.h" nogil:
    uint32_t sq_forks

cdef extern from "handle.h" nogil:
    ctypedef struct sq_queue:
        sq_segment segment
        uint32_t id
        uint64_t limit
        bint producing
        bint consuming

cdef extern from "words.h" nogil:
    uint32_t sq_inline_max(const sq_queue *queue)

cdef extern from "participant.h" nogil:
    uint32_t sq_identity_pid(uint64_t identity)
    bint sq_participant_is_dead(const sq_queue *queue, uint32_t index)
    bint sq_participant_lives(const sq_queue *queue, uint32_t index)

cdef extern from "queue.h" nogil:
    sq_status sq_queue_create(sq_queue *queue, const char *file_name, const sq_options *options)
    sq_status sq_queue_attach(sq_queue *queue, const char *file_name)
    sq_status sq_queue_open_readonly(sq_queue *queue, const char *file_name)
    sq_status sq_queue_remove(const char *file_name, bint force)
    int sq_queue_invite(const sq_queue *queue, bint for_fork)
    void sq_queue_end_invitation(sq_queue *queue, int invitation)
    sq_status sq_queue_fork_child(sq_queue *queue, int invitation)
    sq_status sq_queue_accept(sq_queue *queue, const char *file_name, int invitation)
    void sq_queue_leave(sq_queue *queue)
    void sq_queue_unmap(sq_queue *queue)
    sq_status sq_queue_enrol_producer(sq_queue *queue)
    sq_status sq_queue_enrol_consumer(sq_queue *queue)

cdef extern from "ring.h" nogil:
    enum:
        SQ_CLAIM_MAX
        SQ_TAKEN_WORDS

    ctypedef struct sq_item:
        const void *body
        uint32_t chunk
        uint32_t length
        uint8_t tag
        uint8_t storage

    ctypedef struct sq_taken:
        uint64_t position
        uint64_t length
        uint32_t chunk
        uint16_t deliveries
        uint8_t tag
        uint8_t storage
        unsigned char body[]

    size_t sq_taken_stride(const sq_queue *queue)
    sq_status sq_put(sq_queue *queue, const sq_item *items, uint32_t n, uint32_t *accepted)
    sq_status sq_take(sq_queue *queue, void *taken, uint32_t n, uint32_t *count)
    sq_status sq_claim(sq_queue *queue, void *taken, uint32_t n, uint32_t *count)
    sq_status sq_lease_taken(sq_queue *queue, sq_taken *taken)
    sq_status sq_check_cursors(const sq_queue *queue)
    uint64_t sq_size(sq_queue *queue)
    uint32_t sq_held_up_by(const sq_queue *queue, bint room)

cdef extern from "control.h" nogil:
    void sq_shutdown(sq_queue *queue, bint immediate)
    bint sq_is_shutdown(const sq_queue *queue)
    void sq_wake_all(sq_queue *queue)

cdef extern from "tasks.h" nogil:
    sq_status sq_task_done(sq_queue *queue)
    uint64_t sq_unfinished(const sq_queue *queue)

cdef extern from "await.h" nogil:
    void sq_await_message(sq_queue *queue, uint64_t timeout_ns)
    void sq_await_room(sq_queue *queue, uint64_t timeout_ns)
    void sq_await_chunk(sq_queue *queue, uint64_t bytes, uint64_t timeout_ns)
    void sq_await_copy(sq_queue *queue, uint64_t timeout_ns)
    void sq_await_done(sq_queue *queue, uint64_t timeout_ns)
    void sq_wakeup(sq_queue *queue)
    bint sq_take_wakeup(sq_queue *queue)
    bint sq_spin_message(sq_queue *queue, uint32_t rounds)
    bint sq_spin_room(sq_queue *queue, uint32_t rounds)

cdef extern from "pool.h" nogil:
    uint64_t sq_chunk_largest(const sq_queue *queue)
    sq_status sq_chunk_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk)
    void sq_chunk_describe(sq_queue *queue, uint32_t chunk, uint64_t length, uint8_t tag)
    unsigned char *sq_chunk_data(const sq_queue *queue, uint32_t chunk)
    void sq_chunk_release(sq_queue *queue, uint32_t chunk)
    void sq_chunk_pin(sq_queue *queue, uint32_t chunk)
    void sq_chunk_unpin(sq_queue *queue, uint32_t chunk)
    void sq_lease_acknowledge(sq_queue *queue, uint32_t chunk)
    void sq_lease_return(sq_queue *queue, uint32_t chunk)
    sq_status sq_external_acquire(sq_queue *queue, uint64_t bytes, uint32_t *chunk,
                                  unsigned char **data)
    sq_status sq_external_map(sq_queue *queue, uint32_t chunk, uint64_t bytes,
                              unsigned char **data)

cdef extern from "recovery.h" nogil:
    sq_status sq_recover(sq_queue *queue, uint32_t *found)
    uint32_t sq_recover_if_due(sq_queue *queue, uint64_t every_ns)

cdef extern from "usage.h" nogil:
    ctypedef struct sq_usage:
        uint64_t chunk_bytes_held
        uint32_t slots_held
        uint32_t chunks_held
        uint32_t leases

    sq_usage sq_usage_of(const sq_queue *queue)
