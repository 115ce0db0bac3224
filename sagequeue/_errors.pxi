# Included by _shared.pyx: the exceptions for what the core answers.


cdef object make_error(str name, sq_status status, int error=0):
    """The exception for a status, ready to be raised."""
    if status == SQ_SYSTEM:
        error = error or errno
        reason = f"queue {name!r}: {os.strerror(error)} (errno {error})"
        if error == EBADF:
            reason += (
                "; something in this process has closed the queue's descriptor, as os.closerange() "
                "does. Open the queue again: SageQueue.attach()"
            )
        return QueueError(reason)
    if status == SQ_GONE:
        return QueueNotFound(
            f"no queue named {name!r} on this machine; it was never created, or its last "
            "participant has left. Keep a handle open for as long as the queue is needed"
        )
    if status == SQ_EXISTS:
        return QueueExists(
            f"a queue named {name!r} is in use; attach to it with SageQueue.attach({name!r}) "
            "or choose another name"
        )
    if status == SQ_FOREIGN:
        return ForeignSegment(
            f"the segment of queue {name!r} belongs to another user or is open to others; "
            "it is not used. Expected: owned by this user, mode 0600"
        )
    if status == SQ_INCOMPATIBLE:
        return IncompatibleSegment(
            f"the segment of queue {name!r} is no queue of this version of sagequeue; "
            "run both ends with one version"
        )
    if status == SQ_CORRUPT:
        return CorruptSegment(
            f"the shared memory of queue {name!r} holds a value that no participant writes; "
            "remove the queue and create it again"
        )
    if status == SQ_TABLE_FULL:
        return TooManyParticipants(
            f"queue {name!r} has no free participant entry; create it with a larger "
            "max_participants"
        )
    if status == SQ_NO_MEMORY:
        return OutOfSharedMemory(
            f"no room in /dev/shm for queue {name!r}; free some, make it larger, or lower "
            "pool_bytes"
        )
    if status == SQ_BUSY:
        return QueueError(
            f"queue {name!r}: another process has been removing it, or settling what dead "
            "participants left, for more than a second; it is stopped or gets no processor. "
            "Continue or kill it and try again"
        )
    return InvalidOption(f"an option of queue {name!r} is out of range")
