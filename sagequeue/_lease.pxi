# Messages in place: leases of consumers and loans of producers.

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object item)


cdef enum:
    RELEASE  # the chunk is free
    RETURN   # the message is to be delivered again
    UNPIN    # the message is on its way; the chunk may be used again when it is done with


cdef class Body:
    """A message's memory, exported for as long as anything looks at it."""
    cdef SharedQueue owner
    cdef uint32_t participant
    cdef uint32_t chunk
    cdef int afterwards  # what becomes of the chunk when nothing looks at it any more
    cdef bint external
    cdef bint writable
    cdef unsigned char *data
    cdef uint64_t size

    @staticmethod
    cdef Body of(SharedQueue owner, uint32_t chunk, int afterwards):
        cdef Body self = Body.__new__(Body)
        self.owner = owner
        self.participant = owner.queue.id
        self.chunk = chunk
        self.afterwards = afterwards
        owner.bodies += 1
        owner.held += 1
        return self

    cdef bint is_ours(self):
        """Not in a process that was forked off: the chunk is its parent's."""
        return self.participant == self.owner.queue.id

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("a message in place is read-only")
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t> self.size, not self.writable, flags)

    def __dealloc__(self):
        cdef SharedQueue owner = self.owner
        if owner is None:
            return
        if self.external:
            sq_external_unmap(self.data, self.size)
        if self.is_ours() and owner.held > 0:
            owner.held -= 1
            if owner.state == OPEN or owner.state == CLOSED:
                if self.afterwards == UNPIN:
                    sq_chunk_unpin(&owner.queue, self.chunk)
                elif self.afterwards == RETURN:
                    sq_lease_return(&owner.queue, self.chunk)
                else:
                    sq_chunk_release(&owner.queue, self.chunk)
        owner.bodies -= 1
        owner.go()


cdef class Lease:
    """One message that stays in the queue until it is released.

    As a context manager it is released at the end of the block, and given back to be delivered
    again when the block raises. A lease that is dropped is given back too, and so are those of a
    process that dies.
    """
    cdef Body body
    cdef uint8_t tag
    cdef object decoded
    cdef bint is_decoded
    cdef readonly int deliveries

    __class_getitem__ = classmethod(GenericAlias)

    @staticmethod
    cdef Lease of(SharedQueue owner, const sq_taken *taken):
        cdef Lease self = Lease.__new__(Lease)
        self.body = Body.of(owner, taken.chunk, RETURN)
        self.body.size = taken.length
        self.tag = taken.tag
        self.deliveries = taken.deliveries
        return self

    cdef Body live_body(self):
        if self.body is None:
            raise LeaseEnded("the lease has ended: it was released or rejected")
        if not self.body.is_ours():
            raise LeaseEnded("the lease is of the process that claimed it, not of its child")
        return self.body

    @property
    def redelivered(self):
        """Whether an earlier lease of this message came to nothing: it may have been worked on."""
        return self.deliveries > 0

    @property
    def item(self):
        """The item. Arrays, and buffers within a pickle, are read-only views of the queue's memory.

        A view may outlive the lease: its memory is not used again before the view is gone.
        """
        cdef Body body = self.live_body()
        cdef SharedQueue owner = body.owner
        cdef sq_status status
        if not self.is_decoded:
            if body.data == NULL:
                status = sq_external_map(&owner.queue, body.chunk, body.size, &body.data)
                body.external = status == SQ_OK
                if status == SQ_EMPTY:
                    body.data = sq_chunk_data(&owner.queue, body.chunk)
                elif status != SQ_OK:
                    raise owner.error_of(status)
            self.decoded = owner.codec.decode(self.tag, body.data, body.size, body)
            self.is_decoded = True
        return self.decoded

    def release(self):
        """Acknowledge: the message is done with and will not be delivered again."""
        cdef Body body = self.live_body()
        self.decoded = None
        self.body = None
        body.afterwards = RELEASE
        if Py_REFCNT(body) > 1:  # views of it live on
            sq_lease_acknowledge(&body.owner.queue, body.chunk)

    def reject(self, bint requeue=True):
        """Give the message back to be delivered again; without `requeue`, drop it.

        It is given back when the last view of it is gone.
        """
        if not requeue:
            self.release()
            return
        self.live_body()
        self.decoded = None
        self.body = None

    @property
    def ended(self):
        """Whether it was released or rejected."""
        return self.body is None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if self.body is None:
            return
        if kind is None:
            self.release()
        else:
            self.reject()

    def __repr__(self):
        state = "ended" if self.body is None else f"{self.body.size} bytes"
        return f"<Lease of {'?' if self.body is None else self.body.owner.name!r}, {state}>"


cdef class Loan:
    """An array in the queue's memory, which is put at the end of the ``with`` block."""
    cdef SharedQueue queue
    cdef tuple shape
    cdef object dtype
    cdef bint fortran
    cdef bint block
    cdef uint64_t deadline
    cdef sq_item message
    cdef Body body
    cdef object whole
    cdef object array

    def __init__(self, SharedQueue queue, tuple shape, object dtype, bint fortran, bint block,
                 object timeout):
        self.queue = queue
        self.shape = shape
        self.dtype = dtype
        self.fortran = fortran
        self.block = block
        self.deadline = FOREVER if timeout is None or not block else deadline_of(timeout)

    def __enter__(self):
        cdef Encoded encoded
        cdef SharedQueue queue = self.queue
        queue.check_open()
        if self.array is not None:
            raise QueueError("the loan is in use already; ask for another one")
        if not queue.queue.producing:
            queue.enrol_producer()
        if not queue.codec.has_arrays() or not describe_array(
                self.shape, self.dtype, self.fortran, &encoded):
            raise InvalidOption(
                f"a loan is an array of a plain dtype in a queue with codec 'pickle', not of "
                f"{self.dtype} with codec {queue.codec.name!r}"
            )
        self.body = queue.borrow(&encoded, &self.message, self.block, self.deadline)
        self.whole = array_over(self.body, &encoded, self.shape, self.dtype, self.fortran)
        self.array = self.whole.view()
        return self.array

    def __exit__(self, kind, error, traceback):
        cdef uint32_t accepted = 0
        cdef SharedQueue queue = self.queue
        cdef Body body = self.body
        array = self.array
        whole = self.whole
        self.array = self.whole = self.body = None
        if kind is not None:
            return
        queue.check_open()
        array.flags.writeable = False
        whole.flags.writeable = False
        body.writable = False
        if Py_REFCNT(array) > 2 or Py_REFCNT(whole) > 2:
            # More than the caller's one name for it, or parts of it, which are views of the whole:
            # they can still be written and keep this memory, so a copy is put.
            queue.put(array, self.block, self.remaining())
            return
        sq_chunk_pin(&queue.queue, body.chunk)
        try:
            queue.put_items(&self.message, 1, self.block, self.deadline, &accepted)
            body.afterwards = UNPIN
        finally:
            if accepted == 0:
                sq_chunk_unpin(&queue.queue, body.chunk)

    cdef object remaining(self):
        return None if self.deadline == FOREVER else left_until(self.deadline) / 1e9
