# Included by _shared.pyx: all handles of this process, when it forks and when it ends.

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()

cdef list handles = []  # weak references in the order of opening: an index needs no allocation
cdef Py_ssize_t handles_to_tidy = 16


cdef int register(SharedQueue handle) except -1:
    """Add a handle to the list of this process. References to handles that are gone are removed
    when the list has doubled."""
    global handles_to_tidy
    if handle.registered:
        return 0
    if len(handles) >= handles_to_tidy:
        handles[:] = [reference for reference in handles if reference() is not None]
        handles_to_tidy = max(16, 2 * len(handles))
    handles.append(weakref.ref(handle))
    handle.registered = True
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
        self.handle = handle
        handle.forking += 1
        if handle.forks_with_us():
            self.fd = sq_queue_invite(&handle.queue, True)
            self.error = errno

    cdef int take(self) noexcept:
        fd, self.fd = self.fd, -1
        return fd

    cdef void end_in_parent(self) noexcept:
        """After the fork, or when there was none after all."""
        cdef SharedQueue handle = self.handle
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
    cdef SharedQueue handle
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
    cdef Py_ssize_t at = 0
    cdef SharedQueue handle
    cdef Invitation invitation
    cdef list invitations = end_fork()
    for i in range(len(handles)):
        handle = handles[i]()
        if handle is None:
            continue
        # they are in the order of the handles; one opened in the middle of the fork has none
        invitation = invitations[at] if at < len(invitations) else no_invitation
        if invitation.handle is handle:
            at += 1
        else:
            invitation = no_invitation
        handle.rejoin_after_fork(invitation)
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
