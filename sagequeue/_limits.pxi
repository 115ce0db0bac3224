# Included by _shared.pyx: how long a call waits, and how many items it takes.


cdef uint64_t deadline_after(object timeout) except? 0:
    cdef double seconds
    if timeout is None:
        return FOREVER
    try:
        seconds = timeout
    except TypeError:
        raise InvalidOption(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        ) from None
    except OverflowError:
        seconds = 1e300 if timeout > 0 else -1
    if not seconds >= 0:
        raise InvalidOption(f"'timeout' must be a non-negative number, not {timeout!r}")
    if seconds > 1e9:
        return FOREVER
    return sq_now_ns() + <uint64_t> (seconds * 1e9)


cdef uint64_t left_until(uint64_t deadline) noexcept nogil:
    cdef uint64_t now
    if deadline == FOREVER:
        return FOREVER
    now = sq_now_ns()
    return deadline - now if deadline > now else 0


cdef bint pause(uint64_t deadline) except -1:
    """Wait a moment for another process; False when the deadline has passed.

    For results of the core that mean "try again". It runs other code: call check_call() after it.
    """
    if left_until(deadline) == 0:
        return False
    with nogil:
        usleep(PAUSE_US)
    PyErr_CheckSignals()
    return True


cdef uint32_t items_wanted(object max_items) except 0:
    """The most items of a batch."""
    return BATCH if max_items is None else <uint32_t> min(most_of(max_items), 0xFFFFFFFF)
