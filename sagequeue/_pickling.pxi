# Included by _codec.pyx: picklers that are used again, which costs less than ``pickle.dumps`` does.

cdef enum:
    SMALL_PICKLE = 1024     # bytes; a pickler that has grown for less is kept
    LARGE_PICKLE = 1 << 16

cdef dict modules = sys.modules
cdef Reducers plain_reducers = None
cdef Reducers by_value_reducers = None


cdef Reducers get_reducers(bint by_value):
    global plain_reducers, by_value_reducers
    if by_value:
        if by_value_reducers is None:
            by_value_reducers = Reducers(True)
        return by_value_reducers
    if plain_reducers is None:
        plain_reducers = Reducers(False)
    return plain_reducers


cdef class Reducers:
    """How :mod:`copyreg` and :mod:`multiprocessing` reduce objects to what can be pickled.

    With those of multiprocessing (connections, sockets, ...) as ``multiprocessing.Queue`` has
    them: pickled as plain objects they would lose their descriptor. A C pickler looks into one
    dict much faster than into a chain of them, so there is one, which is compared with what it was
    made of before each pickle.

    Args:
        by_value: whether the picklers are cloudpickle's, which has reducers of its own.
    """

    def __cinit__(self, bint by_value):
        base, tables = pickle.Pickler, (copyreg.dispatch_table,)
        if by_value:
            import cloudpickle

            base, tables = cloudpickle.Pickler, cloudpickle.Pickler.dispatch_table.maps[::-1]
        self.tables = (array_reducers, *tables, ForkingPickler._extra_reducers)
        self.known = []
        self.merged = {}
        # of the class: a pickler looks for it when it is made, and no more
        self.make_pickler = type("Pickler", (base,), {"dispatch_table": self.merged})

    cdef bint are_known(self) noexcept:
        """Whether all reducers are still those that were merged."""
        cdef PyObject *kind
        cdef PyObject *reducer
        cdef Py_ssize_t at
        cdef Py_ssize_t i = 0
        cdef list known = self.known
        cdef Py_ssize_t count = PyList_GET_SIZE(known)
        for table in self.tables:
            at = 0
            while PyDict_Next(table, &at, &kind, &reducer):
                if (i >= count or PyList_GET_ITEM(known, i) != kind
                        or PyList_GET_ITEM(known, i + 1) != reducer):
                    return False
                i += 2
        return i == count

    cdef int refresh(self) except -1:
        if numpy is None and "numpy" in modules:
            import_numpy()
        if not self.are_known():
            self.merge()
        return 0

    cdef int merge(self) except -1:
        cdef list known = []
        cdef dict merged = {}
        for table in self.tables:
            for kind, reducer in table.items():
                known += (kind, reducer)
                merged[kind] = reducer  # of two tables, the later one's
        self.merged.clear()
        self.merged.update(merged)
        self.known = known
        return 0


cdef class Sink:
    """The file a pickler writes to: a list of what was written."""

    def __cinit__(self):
        self.written = []
        self.write = self.written.append


cdef class Pickling:
    """A pickler with what it writes to."""

    def __cinit__(self, bint by_value):
        self.reducers = get_reducers(by_value)
        self.sink = Sink()
        self.buffers = []
        pickler = self.reducers.make_pickler(self.sink, 5, buffer_callback=self.buffers.append)
        self.dump = pickler.dump
        self.clear_memo = pickler.clear_memo
        # what functions of one pickle share is not shared with the next
        self.globals_of_functions = pickler.globals_ref if by_value else {}

    cdef bytes run(self, object item):
        """The pickle; its out-of-band buffers are in `buffers`."""
        cdef list written = self.sink.written
        self.reducers.refresh()
        self.dump(item)
        body = written[0] if len(written) == 1 else b"".join(written)
        written.clear()
        return body

    cdef bint forget(self, Py_ssize_t size) except -1:
        """Forget the last item, whose pickle had `size` bytes. False: rather take a new pickler.

        A pickler's memo and buffer never shrink, and each time all of the memo is cleared: one that
        has grown would hold its memory, and make all small pickles that follow slow, for good.
        """
        self.largest = max(self.largest, size)
        if self.largest >= LARGE_PICKLE or self.largest >= SMALL_PICKLE and self.largest > 8 * size:
            return False
        self.clear_memo()
        if self.buffers:
            self.buffers.clear()
        if self.globals_of_functions:
            self.globals_of_functions.clear()
        return True
