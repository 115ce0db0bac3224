# Looking at a queue from outside, without taking part in it.


cdef list list_pids(const sq_queue *queue, bint alive):
    cdef uint32_t i
    cdef uint64_t identity
    cdef list pids = []
    for i in range(queue.segment.participants):
        identity = sq_segment_participant(&queue.segment, i).identity
        if sq_participant_lives(queue, i) if alive else sq_participant_is_dead(queue, i):
            pids.append(sq_identity_pid(identity))
    return pids


def look_at(str name):
    """What the segment of a queue says, as the keyword arguments of a QueueInfo."""
    cdef sq_queue queue
    cdef sq_usage used
    cdef sq_status status = sq_queue_open_readonly(&queue, (PREFIX + name).encode("ascii"))
    if status != SQ_OK:
        raise make_error(name, status)
    try:
        used = sq_usage_of(&queue)
        return {
            "mode": MODES[queue.segment.mode],
            "codec": queue.segment.codec.decode("ascii", "replace"),
            "maxsize": queue.segment.maxsize,
            "capacity": queue.segment.capacity,
            "waiting": sq_size(&queue),
            "leases": used.leases,
            "chunk_bytes_held": used.chunk_bytes_held,
            "pids": tuple(list_pids(&queue, True)),
            "dead_pids": tuple(list_pids(&queue, False)),
            "shut_down": sq_is_shutdown(&queue),
        }
    finally:
        sq_queue_unmap(&queue)


def birth_of(str name):
    """What the names of a queue's messages begin with behind its own; None if there is no queue."""
    cdef sq_queue queue
    cdef sq_status status = sq_queue_open_readonly(&queue, (PREFIX + name).encode("ascii"))
    if status == SQ_GONE or status == SQ_CORRUPT or status == SQ_INCOMPATIBLE:
        return None
    if status != SQ_OK:
        raise make_error(name, status)
    birth = f"{queue.segment.birth:016x}"
    sq_queue_unmap(&queue)
    return birth


def remove_segment(str name, bint force):
    """Remove a queue's name and messages; QueueExists if it has live participants. By force they
    are shut out, and a file that is no queue is removed, too."""
    cdef bytes file_name = (PREFIX + name).encode("ascii")
    cdef uint64_t busy_deadline = sq_now_ns() + BUSY_TIMEOUT_NS
    cdef sq_status status = sq_queue_remove(file_name, force)
    while status == SQ_BUSY and pause(busy_deadline):
        status = sq_queue_remove(file_name, force)
    if status != SQ_OK:
        raise make_error(name, status)
