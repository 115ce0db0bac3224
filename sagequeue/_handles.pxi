# Included by _shared.pyx: all handles of this process, when it forks and when it ends.

cdef list handles = []  # weak references: an index goes through it without an allocation


cdef int register(SharedQueue handle) except -1:
    """Add a handle to the list of this process, which is tidied up at that."""
    cdef Py_ssize_t i = 0
    reference = weakref.ref(handle)
    while i < len(handles):
        if handles[i]() is None or handles[i] is reference:
            del handles[i]
        else:
            i += 1
    handles.append(reference)
    return 0


@cython.final
cdef class Membership:
    """A participant that a child is to be: entered before the fork, for one handle."""
    cdef sq_membership value
    cdef sq_status status  # of entering
    cdef int error
    cdef SharedQueue handle

    def __cinit__(self):
        self.value.fd = -1
        self.status = SQ_TABLE_FULL

    cdef void enter(self, SharedQueue handle) noexcept:
        self.handle = handle
        self.status = sq_queue_fork_prepare(&handle.queue, &self.value)
        self.error = errno

    cdef void close(self) noexcept:
        """In the parent, or when there was no fork after all."""
        if self.value.fd >= 0:
            sq_queue_fork_parent(&self.handle.queue, &self.value)


cdef dict forks_begun = {}  # thread -> the memberships for the child that it is about to fork
cdef Membership no_membership = Membership()


def _prepare_fork():
    cdef SharedQueue handle
    cdef Membership membership
    cdef list memberships = []
    forks_begun[PyThread_get_thread_ident()] = memberships
    for reference in list(handles):
        handle = reference()
        if handle is not None and handle.forks_with_us():
            membership = Membership()
            memberships.append(membership)
            membership.enter(handle)


def _end_fork_in_parent():
    cdef Membership membership
    for membership in forks_begun.pop(PyThread_get_thread_ident(), ()):
        membership.close()


cdef Membership membership_of(SharedQueue handle, list memberships):
    cdef Membership membership
    cdef Py_ssize_t i
    for i in range(len(memberships)):
        membership = memberships[i]
        if membership.handle is handle:
            return membership
    return no_membership


def _rejoin_all():
    cdef Py_ssize_t i
    cdef SharedQueue handle
    cdef list memberships = forks_begun.pop(PyThread_get_thread_ident(), [])
    # No code of others runs before all have rejoined: it would act as the parent.
    for i in range(len(handles)):
        handle = handles[i]()
        if handle is not None:
            handle.rejoin_after_fork(membership_of(handle, memberships))
    forks_begun.clear()
    for reference in list(handles):
        handle = reference()
        if handle is not None:
            handle.forget_parents_messages()


def _close_all():
    cdef SharedQueue handle
    for reference in list(handles):
        handle = reference()
        if handle is not None:
            handle.leave_at_exit()


def _close_at_exit(_token=None):
    # Children of multiprocessing leave by os._exit and run these finalizers only; they have
    # forgotten the parent's, hence once for every process.
    util.Finalize(None, _close_all, exitpriority=-100)


os.register_at_fork(
    before=_prepare_fork, after_in_parent=_end_fork_in_parent, after_in_child=_rejoin_all
)
util.register_after_fork(_rejoin_all, _close_at_exit)
_close_at_exit()
