# Messages in place: leases of consumers and loans of producers.

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object item)


cdef enum:
    RELEASE  # the chunk is free
    RETURN   # the message is to be delivered again
    UNPIN    # the message is on its way; the chunk may be used again when it is done with


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the owner
cdef class Body:
    """A message's memory, exported for as long as anything looks at it."""
    cdef SharedQueue owner
    cdef uint32_t forks
    cdef uint32_t chunk
    cdef int on_dealloc  # what becomes of the chunk when nothing looks at it any more
    cdef bint external
    cdef bint writable
    cdef unsigned char *data
    cdef uint64_t size

    cdef void hold(self, SharedQueue owner, uint32_t chunk, int on_dealloc) noexcept:
        """Note that this has the chunk, which its participant has."""
        self.owner = owner
        self.forks = owner.forks
        self.chunk = chunk
        self.on_dealloc = on_dealloc
        owner.bodies += 1
        owner.held += 1

    cdef bint is_ours(self) noexcept:
        """Not in a process that was forked off, where the chunk is its parent's, and not when the
        queue has been left, and leases with it."""
        return self.forks == self.owner.forks and self.owner.is_member()

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.owner is None:
            raise BufferError("there is no message here")
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("a message in place is read-only")
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t> self.size, not self.writable, flags)
        Py_DECREF(None)  # which Cython had put into view.obj

    def __dealloc__(self):
        cdef SharedQueue owner = self.owner
        if owner is None:
            return
        if self.external:
            sq_external_unmap(self.data, self.size)
        if self.is_ours():
            if self.on_dealloc == UNPIN:
                sq_chunk_unpin(&owner.queue, self.chunk)
            elif self.on_dealloc == RETURN:
                sq_lease_return(&owner.queue, self.chunk)
            else:
                sq_chunk_release(&owner.queue, self.chunk)
        if self.forks == owner.forks:
            owner.held -= 1
        owner.bodies -= 1
        owner.leave_if_idle()


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
    cdef int returns

    __class_getitem__ = classmethod(GenericAlias)

    cdef Body live_body(self):
        if self.body is None:
            raise LeaseEnded("the lease has ended: it was released or rejected")
        if self.body.forks != self.body.owner.forks:
            raise LeaseEnded("the lease is of the process that claimed it, not of its child")
        if not self.body.is_ours():
            raise LeaseEnded("the lease has ended: the queue was left at the end of the process")
        return self.body

    @property
    def redelivered(self):
        """Whether an earlier lease of this message came to nothing: it may have been worked on."""
        return self.returns > 0

    @property
    def deliveries(self):
        """How many earlier deliveries came to nothing, because the lease was given back or its
        process died: 0 the first time."""
        return self.returns

    @property
    def item(self):
        """The item. Arrays, and buffers within a pickle, are read-only views of the queue's memory.

        A view may outlive the lease: its memory is not used again before the view is gone.
        """
        cdef Body body = self.live_body()
        if self.is_decoded:
            return self.decoded
        item = self.decode(body)
        if self.body is body:  # decoding may have ended the lease
            self.decoded = item
            self.is_decoded = True
        return item

    cdef object decode(self, Body body):
        cdef SharedQueue owner = body.owner
        cdef sq_status status
        if body.data == NULL:
            status = sq_external_map(&owner.queue, body.chunk, body.size, &body.data)
            body.external = status == SQ_OK
            if status == SQ_EMPTY:
                body.data = sq_chunk_data(&owner.queue, body.chunk)
            elif status != SQ_OK:
                raise make_error(owner.name, status)
        try:
            return owner.codec.decode(self.tag, body.data, body.size, body)
        except DecodeError as error:
            raise_interruption(error)
            raise

    def release(self):
        """Acknowledge: the message is done with and will not be delivered again."""
        self.end(RELEASE)

    def reject(self, bint requeue=True):
        """Give the message back to be delivered again; without `requeue`, drop it.

        It is given back when the last view of it is gone.
        """
        self.end(RETURN if requeue else RELEASE)

    cdef int end(self, int on_dealloc) except -1:
        cdef Body body = self.live_body()
        decoded, self.decoded = self.decoded, None
        self.body = None
        body.on_dealloc = on_dealloc
        del decoded  # which may run other code
        if on_dealloc == RELEASE and Py_REFCNT(body) > 1 and body.is_ours():  # views of it live on
            sq_lease_acknowledge(&body.owner.queue, body.chunk)
        return 0

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
        if self.body is None:
            return "<Lease, ended>"
        return f"<Lease of {self.body.owner.name!r}, {self.body.size} bytes>"


