# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""SharedQueue: a handle of a queue in shared memory, as a Python object.

The GIL is what makes one handle usable by many threads: no call into the core that reserves or
claims positions gives it up on the way. It is given up while waiting and while copying large
bodies in and out of chunks, which belong to this participant alone at that time.
"""
from cpython.buffer cimport PyBuffer_FillInfo, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

import os
import weakref
from multiprocessing import util
from types import GenericAlias

from sagequeue._codec cimport Codec, Encoded, array_over, describe_array, write_body
from sagequeue._csrc cimport *

from sagequeue.usage import Usage
from sagequeue.errors import (
    CorruptSegment, Empty, EncodeError, ForeignSegment, Full, IncompatibleSegment, InvalidOption,
    LeaseEnded, OutOfSharedMemory, QueueClosed, QueueError, QueueExists, QueueNotFound, RoleConflict, ShutDown,
    TooManyParticipants,
)

cdef enum:
    NEW = 0
    OPEN = 1
    CLOSED = 2   # by close(); left as soon as nobody is inside and nothing is leased
    LEFT = 3
    ORPHANED = 4  # after fork, no entry was free for the child

cdef enum:
    BATCH = 256           # messages handed to the core at a time; more do not stay in the cache
    ROUNDS_WITH_GIL = 48  # of spinning, about a microsecond, before the GIL is given up
    ROUNDS_TO_RELEASE = 4000  # for a slot that another consumer is reading at this moment
    PATIENCE_AT_EXIT_MS = 200

cdef uint64_t FOREVER = <uint64_t> -1
cdef uint64_t RECOVER_EVERY_NS = 20_000_000  # by those who do not wait
cdef uint64_t RECOVER_PATIENCE_NS = 1_000_000_000  # with another that is at it
cdef uint64_t POOL_PATIENCE_NS = 50_000_000  # without a free chunk, before a segment of its own

cdef str PREFIX = "sagequeue-"
cdef tuple MODES = ("mpmc", "spmc", "mpsc", "spsc")
cdef object handles = weakref.WeakSet()


cdef uint64_t deadline_of(object timeout) except? 0:
    cdef double seconds
    if timeout is None:
        return FOREVER
    try:
        seconds = timeout
    except TypeError:
        raise InvalidOption(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        ) from None
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


cdef class SharedQueue:
    """One participant's handle of a shared-memory queue: see :class:`sagequeue.SageQueue`."""
    cdef sq_queue queue
    cdef int state
    cdef uint32_t inside       # calls that use the mapping right now with the GIL given up
    cdef uint32_t writing      # of them, calls that write a chunk
    cdef uint32_t bodies       # that look into the mapping
    cdef uint32_t held         # of them, chunks that are this participant's
    cdef uint32_t inline_max
    cdef bint mapped
    cdef bint pool_waits       # a chunk came free since the last one that did not come in time
    cdef list overdue          # items taken in a batch with one that could not be decoded
    cdef Codec codec
    cdef readonly str name
    cdef object __weakref__

    __class_getitem__ = classmethod(GenericAlias)

    # ---- opening and closing ----

    def _create(self, str name, uint64_t maxsize, str mode, uint32_t capacity, uint32_t slot_size,
                uint64_t pool_bytes, str codec, uint32_t max_participants, uint32_t recovery_ms):
        cdef sq_options options
        memset(&options, 0, sizeof(options))
        self.codec = Codec(codec)
        options.maxsize = maxsize
        options.capacity = capacity
        options.slot_bytes = slot_size
        options.pool_bytes = pool_bytes
        options.participants = max_participants + 1  # one serves newcomers to a full table
        options.recovery_ms = recovery_ms
        options.mode = {"spsc": 3, "mpsc": SQ_SINGLE_CONSUMER, "spmc": SQ_SINGLE_PRODUCER,
                        "mpmc": 0}[mode]
        encoded_codec = codec.encode("ascii")
        memcpy(options.codec, <const char *> encoded_codec, len(encoded_codec))
        self.name = name
        file_name = (PREFIX + name).encode("ascii")
        cdef sq_status status = sq_queue_create(&self.queue, file_name, &options)
        self.opened(status)

    def _attach(self, str name):
        self.name = name
        file_name = (PREFIX + name).encode("ascii")
        cdef sq_status status = sq_queue_attach(&self.queue, file_name)
        if status == SQ_OK:
            self.state = OPEN  # so that a codec that is not there closes it again
            self.mapped = True
            self.codec = Codec(self.queue.segment.codec.decode("ascii"))
        self.opened(status)

    cdef opened(self, sq_status status):
        if status != SQ_OK:
            raise self.error_of(status)
        self.inline_max = sq_inline_max(&self.queue)
        self.pool_waits = True
        self.mapped = True
        self.state = OPEN
        handles.add(self)

    def close(self):
        """Give up this handle; closing twice is harmless.

        Items put stay in the queue for the others. The last handle to go removes the queue.
        """
        if self.state == OPEN:
            self.state = CLOSED
            if self.inside > 0:
                sq_wake_all(&self.queue)  # who waits comes out and leaves
        elif self.state == ORPHANED:
            self.state = LEFT
        self.go()

    cdef void go(self):
        """Leave when closed and nothing holds us, unmap when nothing looks into the mapping."""
        if self.state == CLOSED and self.inside == 0 and self.held == 0:
            self.leave()
        if self.state == LEFT and self.inside == 0 and self.bodies == 0 and self.mapped:
            self.mapped = False
            sq_queue_unmap(&self.queue)

    cdef void leave(self):
        self.state = LEFT
        sq_queue_leave(&self.queue)

    def _leave_at_exit(self):
        """Leave, whoever still waits, whatever is leased: leases go back to the queue.

        Threads that wait are not woken, which would end them with an error; the mapping stays.
        """
        cdef int patience = PATIENCE_AT_EXIT_MS
        while self.state == OPEN and self.writing > 0 and patience > 0:
            patience -= 1
            with nogil:
                usleep(1000)  # a chunk must not be given up while it is being written
        if self.state == OPEN and self.inside == 0:
            self.close()
        if (self.state == OPEN or self.state == CLOSED) and self.writing == 0:
            self.leave()

    cdef void enter(self):
        self.inside += 1

    cdef void exit(self):
        self.inside -= 1
        self.go()

    def __dealloc__(self):
        # nothing holds or looks any more: it would have kept us alive
        if self.state == OPEN:
            self.leave()
        if self.mapped:
            sq_queue_unmap(&self.queue)

    def _rejoin_after_fork(self):
        self.inside = self.writing = self.held = 0
        if self.state == CLOSED:
            self.state = LEFT  # the parent's other thread leaves
        elif self.state == OPEN and sq_queue_rejoin(&self.queue) != SQ_OK:
            self.state = ORPHANED

    @property
    def closed(self):
        """Whether this handle was closed."""
        return self.state != OPEN

    cdef int check_open(self) except -1:
        if self.state == OPEN:
            return 0
        if self.state == ORPHANED:
            raise self.error_of(SQ_TABLE_FULL)
        raise QueueClosed(
            f"queue {self.name!r} is closed in this process; "
            "open another handle with SageQueue.attach()"
        )

    cdef object error_of(self, sq_status status):
        """The exception for a status, ready to be raised."""
        name = self.name
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
                f"the segment of queue {name!r} is no queue of this version of sagequeue, or was "
                "made in another pid namespace; run both ends with one version in one container"
            )
        if status == SQ_CORRUPT:
            return CorruptSegment(
                f"the shared memory of queue {name!r} holds a value that no participant writes; "
                "remove the queue and create it again"
            )
        if status == SQ_ROLE_TAKEN:
            return RoleConflict(
                f"queue {name!r} allows one producer or one consumer, and another live participant "
                'is it; create the queue with mode="mpmc" (or mpsc, spmc) to have more'
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
        if status == SQ_BAD_OPTION:
            return InvalidOption(f"an option of queue {name!r} is out of range")
        return QueueError(f"queue {name!r}: {os.strerror(errno)} (errno {errno})")

    # ---- waiting, with the GIL given up ----

    cdef int await_message(self, uint64_t timeout_ns) except -1:
        self.enter()
        with nogil:
            sq_await_message(&self.queue, timeout_ns)
        self.exit()
        PyErr_CheckSignals()
        return self.check_open()

    cdef int await_room(self, uint64_t timeout_ns) except -1:
        self.enter()
        with nogil:
            sq_await_room(&self.queue, timeout_ns)
        self.exit()
        PyErr_CheckSignals()
        return self.check_open()

    cdef int await_chunk(self, uint64_t size, uint64_t timeout_ns) except -1:
        # the core may try for the chunk here, so this one does not give up the GIL until it sleeps
        self.enter()
        with nogil:
            sq_await_chunk(&self.queue, size, timeout_ns)
        self.exit()
        PyErr_CheckSignals()
        return self.check_open()

    cdef int await_copy(self, uint64_t timeout_ns) except -1:
        self.enter()
        with nogil:
            sq_await_copy(&self.queue, timeout_ns)
        self.exit()
        PyErr_CheckSignals()
        return self.check_open()

    # ---- put ----

    cdef int enrol_producer(self) except -1:
        cdef sq_status status = sq_queue_enrol_producer(&self.queue)
        if status != SQ_OK:
            raise self.error_of(status)
        return 0

    cdef uint32_t put_items(self, sq_item *items, uint32_t n, bint block, uint64_t deadline,
                            uint32_t *accepted) except? 0:
        """Put n items, waiting for room; `accepted` counts them as they go in."""
        cdef uint32_t some = 0
        cdef uint64_t left
        cdef sq_status status
        while True:
            status = sq_put(&self.queue, items + accepted[0], n - accepted[0], &some)
            if status == SQ_OK:
                accepted[0] += some
                if accepted[0] == n:
                    return n
                continue
            if status == SQ_CLOSED:
                raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
            if status != SQ_FULL:
                raise self.error_of(status)
            if sq_spin_room(&self.queue, ROUNDS_WITH_GIL):
                continue
            if not block:
                if self.makes_room():
                    continue
                raise self.full_error()
            left = left_until(deadline)
            if left == 0:
                raise self.full_error()
            self.await_room(left)

    cdef bint makes_room(self):
        """Whether there is room but for a slot that is being read, or whose reader is dead."""
        return sq_size(&self.queue) < self.queue.limit and (
            sq_spin_room(&self.queue, ROUNDS_TO_RELEASE)
            or sq_recover(&self.queue, RECOVER_EVERY_NS) > 0)

    cdef object full_error(self):
        return Full(f"queue {self.name!r} is full: {self.queue.limit} items are waiting")

    cdef bint acquire(self, uint64_t size, uint32_t *chunk, unsigned char **data, bint may_wait,
                      bint block, uint64_t deadline) except -1:
        """A chunk of `size` bytes, or one that stands for a segment of its own: then `data` is its
        memory, to be unmapped, and else NULL.

        A pool that is exhausted is waited for as long as chunks keep coming free; then, and
        without blocking at once, the message takes a segment of its own: the bound on what is
        waiting is maxsize, never the pool. False when it would have to wait and may not.
        """
        cdef sq_status status = SQ_NO_CHUNK
        cdef uint64_t left
        cdef uint64_t patience = 0
        data[0] = NULL
        if size <= sq_chunk_largest(&self.queue):
            status = sq_chunk_acquire(&self.queue, size, chunk)
            if status == SQ_NO_CHUNK:
                if not may_wait:
                    return False
                left = 0
                if block and self.pool_waits:
                    patience = min(deadline, sq_now_ns() + POOL_PATIENCE_NS)
                    left = left_until(patience)
                while status == SQ_NO_CHUNK and left > 0:
                    self.await_chunk(size, left)
                    status = sq_chunk_acquire(&self.queue, size, chunk)
                    left = left_until(patience)
            self.pool_waits = status == SQ_OK
        if status == SQ_NO_CHUNK:
            status = sq_external_acquire(&self.queue, size, chunk, data)
        while status == SQ_NO_CHUNK:
            # not even a small chunk is left to stand for the segment
            left = left_until(deadline)
            if not may_wait:
                return False
            if not block or left == 0:
                raise Full(f"queue {self.name!r}: its pool of chunks is exhausted")
            self.await_chunk(1, left)
            status = sq_external_acquire(&self.queue, size, chunk, data)
        if status != SQ_OK:
            raise self.error_of(status)
        return True

    cdef bint place(self, const Encoded *encoded, object kept, sq_item *item, bint may_wait,
                    bint block, uint64_t deadline) except -1:
        """Write a body that fits no slot; False when it would have to wait and may not."""
        cdef unsigned char *data = NULL
        if not self.acquire(encoded.size, &item.chunk, &data, may_wait, block, deadline):
            return False
        if data == NULL:
            self.write_chunk(encoded, kept, item, sq_chunk_data(&self.queue, item.chunk))
            return True
        try:
            self.write_chunk(encoded, kept, item, data)
        finally:
            sq_external_unmap(data, encoded.size)
        return True

    cdef Body borrow(self, const Encoded *encoded, sq_item *item, bint block, uint64_t deadline):
        """Memory for a body of which only the first part is written here."""
        cdef unsigned char *data = NULL
        cdef Body body
        self.acquire(encoded.size, &item.chunk, &data, True, block, deadline)
        body = Body.of(self, item.chunk, RELEASE)
        body.external = data != NULL
        body.data = data if data != NULL else sq_chunk_data(&self.queue, item.chunk)
        body.size = encoded.size
        body.writable = True
        self.write_chunk(encoded, None, item, body.data)
        return body

    cdef int write_chunk(self, const Encoded *encoded, object kept, sq_item *item,
                         unsigned char *data) except -1:
        item.storage = SQ_IN_CHUNK
        item.tag = encoded.tag
        item.length = 0
        item.body = NULL
        sq_chunk_describe(&self.queue, item.chunk, encoded.size, encoded.tag)
        self.enter()
        self.writing += 1
        try:
            write_body(encoded, kept, data)
        except BaseException:
            sq_chunk_release(&self.queue, item.chunk)
            raise
        finally:
            self.writing -= 1
            self.exit()
        return self.check_open()

    cdef int put_large(self, const Encoded *encoded, object kept, bint block,
                       uint64_t deadline) except -1:
        cdef sq_item item
        cdef uint32_t accepted = 0
        cdef uint64_t left
        # room first: a large body is not copied only to find the queue full
        while not sq_spin_room(&self.queue, ROUNDS_WITH_GIL):
            left = left_until(deadline)
            if not block or left == 0:
                break
            self.await_room(left)
        if sq_is_shutdown(&self.queue):
            raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
        if not block and not self.makes_room():
            raise self.full_error()
        self.place(encoded, kept, &item, True, block, deadline)
        try:
            self.put_items(&item, 1, block, deadline, &accepted)
        finally:
            if accepted == 0 and self.state == OPEN:
                sq_chunk_release(&self.queue, item.chunk)
        return 0

    def put(self, object item, bint block=True, object timeout=None):
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        cdef Encoded encoded
        cdef sq_item message
        cdef uint32_t accepted = 0
        cdef unsigned char small[SQ_SLOT_MAX]
        cdef uint64_t deadline = FOREVER
        if self.state != OPEN:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if not self.queue.producing:
            self.enrol_producer()
        kept = self.codec.encode(item, &encoded)
        if self.state != OPEN:
            self.check_open()  # encoding may run code that closes the queue
        if encoded.size > self.inline_max:
            self.put_large(&encoded, kept, block, deadline)
            return
        message.body = encoded.first
        if encoded.first_size != encoded.size:
            write_body(&encoded, kept, small)
            message.body = small
        message.length = <uint32_t> encoded.size
        message.tag = encoded.tag
        message.storage = SQ_INLINE
        if sq_put(&self.queue, &message, 1, &accepted) != SQ_OK:
            self.put_items(&message, 1, block, deadline, &accepted)

    def put_nowait(self, object item):
        """``put(item, block=False)``."""
        self.put(item, False)

    def put_many(self, object items, bint block=True, object timeout=None):
        """Put all items in order; see :class:`sagequeue.protocol.Queue`.

        When an item cannot be encoded, the ones before it are put and the error's ``accepted``
        says how many.
        """
        cdef uint64_t deadline = FOREVER
        cdef uint64_t total = 0
        if self.state != OPEN:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if not self.queue.producing:
            self.enrol_producer()
        if type(items) is not tuple and type(items) is not list:
            return self.put_stream(iter(items), block, deadline)
        self.put_block(tuple(items), block, deadline, &total)
        return total

    cdef object put_stream(self, object iterator, bint block, uint64_t deadline):
        cdef uint64_t total = 0
        cdef list some
        cdef bint more = True
        while more:
            some = []
            failure = None
            try:
                while len(some) < BATCH:
                    some.append(next(iterator))
            except StopIteration:
                more = False
            except BaseException as error:
                failure = error
            self.put_block(tuple(some), block, deadline, &total)
            if failure is not None:
                raise failure
        return total

    cdef int put_block(self, tuple items, bint block, uint64_t deadline,
                       uint64_t *total) except -1:
        """Encode and put in runs; `total` counts the items that went in."""
        cdef Encoded *encoded
        cdef sq_item *messages
        cdef uint32_t accepted
        cdef uint32_t run = 0
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t count = len(items)
        cdef Py_ssize_t width = min(count, <Py_ssize_t> BATCH)
        cdef list kept = []
        cdef list written = []
        if count == 0:
            return 0
        encoded = <Encoded *> PyMem_Malloc(width * (sizeof(Encoded) + sizeof(sq_item)))
        if encoded == NULL:
            raise MemoryError()
        messages = <sq_item *> (encoded + width)
        try:
            while at < count or run > 0:
                failure = None
                while at < count and run < width:
                    try:
                        holder = self.prepare(items[at], encoded + run, messages + run, run == 0,
                                              block, deadline)
                    except BaseException as error:
                        failure = error
                        break
                    if holder is None:
                        break  # no chunk at once: put what is ready, then wait for one
                    at += 1
                    run += 1
                    kept.append(holder)
                accepted = 0
                try:
                    if run > 0:
                        self.put_items(messages, run, block, deadline, &accepted)
                finally:
                    total[0] += accepted
                    self.release_unput(messages, accepted, run)
                    kept.clear()
                    run = 0
                if failure is not None:
                    raise failure
        except (Full, ShutDown, EncodeError) as error:
            error.accepted = total[0]
            raise
        finally:
            PyMem_Free(encoded)
        return 0

    cdef object prepare(self, object item, Encoded *encoded, sq_item *message, bint may_wait,
                        bint block, uint64_t deadline):
        """Encode one item of a run; what must be kept until it is put, or None: come again."""
        cdef bytearray joined
        holder = self.codec.encode(item, encoded)
        if self.state != OPEN:
            self.check_open()
        if encoded.size > self.inline_max:
            if not self.place(encoded, holder, message, may_wait, block, deadline):
                return None
            return True
        message.body = encoded.first
        if encoded.first_size != encoded.size:
            joined = bytearray(encoded.size)
            write_body(encoded, holder, <unsigned char *> joined)
            message.body = <unsigned char *> joined
            holder = joined
        message.length = <uint32_t> encoded.size
        message.tag = encoded.tag
        message.storage = SQ_INLINE
        return (item, holder)

    cdef void release_unput(self, sq_item *messages, uint32_t accepted, uint32_t n):
        cdef uint32_t i
        if self.state == OPEN:
            for i in range(accepted, n):
                if messages[i].storage == SQ_IN_CHUNK:
                    sq_chunk_release(&self.queue, messages[i].chunk)

    # ---- get ----

    cdef int enrol_consumer(self) except -1:
        cdef sq_status status = sq_queue_enrol_consumer(&self.queue)
        if status != SQ_OK:
            raise self.error_of(status)
        return 0

    cdef uint32_t take(self, void *taken, uint32_t n, bint claim, bint block,
                       uint64_t deadline) except 0:
        """Take or claim up to n messages, waiting for the first."""
        cdef uint32_t count = 0
        cdef uint64_t left
        cdef sq_status status
        while True:
            if claim:
                status = sq_claim(&self.queue, taken, n, &count)
            else:
                status = sq_take(&self.queue, taken, n, &count)
            if count > 0:
                return count  # an error, if any, comes again with the next call
            if status == SQ_CLOSED:
                raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
            if status == SQ_NO_CHUNK:
                left = left_until(deadline) if block else 0
                if left == 0:
                    raise Empty(
                        f"queue {self.name!r}: as many leases are out as it has slots; "
                        "release some, or create it with a larger capacity"
                    )
                self.await_copy(left)
                continue
            if status != SQ_EMPTY:
                raise self.error_of(status)
            if sq_spin_message(&self.queue, ROUNDS_WITH_GIL if block else 1):
                continue
            left = left_until(deadline) if block else 0
            if left == 0:
                if sq_size(&self.queue) > 0 and sq_recover(&self.queue, RECOVER_EVERY_NS) > 0:
                    continue  # what is there was behind a dead one's slot
                raise Empty(f"queue {self.name!r} is empty")
            if sq_check_cursors(&self.queue) != SQ_OK:
                raise self.error_of(SQ_CORRUPT)
            self.await_message(left)

    cdef object decode(self, const sq_taken *taken):
        """The object a message stands for; a chunk goes back to the pool."""
        if taken.storage == SQ_INLINE:
            return self.codec.decode(taken.tag, taken.body, taken.length, None)
        cdef unsigned char *data = NULL
        cdef sq_status status = sq_external_map(&self.queue, taken.chunk, taken.length, &data)
        if status != SQ_OK and status != SQ_EMPTY:
            sq_chunk_release(&self.queue, taken.chunk)
            raise self.error_of(status)
        self.enter()
        try:
            if status == SQ_EMPTY:
                return self.codec.decode(
                    taken.tag, sq_chunk_data(&self.queue, taken.chunk), taken.length, None
                )
            try:
                return self.codec.decode(taken.tag, data, taken.length, None)
            finally:
                sq_external_unmap(data, taken.length)
        finally:
            sq_chunk_release(&self.queue, taken.chunk)
            self.exit()

    def get(self, bint block=True, object timeout=None):
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        cdef uint64_t space[SQ_TAKEN_WORDS]
        cdef sq_taken *taken = <sq_taken *> space
        cdef uint32_t count = 0
        cdef uint64_t deadline = FOREVER
        if self.state != OPEN:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if not self.queue.consuming:
            self.enrol_consumer()
        if self.overdue is not None:
            return self.next_overdue()
        if sq_take(&self.queue, taken, 1, &count) != SQ_OK:
            self.take(taken, 1, False, block, deadline)
        if taken.storage == SQ_INLINE:
            return self.codec.decode(taken.tag, taken.body, taken.length, None)
        return self.decode(taken)

    def get_nowait(self):
        """``get(block=False)``."""
        return self.get(False)

    def get_many(self, object max_items=None, bint block=True, object timeout=None):
        """Take what is there, waiting for the first; see :class:`sagequeue.protocol.Queue`.

        Without ``max_items`` it takes at most 256.
        """
        cdef uint64_t deadline = FOREVER
        cdef uint64_t most
        if self.state != OPEN:
            self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if max_items is None:
            most = BATCH
        elif max_items < 1:
            raise InvalidOption(f"max_items must be at least 1 or None, not {max_items!r}")
        else:
            most = max_items
        if not self.queue.consuming:
            self.enrol_consumer()
        if self.overdue is not None:
            return [self.next_overdue()]
        return self.get_batch(<uint32_t> min(most, self.queue.limit), block, deadline)

    cdef list get_batch(self, uint32_t most, bint block, uint64_t deadline):
        cdef size_t stride = sq_taken_stride(&self.queue)
        cdef uint32_t width = min(most, <uint32_t> BATCH)
        cdef uint32_t count
        cdef list items = []
        cdef unsigned char *taken = <unsigned char *> PyMem_Malloc(width * stride)
        if taken == NULL:
            raise MemoryError()
        try:
            count = self.take(taken, width, False, block, deadline)
            while self.decode_all(taken, stride, count, items) and self.state == OPEN:
                most -= count
                count = 0
                if most == 0 or sq_take(&self.queue, taken, min(width, most), &count) != SQ_OK:
                    break
        finally:
            PyMem_Free(taken)
        if not items:
            return [self.next_overdue()]
        return items

    cdef bint decode_all(self, const unsigned char *taken, size_t stride, uint32_t count,
                         list items):
        """Append the decoded messages to items. One that cannot be decoded, and all behind it,
        become overdue, so that its error comes in its place and nothing is lost: then False."""
        cdef uint32_t i
        cdef const sq_taken *message
        for i in range(count):
            message = <const sq_taken *> (taken + i * stride)
            try:
                item = self.decode(message)
            except BaseException as error:
                if self.overdue is None:
                    self.overdue = []
                self.overdue.append((False, error))
                continue
            if self.overdue is None:
                items.append(item)
            else:
                self.overdue.append((True, item))
        return self.overdue is None

    cdef object next_overdue(self):
        good, item = self.overdue.pop(0)
        if not self.overdue:
            self.overdue = None
        if good:
            return item
        raise item

    # ---- claim and loan ----

    def claim(self, bint block=True, object timeout=None):
        """Lease the oldest item: it is delivered again unless the lease is released.

        Messages that are delivered again come first, oldest first, and say so in ``redelivered``.
        Raises what :meth:`get` raises; :class:`Empty` also when as many leases are out as the
        queue has slots.
        """
        return self.claim_some(1, block, timeout)[0]

    def _claim_many(self, object max_items, bint block, object timeout):
        if max_items is None:
            max_items = SQ_CLAIM_MAX
        elif max_items < 1:
            raise InvalidOption(f"max_items must be at least 1 or None, not {max_items!r}")
        return self.claim_some(<uint32_t> min(max_items, <uint32_t> SQ_CLAIM_MAX), block, timeout)

    cdef list claim_some(self, uint32_t most, bint block, object timeout):
        cdef uint64_t deadline = FOREVER
        cdef size_t stride
        cdef uint32_t count, i
        cdef unsigned char *taken
        cdef list leases = []
        self.check_open()
        if block and timeout is not None:
            deadline = deadline_of(timeout)
        if not self.queue.consuming:
            self.enrol_consumer()
        stride = sq_taken_stride(&self.queue)
        taken = <unsigned char *> PyMem_Malloc(most * stride)
        if taken == NULL:
            raise MemoryError()
        try:
            count = self.take(taken, most, True, block, deadline)
            while count > 0:
                for i in range(count):
                    leases.append(Lease.of(self, <sq_taken *> (taken + i * stride)))
                most -= count
                count = 0
                if most > 0:  # what is delivered again comes one at a time
                    sq_claim(&self.queue, taken, most, &count)
        finally:
            PyMem_Free(taken)
        return leases

    def _loan(self, tuple shape, object dtype, bint fortran, bint block, object timeout):
        return Loan(self, shape, dtype, fortran, block, timeout)

    # ---- the queue as a whole ----

    def qsize(self):
        """How many items are waiting; other participants may change it at any time."""
        self.check_open()
        return sq_size(&self.queue) + (0 if self.overdue is None else len(self.overdue))

    def empty(self):
        """``qsize() == 0``."""
        return self.qsize() == 0

    def full(self):
        """Whether a put would have to wait for room."""
        self.check_open()
        return sq_size(&self.queue) >= self.queue.limit

    def shutdown(self, bint immediate=False):
        """Refuse further puts by anyone; ``immediate`` also drops what is waiting."""
        self.check_open()
        sq_shutdown(&self.queue, immediate)

    @property
    def is_shutdown(self):
        """Whether anyone has shut the queue down."""
        self.check_open()
        return sq_is_shutdown(&self.queue)

    def task_done(self):
        """Say that one item got has been dealt with."""
        self.check_open()
        if sq_task_done(&self.queue) != SQ_OK:
            raise InvalidOption("task_done() called too many times")

    @property
    def unfinished_tasks(self):
        """Items put that ``task_done()`` has not answered yet."""
        self.check_open()
        return sq_unfinished(&self.queue)

    def join(self):
        """Wait until every item put has been answered by ``task_done()``."""
        self.check_open()
        while sq_unfinished(&self.queue) != 0:
            self.enter()
            with nogil:
                sq_await_done(&self.queue, FOREVER)
            self.exit()
            PyErr_CheckSignals()
            self.check_open()

    @property
    def maxsize(self):
        """The most items the queue holds, as asked for; 0: bounded by ``capacity``."""
        return self.queue.segment.maxsize

    @property
    def capacity(self):
        """Number of slots of the ring."""
        return self.queue.segment.capacity

    @property
    def slot_size(self):
        """Bytes of a slot; a body of up to ``slot_size - 16`` bytes needs no chunk."""
        return self.queue.segment.slot_bytes

    @property
    def pool_bytes(self):
        """Bytes of chunks of one size that can be in use at a time."""
        return self.queue.segment.pool_bytes

    @property
    def mode(self):
        """``"spsc"``, ``"mpsc"``, ``"spmc"`` or ``"mpmc"``."""
        return MODES[self.queue.segment.mode]

    @property
    def codec_name(self):
        """Name of the codec, the same for all participants."""
        return self.codec.name

    def usage(self):
        """What of the ring and the pool is in use at this moment: a :class:`~sagequeue.Usage`."""
        self.check_open()
        cdef sq_usage used = sq_usage_of(&self.queue)
        return Usage(used.slots_held, used.leases, used.chunks_held, used.chunk_bytes_held)

    def recover(self):
        """Look for dead participants now and settle what they left; returns how many were found.

        Whoever waits does this by itself; it is only needed to have it done at once. Who has died
        before the call is found, unless another participant is at it for more than a second.
        """
        cdef uint32_t found = 0
        cdef uint64_t patience = sq_now_ns() + RECOVER_PATIENCE_NS
        self.check_open()
        while not sq_try_recover(&self.queue, &found) and left_until(patience) > 0:
            with nogil:
                usleep(100)
            self.check_open()
        return found

    def participants(self):
        """Pids of the live participants, one for each handle."""
        self.check_open()
        return pids_of(&self.queue, True)


include "_lease.pxi"
include "_inspection.pxi"


def _rejoin_all():
    cdef SharedQueue handle
    for handle in list(handles):
        handle._rejoin_after_fork()


def _close_all():
    cdef SharedQueue handle
    for handle in list(handles):
        handle._leave_at_exit()


def _close_at_exit(_token=None):
    # Children of multiprocessing leave by os._exit and run these finalizers only; they have
    # forgotten the parent's, hence once for every process.
    util.Finalize(None, _close_all, exitpriority=-100)


os.register_at_fork(after_in_child=_rejoin_all)
util.register_after_fork(_rejoin_all, _close_at_exit)
_close_at_exit()
