# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False, auto_pickle=False
"""SharedQueue: a handle of a queue in shared memory, as a Python object.

The GIL is what makes one handle usable by many threads: no call into the core that reserves or
claims positions gives it up on the way. It is given up while waiting and while copying large
bodies in and out of chunks, which belong to this participant alone at that time.

Other code can run in the middle of a call: other threads while the GIL is given up, and in the
thread itself the pickling and unpickling of items, signal handlers, and whatever a collection
finalizes. It may use the handle, close it, and fork. Hence three rules:

- a call is counted from its first line to its last (`enter`, `exit`); close() only marks the handle
  closed, and the last call out leaves the queue and unmaps it;
- after anything that may run other code, `check_call` comes before the next use of the core;
- between taking something from the core and noting who has it, nothing is allocated or released.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport Py_DECREF
from libc.errno cimport EAGAIN, EBADF, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close, usleep

import logging
import os
import sys
import weakref
from multiprocessing import util
from types import GenericAlias

from sagequeue._codec cimport Codec, Encoded, array_over, describe_array, write_body
from sagequeue._csrc cimport *

from sagequeue.counts import most_of
from sagequeue.usage import Usage
from sagequeue.errors import (
    CorruptSegment, DecodeError, Empty, EncodeError, ForeignSegment, Full, IncompatibleSegment,
    InvalidOption, LeaseEnded, OutOfSharedMemory, QueueClosed, QueueError, QueueExists,
    QueueNotFound, RoleConflict, ShutDown, TooManyParticipants,
)
from sagequeue.holdup import report_holdup
from sagequeue.interruption import is_interruption, raise_interruption

cdef enum:
    NEW = 0
    OPENING = 1
    OPEN = 2
    CLOSED = 3   # by close(); left as soon as no call is inside and nothing is leased
    LEFT = 4
    ORPHANED = 5  # after fork, no entry was free for the child

cdef enum:
    BATCH = 256           # messages handed to the core at a time; more do not stay in the cache
    ROUNDS_WITH_GIL = 48  # of spinning, about a microsecond, before the GIL is given up
    ROUNDS_TO_RELEASE = 4000  # for a slot that another consumer is reading at this moment
    EXIT_TIMEOUT_MS = 200     # for threads that write a chunk
    PAUSE_US = 1000           # between two attempts, while another process does the same

cdef uint64_t FOREVER = <uint64_t> -1
cdef uint32_t NO_PROCESS = <uint32_t> -1
cdef uint64_t RECOVER_EVERY_NS = 20_000_000  # at most so often in calls that do not wait
cdef uint64_t BUSY_TIMEOUT_NS = 1_000_000_000  # while another process removes or recovers
cdef uint64_t HOLDUP_NS = 1_000_000_000  # of waiting for one participant, before it is reported
cdef uint64_t POOL_TIMEOUT_NS = 50_000_000  # without a free chunk, before a segment of its own
# A signal, or close() in another thread, that comes just before a wait begins is missed by it, but
# not for longer.
cdef uint64_t LONGEST_WAIT_NS = 100_000_000

cdef str PREFIX = "sagequeue-"
cdef tuple MODES = ("mpmc", "spmc", "mpsc", "spsc")


include "_limits.pxi"
include "_errors.pxi"


cdef bint is_interrupted(object error) except -1:
    """Whether decoding failed for a signal; a codec has made its exception the cause of its own."""
    return is_interruption(error) or is_interruption(error.__cause__)


cdef bint may_come_again(object error) except -1:
    """Whether a message could not be decoded for another reason than its content: a signal, or no
    memory or descriptor left in this process."""
    return isinstance(error, MemoryError) or type(error) is QueueError or is_interrupted(error)


@cython.final
cdef class Batch:
    """Messages taken off the ring, in the order of the queue. From `first` on they have not been
    delivered."""
    cdef unsigned char *records
    cdef size_t stride
    cdef uint32_t room
    cdef uint32_t first
    cdef uint32_t end
    cdef uint32_t forks   # a message is of the process that took it
    cdef object error     # why the first one cannot be decoded, if that is known
    cdef Batch newer      # in the handle's list of them

    @staticmethod
    cdef Batch allocate(SharedQueue owner, uint32_t room):
        cdef Batch self = Batch.__new__(Batch)
        self.stride = sq_taken_stride(&owner.queue)
        self.room = room
        self.forks = owner.forks
        self.records = <unsigned char *> PyMem_Malloc(room * self.stride)
        if self.records == NULL:
            raise MemoryError()
        return self

    cdef sq_taken *at(self, uint32_t i) noexcept:
        return <sq_taken *> (self.records + i * self.stride)

    def __dealloc__(self):
        PyMem_Free(self.records)


@cython.auto_pickle(False)  # SageQueue says how it is sent
@cython.no_gc_clear  # __dealloc__ needs all of it
cdef class SharedQueue:
    """One participant's handle of a shared-memory queue: see :class:`sagequeue.SageQueue`."""
    cdef sq_queue queue
    cdef int state
    cdef uint32_t open_in         # `forks` while the state is OPEN, else NO_PROCESS
    cdef uint32_t inside          # calls at work
    cdef uint32_t forking         # forks that have begun
    cdef uint32_t writing         # calls that write a chunk with the GIL given up
    cdef uint32_t bodies          # that look into the mapping
    cdef uint32_t held            # of them, chunks that are this participant's
    cdef uint32_t forks           # of the process whose participant it is: sq_forks, until a fork
    cdef uint32_t lost            # messages taken that could neither be delivered nor given back
    cdef sq_status orphaned_by    # why there was no entry for this process
    cdef int orphaned_errno
    cdef sq_holdup holdup         # what was waited for last
    cdef uint64_t holdup_since    # 0: reported
    cdef uint32_t inline_max
    cdef bint mapped
    cdef bint registered          # for forks and for the end of the process
    cdef bint pool_waits          # a chunk came free since the last one that did not come in time
    cdef Batch deferred           # taken, not yet delivered: oldest first
    cdef list decoded             # the items of a get_many() that was interrupted
    cdef int *invitations         # descriptors for a process that is, or was, being started
    cdef uint32_t invitations_made
    cdef void *invited            # that process, to be compared only
    cdef Codec codec
    cdef readonly str name
    cdef object __weakref__

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self):
        self.set_state(NEW)

    cdef void set_state(self, int state) noexcept:
        self.state = state
        self.open_in = self.forks if state == OPEN else NO_PROCESS

    # ---- opening and closing ----

    def _create(self, str name, uint64_t maxsize, str mode, uint32_t capacity, uint32_t slot_size,
                uint64_t pool_bytes, str codec, uint32_t max_participants, uint32_t recovery_ms):
        cdef sq_options options
        cdef sq_status status
        cdef uint64_t busy_deadline
        memset(&options, 0, sizeof(options))
        options.maxsize = maxsize
        options.capacity = capacity
        options.slot_bytes = slot_size
        options.pool_bytes = pool_bytes
        options.participants = max_participants
        options.recovery_ms = recovery_ms
        options.mode = {"spsc": 3, "mpsc": SQ_SINGLE_CONSUMER, "spmc": SQ_SINGLE_PRODUCER,
                        "mpmc": 0}[mode]
        encoded_codec = codec.encode("ascii")
        memcpy(options.codec, <const char *> encoded_codec, len(encoded_codec))
        file_name = (PREFIX + name).encode("ascii")
        self.begin_opening(name)
        try:
            register(self)
            self.codec = Codec(codec)
            busy_deadline = sq_now_ns() + BUSY_TIMEOUT_NS
            status = sq_queue_create(&self.queue, file_name, &options)
            while status == SQ_BUSY and pause(busy_deadline):
                status = sq_queue_create(&self.queue, file_name, &options)
            self.mapped = status == SQ_OK
            self.end_opening(status)
        except BaseException:
            self.abandon_opening()
            raise

    def _attach(self, str name, int invitation=-1):
        """Open the queue by its name or, where there is one, by an invitation of :meth:`_invite`,
        which is closed."""
        cdef sq_status status
        cdef uint64_t busy_deadline
        file_name = (PREFIX + name).encode("ascii")
        self.begin_opening(name)
        try:
            register(self)
            busy_deadline = sq_now_ns() + BUSY_TIMEOUT_NS
            if invitation >= 0:
                status = sq_queue_accept(&self.queue, file_name, invitation)
            else:
                status = sq_queue_attach(&self.queue, file_name)
            while status == SQ_BUSY and pause(busy_deadline):
                status = sq_queue_attach(&self.queue, file_name)
            self.mapped = status == SQ_OK
            if self.mapped:
                self.codec = Codec(self.queue.segment.codec.decode("ascii"))
            self.end_opening(status)
        except BaseException:
            self.abandon_opening()
            raise

    cdef int begin_opening(self, str name) except -1:
        if self.state != NEW:
            raise QueueError(
                f"this handle was opened before, as that of queue {self.name!r}; "
                "make another one for another queue"
            )
        self.forks = sq_forks
        self.set_state(OPENING)
        self.name = name
        return 0

    cdef int end_opening(self, sq_status status) except -1:
        if status != SQ_OK:
            raise make_error(self.name, status)
        self.inline_max = sq_inline_max(&self.queue)
        self.pool_waits = True
        if self.state == OPENING:  # not after a fork that left us without an entry
            self.set_state(OPEN)
        return 0

    cdef void abandon_opening(self) noexcept:
        """Leave what was joined, so that opening can be tried again."""
        if self.mapped:
            self.mapped = False
            if self.state == OPENING:
                sq_queue_leave(&self.queue)
            sq_queue_unmap(&self.queue)
        self.set_state(NEW)

    def close(self):
        """Give up this handle; closing twice is harmless.

        Items put stay in the queue for the others. The last handle to go removes the queue.

        Calls at work in other threads end with :class:`QueueClosed`, or return what they have
        taken. Messages taken in a batch behind one that could not be decoded go back to the queue.
        Items that an interrupted :meth:`get_many` had decoded are lost, which is logged.
        """
        if self.forks != sq_forks and self.state != NEW:
            self.check_open()
        if self.state == OPEN:
            self.set_state(CLOSED)
            if self.inside > 0:
                sq_wake_all(&self.queue)  # who waits comes out and leaves
        elif self.state == ORPHANED:
            self.set_state(LEFT)
        self.leave_if_idle()

    cdef void leave_if_idle(self) noexcept:
        """Leave when closed and nothing holds us, unmap when nothing looks into the mapping."""
        if self.forks != sq_forks:
            return  # a child that has not rejoined yet
        if self.state == CLOSED and self.inside == 0 and self.forking == 0:
            self.give_back_deferred(self.held == 0)
        if (self.state == LEFT and self.inside == 0 and self.forking == 0 and self.bodies == 0
                and self.mapped):
            self.mapped = False
            sq_queue_unmap(&self.queue)
        if self.lost > 0:
            self.report_lost()

    cdef bint is_member(self) noexcept:
        """Whether this participant is in the table: what it holds is its own until it leaves."""
        return (self.state == OPEN or self.state == CLOSED) and self.forks == sq_forks

    cdef void report_lost(self) noexcept:
        lost, self.lost = self.lost, 0
        logging.getLogger("sagequeue").warning(
            "queue %r was closed in this process with %d items taken and not delivered; they are "
            "lost", self.name, lost
        )

    cdef void leave_at_exit(self) noexcept:
        """Leave, even if threads wait and messages are leased: leases go back to the queue.

        Threads that wait are not woken, which would end them with an error; the mapping stays.
        """
        cdef int milliseconds = EXIT_TIMEOUT_MS
        while self.state == OPEN and self.writing > 0 and milliseconds > 0:
            milliseconds -= 1
            with nogil:
                usleep(1000)  # a chunk must not be given up while it is being written
        if self.state == OPEN and self.inside == 0:
            self.close()
        if self.is_member() and self.writing == 0:
            self.give_back_deferred(True)

    def __dealloc__(self):
        # nothing holds or looks any more: it would have kept us alive
        if self.is_member():
            self.give_back_deferred(True)
        if self.mapped:
            sq_queue_unmap(&self.queue)
        if self.lost > 0:
            self.report_lost()
        PyMem_Free(self.invitations)

    # ---- forks and new processes ----

    cdef bint forks_with_us(self) noexcept:
        return self.state == OPEN or (self.state == OPENING and self.mapped)

    cdef void rejoin_after_fork(self, Invitation invitation) noexcept:
        """In the child: calls that began before the fork are the parent's."""
        cdef sq_status status
        if self.inside > 0:
            self.bodies += 1  # those of the thread that forked return here and use the mapping
        self.forks = sq_forks
        self.set_state(self.state)
        self.inside = self.forking = self.writing = self.held = 0
        if invitation.fd < 0:
            if self.forks_with_us():
                self.orphan(SQ_SYSTEM, invitation.error)
            elif self.state == CLOSED:
                self.set_state(LEFT)  # the parent's other thread leaves
            return
        status = sq_queue_fork_child(&self.queue, invitation.take())
        if status != SQ_OK:
            self.orphan(status, errno)
        elif self.state == CLOSED:
            self.set_state(LEFT)  # closed by another thread between the invitation and the fork
            sq_queue_leave(&self.queue)

    cdef void orphan(self, sq_status status, int error) noexcept:
        self.set_state(ORPHANED)
        self.orphaned_by = status
        self.orphaned_errno = error

    cdef void forget_parents_messages(self) noexcept:
        """In the child, when all handles have rejoined: this may run other code."""
        self.deferred = None
        self.decoded = None
        self.end_invitations()

    def _invite(self, object process):
        """A descriptor that keeps the queue from being removed until `process`, which is being
        started, has opened it. Ours is closed when that has begun: with the next invitation or when
        we close."""
        cdef void *room
        cdef int invitation
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            if self.invited != <void *> process:
                self.end_invitations()
                self.invited = <void *> process
            room = PyMem_Realloc(self.invitations, (self.invitations_made + 1) * sizeof(int))
            if room == NULL:
                raise MemoryError()
            self.invitations = <int *> room
            invitation = sq_queue_invite(&self.queue, False)
            if invitation < 0:
                raise make_error(self.name, SQ_SYSTEM)
            self.invitations[self.invitations_made] = invitation
            self.invitations_made += 1
            return invitation
        finally:
            self.exit(forks)

    cdef void end_invitations(self) noexcept:
        while self.invitations_made > 0:
            self.invitations_made -= 1
            sq_queue_end_invitation(&self.queue, self.invitations[self.invitations_made])
        self.invited = NULL

    # ---- the guard around every call ----

    @cython.final
    cdef inline int enter(self) except -1:
        """Begin a call: until exit() the handle is neither left nor unmapped."""
        if self.open_in != sq_forks:
            self.check_open()
        self.inside += 1
        return 0

    @cython.final
    cdef inline void exit(self, uint32_t forks) noexcept:
        """End a call that began after so many forks."""
        if self.open_in == forks:
            self.inside -= 1
        else:
            self.exit_closed(forks)

    cdef void exit_closed(self, uint32_t forks) noexcept:
        if self.forks == forks:
            self.inside -= 1
            self.leave_if_idle()

    @cython.final
    cdef inline int check_call(self, uint32_t forks) except -1:
        """Whether a call may go on that began after so many forks; the error is that it may not."""
        if self.open_in != forks or forks != sq_forks:
            self.raise_ended_call()
        return 0

    cdef int raise_ended_call(self) except -1:
        self.check_open()
        raise QueueError(
            f"the process forked in the middle of this call to queue {self.name!r}; the call "
            "goes on in the parent, and the child has to make its own"
        )

    @property
    def closed(self):
        """Whether this handle was closed."""
        return self.state != OPEN

    cdef int check_open(self) except -1:
        if self.forks != sq_forks and self.state != NEW:
            raise QueueError(
                f"queue {self.name!r} cannot be used yet: the process is being forked, and its "
                "handle is the parent's until the hooks of os.register_at_fork() have run"
            )
        if self.state == OPEN:
            return 0
        if self.state == ORPHANED:
            raise make_error(self.name, self.orphaned_by, self.orphaned_errno)
        if self.state == NEW or self.state == OPENING:
            raise QueueClosed(
                "this handle is not open yet: call SageQueue.__init__() first, or attach()"
            )
        raise QueueClosed(
            f"queue {self.name!r} is closed in this process; "
            "open another handle with SageQueue.attach()"
        )

    # ---- waiting, with the GIL given up ----

    cdef int wait(self, void (*sleep)(sq_queue *, uint64_t) noexcept nogil,
                  uint64_t timeout_ns) except -1:
        """Wait in the core; then check_call() has to come before the core is used again."""
        timeout_ns = min(timeout_ns, LONGEST_WAIT_NS)
        with nogil:
            sleep(&self.queue, timeout_ns)
        self.check_holdup(sleep is sq_await_room)
        PyErr_CheckSignals()
        return 0

    cdef long long check_holdup(self, bint room) except -1:
        """Report, once, a participant that has kept us waiting at one position for a second: it
        must be stopped. Returns its pid; 0 when nobody keeps us waiting."""
        cdef sq_holdup holdup = sq_held_up_by(&self.queue, room)
        cdef uint64_t now
        if holdup.pid == 0 and self.holdup.pid == 0:
            return 0
        now = sq_now_ns()
        if holdup.pid != self.holdup.pid or holdup.position != self.holdup.position:
            self.holdup = holdup
            self.holdup_since = now
        elif self.holdup_since != 0 and now - self.holdup_since >= HOLDUP_NS:
            self.holdup_since = 0
            report_holdup(self.name, holdup.pid)
        return holdup.pid

    cdef str reason_of_holdup(self, bint room):
        """For the error of a call that got nothing although there is something."""
        cdef long long pid = self.check_holdup(room)  # here, too: a caller that polls never waits
        return f"; it waits for process {pid}" if pid else ""

    cdef int await_chunk(self, uint64_t size, uint64_t timeout_ns) except -1:
        timeout_ns = min(timeout_ns, LONGEST_WAIT_NS)
        with nogil:
            sq_await_chunk(&self.queue, size, timeout_ns)
        PyErr_CheckSignals()
        return 0

    # ---- put ----

    cdef int enrol_producer(self) except -1:
        return self.enrol(sq_queue_enrol_producer)

    cdef int enrol(self, sq_status (*enrol)(sq_queue *) noexcept nogil) except -1:
        cdef uint32_t forks = self.forks
        cdef uint64_t busy_deadline = sq_now_ns() + BUSY_TIMEOUT_NS
        cdef sq_status status = enrol(&self.queue)
        while status == SQ_BUSY and pause(busy_deadline):
            self.check_call(forks)
            status = enrol(&self.queue)
        if status == SQ_ROLE_TAKEN:
            raise self.role_conflict(enrol is sq_queue_enrol_producer)
        if status != SQ_OK:
            raise make_error(self.name, status)
        return 0

    cdef object role_conflict(self, bint producer):
        cdef uint32_t pid
        role = "producer" if producer else "consumer"
        pid = (sq_queue_producer_pid if producer else sq_queue_consumer_pid)(&self.queue)
        return RoleConflict(
            f"queue {self.name!r} has mode {self.mode!r}, which allows one {role}, and that is "
            f"another handle, in process {pid}; close it first, or create the queue with "
            'mode="mpmc" to have more'
        )

    cdef int put_items(self, sq_item *items, uint32_t n, uint32_t forks, bint block,
                       uint64_t deadline, uint32_t *accepted) except -1:
        """Put n items, waiting for room; `accepted` counts them as they go in."""
        cdef uint32_t some = 0
        cdef uint64_t left
        cdef sq_status status
        while True:
            self.check_call(forks)
            status = sq_put(&self.queue, items + accepted[0], n - accepted[0], &some)
            if status == SQ_OK:
                accepted[0] += some
                if accepted[0] == n:
                    return 0
                continue
            if status == SQ_CLOSED:
                raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
            if status != SQ_FULL:
                raise make_error(self.name, status)
            if sq_spin_room(&self.queue, ROUNDS_WITH_GIL):
                continue
            if not block:
                if self.makes_room():
                    continue
                raise self.full_error()
            left = left_until(deadline)
            if left == 0:
                raise self.full_error()
            self.wait(sq_await_room, left)

    cdef bint makes_room(self) noexcept:
        """Whether there is room but for a slot that is being read, or whose reader is dead."""
        return sq_size(&self.queue) < self.queue.limit and (
            sq_spin_room(&self.queue, ROUNDS_TO_RELEASE)
            or sq_recover_if_due(&self.queue, RECOVER_EVERY_NS) > 0)

    cdef object full_error(self):
        cdef uint64_t waiting = sq_size(&self.queue)
        if waiting >= self.queue.limit:
            return Full(f"queue {self.name!r} is full: {waiting} items are waiting")
        return Full(
            f"queue {self.name!r} has no room yet ({waiting} items waiting): the place that comes "
            f"next is still in use{self.reason_of_holdup(True)}"
        )

    cdef bint acquire(self, uint64_t size, uint32_t forks, uint32_t *chunk, unsigned char **data,
                      bint may_wait, bint block, uint64_t deadline) except -1:
        """A chunk of `size` bytes, or one that stands for a segment of its own: then `data` is its
        memory, to be unmapped, and else NULL.

        A pool that is exhausted is waited for as long as chunks keep coming free; then, and
        without blocking at once, the message takes a segment of its own: the bound on what is
        waiting is maxsize, never the pool. False when it would have to wait and may not.
        """
        cdef sq_status status = SQ_NO_CHUNK
        cdef uint64_t left
        cdef uint64_t pool_deadline = 0
        data[0] = NULL
        self.check_call(forks)
        if size <= sq_chunk_largest(&self.queue):
            status = sq_chunk_acquire(&self.queue, size, chunk)
            if status == SQ_NO_CHUNK:
                if not may_wait:
                    return False
                left = 0
                if block and self.pool_waits:
                    pool_deadline = min(deadline, sq_now_ns() + POOL_TIMEOUT_NS)
                    left = left_until(pool_deadline)
                while status == SQ_NO_CHUNK and left > 0:
                    self.await_chunk(size, left)
                    self.check_call(forks)
                    status = sq_chunk_acquire(&self.queue, size, chunk)
                    left = left_until(pool_deadline)
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
            self.check_call(forks)
            status = sq_external_acquire(&self.queue, size, chunk, data)
        if status != SQ_OK:
            raise make_error(self.name, status)
        return True

    cdef bint place(self, const Encoded *encoded, object kept, uint32_t forks, sq_item *item,
                    bint may_wait, bint block, uint64_t deadline) except -1:
        """Write a body that fits no slot; False when it would have to wait and may not."""
        cdef unsigned char *data = NULL
        cdef unsigned char *external = NULL
        if not self.acquire(encoded.size, forks, &item.chunk, &external, may_wait, block,
                            deadline):
            return False
        data = external if external != NULL else sq_chunk_data(&self.queue, item.chunk)
        try:
            self.write_chunk(encoded, kept, forks, item, data)
        except BaseException:
            self.release_chunk(item.chunk, forks)
            raise
        finally:
            if external != NULL:
                sq_external_unmap(external, encoded.size)
        return True

    cdef Body borrow(self, const Encoded *encoded, uint32_t forks, sq_item *item, bint block,
                     uint64_t deadline):
        """Memory for a body of which only the first part is written here."""
        cdef unsigned char *data = NULL
        cdef Body body = Body.__new__(Body)
        self.acquire(encoded.size, forks, &item.chunk, &data, True, block, deadline)
        body.hold(self, item.chunk, RELEASE)
        body.external = data != NULL
        body.data = data if data != NULL else sq_chunk_data(&self.queue, item.chunk)
        body.size = encoded.size
        body.writable = True
        self.write_chunk(encoded, None, forks, item, body.data)
        return body

    cdef int write_chunk(self, const Encoded *encoded, object kept, uint32_t forks, sq_item *item,
                         unsigned char *data) except -1:
        item.storage = SQ_IN_CHUNK
        item.tag = encoded.tag
        item.length = 0
        item.body = NULL
        sq_chunk_describe(&self.queue, item.chunk, encoded.size, encoded.tag)
        self.writing += 1
        try:
            write_body(encoded, kept, data)
        finally:
            if forks == self.forks:
                self.writing -= 1
        return 0

    cdef void release_chunk(self, uint32_t chunk, uint32_t forks) noexcept:
        """Give back a chunk that a call of this process has, unless leaving has done so."""
        if forks == self.forks and self.is_member():
            sq_chunk_release(&self.queue, chunk)

    cdef int put_large(self, const Encoded *encoded, object kept, uint32_t forks, bint block,
                       uint64_t deadline) except -1:
        cdef sq_item item
        cdef uint32_t accepted = 0
        cdef uint64_t left
        # room first: a large body is not copied only to find the queue full
        while not sq_spin_room(&self.queue, ROUNDS_WITH_GIL):
            left = left_until(deadline)
            if not block or left == 0:
                break
            self.wait(sq_await_room, left)
            self.check_call(forks)
        if sq_is_shutdown(&self.queue):
            raise ShutDown(f"queue {self.name!r} was shut down; nothing more can be put")
        if not block and not self.makes_room():
            raise self.full_error()
        self.place(encoded, kept, forks, &item, True, block, deadline)
        try:
            self.put_items(&item, 1, forks, block, deadline, &accepted)
        finally:
            if accepted == 0:
                self.release_chunk(item.chunk, forks)
        return 0

    def put(self, object item, bint block=True, object timeout=None):
        """Put an item; see :class:`sagequeue.protocol.Queue`."""
        cdef Encoded encoded
        cdef sq_item message
        cdef uint32_t accepted = 0
        cdef unsigned char small[SQ_SLOT_MAX]
        cdef uint64_t deadline = FOREVER
        cdef uint32_t forks = self.forks
        cdef bint encoding = False
        self.enter()
        try:
            if block and timeout is not None:
                deadline = deadline_after(timeout)
            if not self.queue.producing:
                self.enrol_producer()
            encoding = True
            kept = self.codec.encode(item, &encoded)
            encoding = False
            self.check_call(forks)
            if encoded.size > self.inline_max:
                self.put_large(&encoded, kept, forks, block, deadline)
                return
            message.body = encoded.first
            if encoded.first_size != encoded.size:
                write_body(&encoded, kept, small)
                self.check_call(forks)
                message.body = small
            message.length = <uint32_t> encoded.size
            message.tag = encoded.tag
            message.storage = SQ_INLINE
            if sq_put(&self.queue, &message, 1, &accepted) != SQ_OK:
                self.put_items(&message, 1, forks, block, deadline, &accepted)
        finally:  # an except clause would cost those that do not fail
            self.exit(forks)
            if encoding:
                raise_interruption(sys.exc_info()[1])

    def put_nowait(self, object item):
        """``put(item, block=False)``."""
        self.put(item, False)

    def put_many(self, object items, bint block=True, object timeout=None):
        """Put all items in order; see :class:`sagequeue.protocol.Queue`.

        When an item cannot be encoded, the ones before it are put. Every :class:`QueueError` says
        in ``accepted`` how many leading items went in.
        """
        cdef uint64_t deadline = FOREVER
        cdef uint64_t total = 0
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            if block and timeout is not None:
                deadline = deadline_after(timeout)
            if not self.queue.producing:
                self.enrol_producer()
            if type(items) is tuple or type(items) is list:
                self.put_block(tuple(items), forks, block, deadline, &total)
            else:
                self.put_stream(iter(items), forks, block, deadline, &total)
            return total
        except QueueError as error:
            raise_interruption(error)
            error.accepted = total
            raise
        finally:
            self.exit(forks)

    cdef int put_stream(self, object iterator, uint32_t forks, bint block, uint64_t deadline,
                        uint64_t *total) except -1:
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
                block = block and isinstance(error, Exception)  # Ctrl-C does not wait for room
            try:
                self.put_block(tuple(some), forks, block, deadline, total)
            finally:
                if failure is not None:
                    raise failure
        return 0

    cdef int put_block(self, tuple items, uint32_t forks, bint block, uint64_t deadline,
                       uint64_t *total) except -1:
        """Encode and put in runs; `total` counts the items that went in."""
        cdef Encoded *encoded
        cdef sq_item *messages
        cdef uint32_t accepted = 0
        cdef uint32_t run = 0
        cdef uint32_t i
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t count = len(items)
        cdef Py_ssize_t width = min(count, <Py_ssize_t> BATCH)
        cdef list kept = []  # what the messages of a run point into
        if count == 0:
            return 0
        encoded = <Encoded *> PyMem_Malloc(width * (sizeof(Encoded) + sizeof(sq_item)))
        if encoded == NULL:
            raise MemoryError()
        messages = <sq_item *> (encoded + width)
        try:
            while at < count:
                failure = None
                try:
                    # a message that finds no chunk at once waits until those before it are put
                    while at < count and run < width and self.prepare(
                            items[at], kept, forks, encoded + run, messages + run, run == 0, block,
                            deadline):
                        at += 1
                        run += 1
                except Exception as error:
                    raise_interruption(error)
                    failure = error
                if run > 0:
                    self.put_items(messages, run, forks, block, deadline, &accepted)
                total[0] += accepted
                run = accepted = 0
                kept.clear()
                if failure is not None:
                    raise failure
        finally:
            total[0] += accepted
            for i in range(accepted, run):
                if messages[i].storage == SQ_IN_CHUNK:
                    self.release_chunk(messages[i].chunk, forks)
            PyMem_Free(encoded)
        return 0

    cdef bint prepare(self, object item, list kept, uint32_t forks, Encoded *encoded,
                      sq_item *message, bint may_wait, bint block, uint64_t deadline) except -1:
        """Encode one item of a run; False: come again when the run has been put."""
        cdef bytearray joined
        holder = self.codec.encode(item, encoded)
        self.check_call(forks)
        if encoded.size > self.inline_max:
            return self.place(encoded, holder, forks, message, may_wait, block, deadline)
        message.body = encoded.first
        if encoded.first_size != encoded.size:
            joined = bytearray(encoded.size)
            write_body(encoded, holder, <unsigned char *> joined)
            message.body = <unsigned char *> joined
            holder = joined
        kept.append((item, holder))
        message.length = <uint32_t> encoded.size
        message.tag = encoded.tag
        message.storage = SQ_INLINE
        return True

    # ---- get ----

    cdef int enrol_consumer(self) except -1:
        return self.enrol(sq_queue_enrol_consumer)

    cdef int take(self, void *taken, uint32_t n, uint32_t *count, uint32_t forks, bint claim,
                  bint block, uint64_t deadline) except -1:
        """Take or claim up to n messages, waiting for the first; `count` is how many."""
        cdef uint64_t left
        cdef sq_status status
        while True:
            self.check_call(forks)
            if claim:
                status = sq_claim(&self.queue, taken, n, count)
            else:
                status = sq_take(&self.queue, taken, n, count)
            if count[0] > 0:
                return 0  # an error, if any, comes again with the next call
            if status == SQ_CLOSED:
                raise ShutDown(f"queue {self.name!r} was shut down and nothing is left to get")
            if status == SQ_NO_CHUNK:
                left = self.left_to_wait(block, deadline)
                if left == 0:
                    raise self.no_lease_left()
                self.wait(sq_await_copy, left)
                continue
            if status != SQ_EMPTY:
                raise make_error(self.name, status)
            if sq_spin_message(&self.queue, ROUNDS_WITH_GIL if block else 1):
                continue
            left = self.left_to_wait(block, deadline)
            if left == 0:
                if (sq_size(&self.queue) > 0
                        and sq_recover_if_due(&self.queue, RECOVER_EVERY_NS) > 0):
                    continue  # what is there was behind a dead one's slot
                raise self.empty_error()
            if sq_check_cursors(&self.queue) != SQ_OK:
                raise make_error(self.name, SQ_CORRUPT)
            self.wait(sq_await_message, left)

    cdef uint64_t left_to_wait(self, bint block, uint64_t deadline) except? 0:
        """How long a take may wait now, in nanoseconds; a wake-up ends it before it waits."""
        if not block:
            return 0
        if sq_take_wakeup(&self.queue):
            raise Empty(f"queue {self.name!r}: wakeup() was called before an item came")
        return left_until(deadline)

    def wakeup(self):
        """End the wait of a take with :class:`Empty`; see :class:`sagequeue.protocol.Queue`."""
        if self.state != CLOSED and self.state != LEFT:
            self.check_open()
            sq_wakeup(&self.queue)

    cdef object empty_error(self):
        cdef uint64_t waiting = sq_size(&self.queue)
        if waiting == 0:
            return Empty(f"queue {self.name!r} is empty")
        return Empty(
            f"queue {self.name!r}: the first of {waiting} items is still being put"
            f"{self.reason_of_holdup(False)}"
        )

    cdef object no_lease_left(self):
        return Empty(
            f"queue {self.name!r}: as many leases are out as it has slots; "
            "release some, or create it with a larger capacity"
        )

    cdef object decode(self, const sq_taken *taken):
        """The object a message stands for; the message stays."""
        cdef unsigned char *data = NULL
        cdef sq_status status
        if taken.storage == SQ_INLINE:
            return self.codec.decode(taken.tag, taken.body, taken.length, None)
        status = sq_external_map(&self.queue, taken.chunk, taken.length, &data)
        if status == SQ_EMPTY:
            data = sq_chunk_data(&self.queue, taken.chunk)
            return self.codec.decode(taken.tag, data, taken.length, None)
        if status != SQ_OK:
            raise make_error(self.name, status)
        try:
            return self.codec.decode(taken.tag, data, taken.length, None)
        finally:
            sq_external_unmap(data, taken.length)

    def get(self, bint block=True, object timeout=None):
        """Take the oldest item; see :class:`sagequeue.protocol.Queue`."""
        cdef uint64_t space[SQ_TAKEN_WORDS]
        cdef sq_taken *taken = <sq_taken *> space
        cdef uint32_t count = 0
        cdef uint64_t deadline = FOREVER
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            if block and timeout is not None:
                deadline = deadline_after(timeout)
            if not self.queue.consuming:
                self.enrol_consumer()
            if self.deferred is not None or self.decoded is not None:
                return self.get_deferred(1)[0]
            if sq_take(&self.queue, taken, 1, &count) != SQ_OK:
                self.take(taken, 1, &count, forks, False, block, deadline)
            if taken.storage == SQ_INLINE:
                item = self.codec.decode(taken.tag, taken.body, taken.length, None)
                count = 0
            else:
                item = self.decode(taken)
                PyErr_CheckSignals()  # as in decode_batch
                count = 0
                self.release_chunk(taken.chunk, forks)
            return item
        finally:  # an except clause would cost those that do not fail
            if count > 0:
                self.end_failed_get(taken, forks)
            else:
                self.exit(forks)

    cdef int end_failed_get(self, const sq_taken *taken, uint32_t forks) except -1:
        """End a get() whose message could not be decoded. If that was interrupted, the message
        comes with the next call; else it is consumed."""
        cdef bint interrupted = True
        error = sys.exc_info()[1]
        try:
            try:
                interrupted = may_come_again(error)  # which may be interrupted itself
            finally:
                if interrupted:
                    self.defer_message(taken, forks)
                elif taken.storage == SQ_IN_CHUNK:
                    self.release_chunk(taken.chunk, forks)
            raise_interruption(error)
        finally:
            self.exit(forks)
        return 0

    def get_nowait(self):
        """``get(block=False)``."""
        return self.get(False)

    def get_many(self, object max_items=None, bint block=True, object timeout=None):
        """Take what is there, waiting for the first; see :class:`sagequeue.protocol.Queue`.

        Without ``max_items`` it takes at most 256.

        An item that cannot be decoded ends a batch before it: its error comes with the next call,
        and then what is behind it. When a signal handler raises, its exception comes out of the
        call at once, and the items with the next call.
        """
        cdef uint64_t deadline = FOREVER
        cdef uint32_t most
        cdef uint32_t forks = self.forks
        cdef Batch batch
        self.enter()
        try:
            if block and timeout is not None:
                deadline = deadline_after(timeout)
            most = items_wanted(max_items)
            if not self.queue.consuming:
                self.enrol_consumer()
            if self.deferred is not None or self.decoded is not None:
                return self.get_deferred(most)
            batch = Batch.allocate(
                self, min(most, <uint32_t> min(self.queue.limit, <uint64_t> BATCH)))
            self.take(batch.records, batch.room, &batch.end, forks, False, block, deadline)
            return self.decode_batch(batch, most, True)
        finally:
            self.exit(forks)

    cdef list get_deferred(self, uint32_t most):
        """What an earlier call has taken and not delivered."""
        cdef list items = self.decoded
        cdef Batch batch
        if items is None:
            batch = self.next_deferred()
            return self.decode_batch(batch, most, False)
        self.decoded = None
        if <uint64_t> len(items) > most:
            self.keep_decoded(items[most:], self.forks)
            del items[most:]
        return items

    cdef list decode_batch(self, Batch batch, uint32_t most, bint take_more):
        """Decode up to so many messages; what remains in the batch is deferred."""
        cdef list items = []
        try:
            self.decode_messages(batch, most, take_more, items)
            # What a handler raises is to come out of this call, not between it and its caller.
            PyErr_CheckSignals()
            return items
        except BaseException:
            if items:
                self.keep_decoded(items, batch.forks)
            raise
        finally:
            if batch.first < batch.end:
                self.defer(batch)

    cdef int decode_messages(self, Batch batch, uint32_t most, bint take_more,
                             list items) except -1:
        while True:
            while batch.first < batch.end and <uint64_t> len(items) < most:
                if not self.decode_first(batch, items):
                    return 0
            if not take_more or <uint64_t> len(items) == most or self.state != OPEN:
                return 0
            batch.first = 0
            sq_take(&self.queue, batch.records, min(batch.room, most - <uint32_t> len(items)),
                    &batch.end)
            if batch.end == 0:
                return 0

    cdef bint decode_first(self, Batch batch, list items) except -1:
        """Move a message from a batch to the decoded items; False: these are to be returned."""
        if batch.error is None:
            try:
                items.append(self.decode(batch.at(batch.first)))
            except BaseException as error:
                batch.error = error
            else:
                self.consume(batch)
                # not in a child that it forked, and not after leaving at the end of the process
                return batch.forks == self.forks and self.is_member()
        interrupted = may_come_again(batch.error)
        if items and isinstance(batch.error, Exception) and not interrupted:
            return False
        error, batch.error = batch.error, None
        if interrupted:
            raise_interruption(error)
        else:
            self.consume(batch)
        raise error

    cdef void keep_decoded(self, list items, uint32_t forks) noexcept:
        """For the next call, where this one has to raise."""
        if forks == self.forks:
            later, self.decoded = self.decoded, items
            if later is not None:
                items.extend(later)

    cdef void consume(self, Batch batch) noexcept:
        """The first message of a batch is done with."""
        cdef sq_taken *message = batch.at(batch.first)
        batch.first += 1
        if message.storage == SQ_IN_CHUNK:
            self.release_chunk(message.chunk, batch.forks)

    # ---- messages that are taken and not yet delivered ----

    cdef Batch next_deferred(self):
        cdef Batch batch = self.deferred
        if batch is not None:
            self.deferred = batch.newer
            batch.newer = None
        return batch

    cdef void defer(self, Batch batch) noexcept:
        """Keep the rest of a batch for the next call, unless it is the parent's or we have left."""
        if batch.forks == self.forks and self.is_member():
            batch.newer = self.deferred
            self.deferred = batch

    cdef int defer_message(self, const sq_taken *taken, uint32_t forks) except -1:
        cdef Batch batch = Batch.allocate(self, 1)
        batch.forks = forks
        memcpy(batch.records, taken, batch.stride)
        batch.end = 1
        self.defer(batch)
        return 0

    cdef void give_back_deferred(self, bint leave) noexcept:
        """Have the queue deliver them again, and then leave it or not."""
        cdef Batch oldest = self.deferred  # which keeps the newer ones
        cdef Batch batch = oldest
        cdef list decoded = self.decoded
        cdef uint32_t i
        self.deferred = None
        self.decoded = None
        while batch is not None:
            for i in range(batch.first, batch.end):
                self.give_back(batch.at(i))
            batch = batch.newer
        if decoded is not None:
            self.lost += <uint32_t> len(decoded)
        if leave:
            self.set_state(LEFT)
            self.end_invitations()
            sq_queue_leave(&self.queue)
        # only now do the items and errors go, which may run other code

    cdef void give_back(self, sq_taken *message) noexcept:
        if sq_lease_taken(&self.queue, message) == SQ_OK:
            sq_lease_return(&self.queue, message.chunk)
        else:
            self.lost += 1

    cdef uint64_t deferred_count(self) noexcept:
        cdef uint64_t count = 0 if self.decoded is None else <uint64_t> len(self.decoded)
        cdef Batch batch = self.deferred
        while batch is not None:
            count += batch.end - batch.first
            batch = batch.newer
        return count

    # ---- claim and loan ----

    def claim(self, bint block=True, object timeout=None):
        """Lease the oldest item: it is delivered again unless the lease is released.

        Messages that are delivered again come first, oldest first, and say so in ``redelivered``.
        Raises what :meth:`get` raises; :class:`Empty` also when as many leases are out as the
        queue has slots.
        """
        return self.claim_some(1, block, timeout)[0]

    def _claim_many(self, object max_items, bint block, object timeout):
        return self.claim_some(
            min(items_wanted(max_items), <uint32_t> SQ_CLAIM_MAX), block, timeout)

    cdef list claim_some(self, uint32_t most, bint block, object timeout):
        cdef uint64_t deadline = FOREVER
        cdef uint32_t forks = self.forks
        cdef Batch batch
        self.enter()
        try:
            if block and timeout is not None:
                deadline = deadline_after(timeout)
            if not self.queue.consuming:
                self.enrol_consumer()
            batch = self.next_deferred()
            if batch is not None:
                return self.lease_batch(batch, most, False)
            batch = Batch.allocate(self, most)
            self.take(batch.records, most, &batch.end, forks, True, block, deadline)
            return self.lease_batch(batch, most, True)
        finally:
            self.exit(forks)

    cdef list lease_batch(self, Batch batch, uint32_t most, bint take_more):
        """Lease up to so many messages; what remains in the batch is deferred."""
        cdef list leases = []
        try:
            while True:
                while batch.first < batch.end and <uint64_t> len(leases) < most:
                    if not self.lease_first(batch, leases):
                        return leases
                if not take_more or <uint64_t> len(leases) == most or self.state != OPEN:
                    return leases
                batch.first = 0  # what is delivered again comes one at a time
                sq_claim(&self.queue, batch.records, most - <uint32_t> len(leases), &batch.end)
                if batch.end == 0:
                    return leases
        finally:
            if batch.first < batch.end:
                self.defer(batch)

    cdef bint lease_first(self, Batch batch, list leases) except -1:
        """Move a message from a batch to the leases; False when no more can be leased."""
        cdef Lease lease = Lease.__new__(Lease)
        cdef Body body = Body.__new__(Body)
        cdef sq_taken *message = batch.at(batch.first)
        cdef sq_status status
        leases.append(lease)
        if batch.forks != self.forks or not self.is_member():
            self.check_call(batch.forks)
        status = sq_lease_taken(&self.queue, message)  # unless it was claimed
        if status != SQ_OK:
            leases.pop()
            if leases:
                return False
            raise self.no_lease_left() if status == SQ_NO_CHUNK else make_error(self.name, status)
        body.hold(self, message.chunk, RETURN)
        body.size = message.length
        lease.body = body
        lease.tag = message.tag
        lease.returns = message.deliveries
        batch.first += 1
        batch.error = None
        return True

    def _loan(self, tuple shape, object dtype, bint fortran, bint block, object timeout):
        return Loan.make(self, shape, dtype, fortran, block, timeout)

    # ---- the queue as a whole ----
    # Where nothing runs between check_open() and the core, and nothing waits, that is guard enough.

    def qsize(self):
        """How many items are waiting; other participants may change it at any time."""
        self.check_open()
        return sq_size(&self.queue) + self.deferred_count()

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
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            while sq_unfinished(&self.queue) != 0:
                self.wait(sq_await_done, FOREVER)
                self.check_call(forks)
        finally:
            self.exit(forks)

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
        if self.codec is None:
            self.check_open()
        return self.codec.name

    def usage(self):
        """What of the ring and the pool is in use at this moment: a :class:`~sagequeue.Usage`."""
        self.check_open()
        cdef sq_usage used = sq_usage_of(&self.queue)
        return Usage(used.slots_held, used.leases, used.chunks_held, used.chunk_bytes_held)

    def recover(self):
        """Look for dead participants now and settle what they left; returns how many were found.

        Calls that wait do this by themselves; use it to have it done at once. All participants that
        died before the call are found, unless another one is recovering for more than a second.
        """
        cdef uint32_t found = 0
        cdef uint32_t settled = 0
        cdef sq_status status
        cdef uint64_t busy_deadline = sq_now_ns() + BUSY_TIMEOUT_NS
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            while True:
                with nogil:
                    status = sq_recover(&self.queue, &found)
                settled += found
                self.check_call(forks)
                if status != SQ_BUSY or not pause(busy_deadline):
                    break
                self.check_call(forks)
            if status != SQ_OK and status != SQ_BUSY:
                raise make_error(self.name, status)
            return settled
        finally:
            self.exit(forks)

    def participants(self):
        """Pids of the live participants, one for each handle."""
        cdef uint32_t forks = self.forks
        self.enter()
        try:
            return list_pids(&self.queue, True)
        finally:
            self.exit(forks)


include "_lease.pxi"
include "_inspection.pxi"
include "_handles.pxi"
