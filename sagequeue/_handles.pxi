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
cdef class Invitation:
    """What keeps a queue for a child that is about to be forked, until it takes part."""
    cdef int fd      # -1: there is none
    cdef int error   # and this is why
    cdef SharedQueue handle

    def __cinit__(self):
        self.fd = -1
        self.error = EAGAIN  # for a handle that was opened in the middle of the fork

    cdef void make(self, SharedQueue handle) noexcept:
        if handle.forks_with_us():
            self.handle = handle
            handle.forking += 1
            self.fd = sq_queue_invite(&handle.queue, True)
            self.error = errno

    cdef int take(self) noexcept:
        fd, self.fd = self.fd, -1
        return fd

    cdef void end_in_parent(self) noexcept:
        """After the fork, or when there was none after all."""
        cdef SharedQueue handle = self.handle
        if handle is None:
            return
        if self.fd >= 0:
            sq_queue_end_invitation(&handle.queue, self.take())
        handle.forking -= 1
        if handle.state != OPEN:
            handle.leave_if_idle()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)


# Of each thread, those for the child that it is about to fork. A stack: a finalizer may fork, too.
cdef dict forks_begun = {}
cdef Invitation no_invitation = Invitation()


def _prepare_fork():
    cdef Invitation invitation
    cdef list invitations = []
    forks_begun.setdefault(PyThread_get_thread_ident(), []).append(invitations)
    for reference in list(handles):
        handle = reference()
        if handle is not None:
            invitation = Invitation()
            invitations.append(invitation)
            invitation.make(handle)


cdef list end_fork():
    """The invitations for the child of the fork that this thread began last."""
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef list stack = forks_begun.get(me)
    if not stack:
        return []
    invitations = stack.pop()
    if not stack:
        del forks_begun[me]
    return invitations


def _end_fork_in_parent():
    cdef Invitation invitation
    for invitation in end_fork():
        invitation.end_in_parent()


cdef Invitation invitation_of(SharedQueue handle, list invitations):
    cdef Invitation invitation
    cdef Py_ssize_t i
    for i in range(len(invitations)):
        invitation = invitations[i]
        if invitation.handle is handle:
            return invitation
    return no_invitation


cdef void forget_other_forks(unsigned long me) noexcept:
    """In the child: descriptors for the children of other threads are closed already (see
    csrc/inherited.h), not those of forks that this thread had begun before."""
    cdef Invitation invitation
    for thread, stack in forks_begun.items():
        for invitations in stack:
            for invitation in invitations:
                if thread != me:
                    invitation.fd = -1
    forks_begun.clear()


def _rejoin_all():
    cdef Py_ssize_t i
    cdef SharedQueue handle
    cdef list invitations = end_fork()
    for i in range(len(handles)):
        handle = handles[i]()
        if handle is not None:
            handle.rejoin_after_fork(invitation_of(handle, invitations))
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
