# Included by _shared.pyx: all handles of this process, when it forks and when it ends.

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

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
    cdef int error         # and errno
    cdef SharedQueue handle

    def __cinit__(self):
        self.value.fd = -1
        self.status = SQ_SYSTEM  # for a handle that was opened after the parent had entered
        self.error = EAGAIN

    cdef void enter(self, SharedQueue handle) noexcept:
        if handle.forks_with_us():
            self.handle = handle
            handle.forking += 1
            self.status = sq_queue_fork_prepare(&handle.queue, &self.value)
            self.error = errno

    cdef void close_in_parent(self) noexcept:
        """After the fork, or when there was none after all."""
        cdef SharedQueue handle = self.handle
        if handle is None:
            return
        if self.value.fd >= 0:
            sq_queue_fork_parent(&handle.queue, &self.value)
        handle.forking -= 1
        if handle.state != OPEN:
            handle.leave_if_idle()

    def __dealloc__(self):
        if self.value.fd >= 0:
            sq_membership_close(&self.value)


# Of each thread, those for the child that it is about to fork. A stack: a finalizer may fork, too.
cdef dict forks_begun = {}
cdef Membership no_membership = Membership()


def _prepare_fork():
    cdef Membership membership
    cdef list memberships = []
    forks_begun.setdefault(PyThread_get_thread_ident(), []).append(memberships)
    for reference in list(handles):
        handle = reference()
        if handle is not None:
            membership = Membership()
            memberships.append(membership)
            membership.enter(handle)


cdef list end_fork():
    """The memberships for the child of the fork that this thread began last."""
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef list stack = forks_begun.get(me)
    if not stack:
        return []
    memberships = stack.pop()
    if not stack:
        del forks_begun[me]
    return memberships


def _end_fork_in_parent():
    cdef Membership membership
    for membership in end_fork():
        membership.close_in_parent()


cdef Membership membership_of(SharedQueue handle, list memberships):
    cdef Membership membership
    cdef Py_ssize_t i
    for i in range(len(memberships)):
        membership = memberships[i]
        if membership.handle is handle:
            return membership
    return no_membership


cdef void forget_other_forks(unsigned long me) noexcept:
    """In the child: descriptors for the children of other threads are closed already (see
    csrc/inherited.h), not those of forks that this thread had begun before."""
    cdef Membership membership
    for thread, stack in forks_begun.items():
        for memberships in stack:
            for membership in memberships:
                if thread != me:
                    membership.value.fd = -1
    forks_begun.clear()


def _rejoin_all():
    cdef Py_ssize_t i
    cdef SharedQueue handle
    cdef list memberships = end_fork()
    for i in range(len(handles)):
        handle = handles[i]()
        if handle is not None:
            handle.rejoin_after_fork(membership_of(handle, memberships))
    forget_other_forks(PyThread_get_thread_ident())
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