cdef class Loan:
    """An array in the queue's memory, which is put at the end of the ``with`` block."""
    cdef SharedQueue queue
    cdef tuple shape
    cdef object dtype
    cdef bint fortran
    cdef bint block
    cdef bint in_use
    cdef uint64_t deadline
    cdef sq_item message
    cdef Body body
    cdef object whole
    cdef object array

    @staticmethod
    cdef Loan make(SharedQueue queue, tuple shape, object dtype, bint fortran, bint block,
                 object timeout):
        cdef Loan self = Loan.__new__(Loan)
        self.deadline = FOREVER if timeout is None or not block else deadline_after(timeout)
        self.queue = queue
        self.shape = shape
        self.dtype = dtype
        self.fortran = fortran
        self.block = block
        return self

    def __enter__(self):
        cdef SharedQueue queue = self.queue
        cdef uint32_t forks
        if queue is None:
            raise QueueError("a loan is what SageQueue.loan() returns")
        forks = queue.forks
        queue.enter()
        try:
            if self.in_use:
                raise QueueError("the loan is in use already; ask for another one")
            self.in_use = True
            self.borrow(queue)
            return self.array
        except BaseException:
            if self.array is None:
                self.in_use = False
            raise
        finally:
            queue.exit(forks)

    cdef int borrow(self, SharedQueue queue) except -1:
        cdef Encoded encoded
        cdef Body body
        cdef uint32_t forks = queue.forks
        if not queue.queue.producing:
            queue.enrol_producer()
        if not queue.codec.has_arrays() or not describe_array(
                self.shape, self.dtype, self.fortran, &encoded):
            raise InvalidOption(
                f"a loan is an array of a plain dtype in a queue with codec 'pickle', not of "
                f"{self.dtype} with codec {queue.codec.name!r}"
            )
        body = queue.borrow(&encoded, forks, &self.message, self.block, self.deadline)
        whole = array_over(body, &encoded, self.shape, self.dtype, self.fortran)
        array = whole.view()
        self.body = body
        self.whole = whole
        self.array = array
        return 0

    def __exit__(self, kind, error, traceback):
        cdef uint32_t accepted = 0
        cdef uint32_t forks
        cdef SharedQueue queue = self.queue
        cdef Body body = self.body
        if body is None:
            raise QueueError("the loan is not in use: its with block has not begun, or has ended")
        array = self.array
        whole = self.whole
        self.array = self.whole = self.body = None
        self.in_use = False
        if kind is not None:
            return
        forks = queue.forks
        queue.enter()
        try:
            if not body.is_ours():
                raise QueueError("the loan is of the process that took it, not of its child")
            array.flags.writeable = False
            whole.flags.writeable = False
            body.writable = False
            if Py_REFCNT(array) > 2 or Py_REFCNT(whole) > 2:
                # More than the caller's one name for it, or parts of it, which are views of the
                # whole: they can still be written and keep this memory, so a copy is put.
                queue.put(array, self.block, self.remaining())
                return
            sq_chunk_pin(&queue.queue, body.chunk)
            try:
                queue.put_items(&self.message, 1, body.forks, self.block, self.deadline, &accepted)
            finally:
                if accepted == 1:
                    body.on_dealloc = UNPIN
                elif body.is_ours():
                    sq_chunk_unpin(&queue.queue, body.chunk)
        finally:
            queue.exit(forks)

    cdef object remaining(self):
        return None if self.deadline == FOREVER else left_until(self.deadline) / 1e9
