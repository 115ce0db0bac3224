from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    SCRATCH = 192


cdef struct Encoded:
    # A body in up to two parts, and behind them the out-of-band buffers of a pickle. The parts
    # live in `scratch` or in the object that encode() returned, which the caller keeps.
    uint8_t tag
    uint64_t size
    const void *first
    uint64_t first_size
    const void *second
    uint64_t second_offset
    uint64_t second_size
    unsigned char scratch[SCRATCH]


cdef class Reducers:
    cdef object make_pickler
    cdef tuple tables
    cdef list known
    cdef dict merged
    cdef bint are_known(self) noexcept
    cdef int refresh(self) except -1
    cdef int merge(self) except -1


cdef class Sink:
    cdef readonly object write
    cdef list written


cdef class Pickling:
    cdef Reducers reducers
    cdef Sink sink
    cdef object dump
    cdef object clear_memo
    cdef dict globals_of_functions
    cdef list buffers
    cdef Py_ssize_t largest
    cdef bytes run(self, object item)
    cdef bint forget(self, Py_ssize_t size) except -1


cdef class Codec:
    cdef readonly str name
    cdef int kind
    cdef bint by_value
    cdef Pickling pickling
    cdef object encode_custom
    cdef object decode_custom
    cdef object encode(self, object item, Encoded *encoded)
    cdef object encode_typed(self, object item, object kind, Encoded *encoded)
    cdef object encode_raw(self, object item, Encoded *encoded)
    cdef object encode_pickle(self, object item, Encoded *encoded)
    cdef object decode(self, uint8_t tag, const unsigned char *data, uint64_t size, object source)
    cdef bint has_arrays(self)


cdef object describe_array(object shape, object dtype, bint fortran, Encoded *encoded)
cdef object array_over(object source, const Encoded *encoded, object shape, object dtype,
                       bint fortran)
cdef int write_body(const Encoded *encoded, object kept, unsigned char *target) except -1

