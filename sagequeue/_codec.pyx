# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Objects to bytes and back: the common types by hand, everything else by pickle protocol 5.

What a tag means is part of the wire format: numbers are never reused.
"""
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE,
    PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_FromLongLong
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_GET_LENGTH
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset, strcmp

import copyreg
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

from sagequeue.codecs import custom_codec
from sagequeue.errors import CorruptSegment, DecodeError, EncodeError

cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(object item)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PyUnicode_DecodeUTF8(const char *data, Py_ssize_t size, const char *errors)
    object PyByteArray_FromStringAndSize(const char *data, Py_ssize_t size)
    int PyBUF_READ

cdef extern from "<stdlib.h>":
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    BYTES = 1
    TEXT = 2
    INTEGER = 3
    REAL = 4
    NONE = 5
    FALSE = 6
    TRUE = 7
    BYTEARRAY = 8
    NDARRAY = 9
    PICKLE = 10
    # 11 and 12 were a pickle with buffers that were all of one kind
    PICKLE_BUFFERS = 13  # a pickle whose out-of-band buffers follow it
    CUSTOM = 32

cdef enum:  # what an out-of-band buffer comes out as; part of the wire format, too
    AS_BYTEARRAY = 0
    AS_BYTES = 1
    AS_ARRAY = 2  # the memory of an array

cdef enum:
    KIND_PICKLE
    KIND_RAW
    KIND_CUSTOM

cdef enum:
    ALIGNMENT = 64
    DIMENSIONS_MAX = 12
    DTYPE_MAX = 32
    TEXT_KEPT = 256   # characters; where they are not ASCII, a text itself keeps its UTF-8
    DTYPES_KNOWN_MOST = 1000  # texts of each length have a dtype of their own
    WITHOUT_GIL = 1 << 18  # bytes from which copying is worth a release of the GIL

cdef struct ArrayHeader:
    uint8_t dimensions
    uint8_t fortran
    uint8_t dtype_length
    uint8_t reserved
    uint32_t data_offset

cdef char *UNSIGNED_BYTES = "B"
cdef object loads = pickle.loads
cdef object numpy = None
cdef dict array_reducers = {}  # filled with numpy, as soon as anybody imports it
cdef PyTypeObject *ndarray_type = NULL
cdef dict dtype_names = {}   # dtype -> itself and its name, or None where it takes a pickle
cdef dict dtypes = {}        # name -> dtype


cdef inline uint64_t aligned(uint64_t offset) noexcept nogil:
    return (offset + ALIGNMENT - 1) & ~<uint64_t>(ALIGNMENT - 1)


cdef void copy(void *target, const void *source, uint64_t size) noexcept:
    if size < WITHOUT_GIL:
        memcpy(target, source, size)
    else:
        with nogil:
            memcpy(target, source, size)


cdef bint is_ndarray(object item):
    """Exactly numpy.ndarray, without importing numpy for those who do not use it."""
    global ndarray_type
    cdef PyTypeObject *kind = Py_TYPE(item)
    if ndarray_type == NULL:
        if strcmp(kind.tp_name, b"numpy.ndarray") != 0:
            return False
        import_numpy()
        ndarray_type = <PyTypeObject *> numpy.ndarray
    return kind == ndarray_type


cdef int import_numpy() except -1:
    global numpy
    if numpy is None:
        import numpy as module
        numpy = module
        array_reducers[numpy.ndarray] = reduce_array
    return 0


cdef bytes dtype_name(object dtype):
    """The dtype's name if the name is all there is to it, else None."""
    text = dtype.str
    plain = (
        dtype.fields is None and dtype.subdtype is None and not dtype.hasobject
        and dtype.itemsize > 0 and len(text) <= DTYPE_MAX and dtype.kind in "biufcSUmMV"
    )
    if not plain:
        return None
    try:
        same = numpy.dtype(text) == dtype
    except TypeError:  # a dtype of another package, whose name means nothing to numpy
        return None
    return text.encode("ascii") if same else None


cdef bytes name_of_plain(object dtype):
    """The dtype's name, or None where only a pickle can carry its arrays."""
    cdef object same
    cdef bytes name
    # dtypes are equal whatever metadata they have, so one that is found may have some
    try:
        same, name = dtype_names[dtype]
        return name if same is dtype or dtype.metadata is None else None
    except KeyError:
        if dtype.metadata is not None:
            return None
    name = dtype_name(dtype)
    if len(dtype_names) >= DTYPES_KNOWN_MOST:
        dtype_names.clear()
    dtype_names[dtype] = (dtype, name)
    return name


cdef object dtype_named(bytes name):
    dtype = dtypes.get(name)
    if dtype is None:
        dtype = numpy.dtype(name.decode("ascii"))
        if dtype.hasobject or dtype_name(dtype) != name:
            raise ValueError(f"dtype {name!r} does not describe plain data")
        if len(dtypes) >= DTYPES_KNOWN_MOST:
            dtypes.clear()
        dtypes[name] = dtype
    return dtype


cdef int export_memory(Py_buffer *view, object owner, void *memory, size_t size, bint readonly,
                       int flags) except -1:
    """What an owner's __getbuffer__ is to do.

    PyBuffer_FillInfo would overwrite, and so leak, the reference to None that Cython puts into
    view.obj before it calls __getbuffer__.
    """
    view.obj = owner
    view.buf = memory
    view.len = <Py_ssize_t> size
    view.readonly = readonly
    view.itemsize = 1
    view.format = UNSIGNED_BYTES if flags & PyBUF_FORMAT else NULL
    view.ndim = 1
    view.shape = &view.len if flags & PyBUF_ND == PyBUF_ND else NULL
    view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    return 0


include "_block.pxi"
include "_pickling.pxi"


cdef Block block_copy(const unsigned char *data, uint64_t size):
    """Writable memory that holds the same."""
    cdef Block block = Block.of(size)
    copy(block.memory, data, size)
    return block


cdef class HeldBuffer:
    """Keeps an object's memory where it is while it is being copied."""
    cdef Py_buffer view
    cdef bint held

    @staticmethod
    cdef HeldBuffer of(object owner, int flags):
        cdef HeldBuffer self = HeldBuffer.__new__(HeldBuffer)
        PyObject_GetBuffer(owner, &self.view, flags)
        self.held = True
        return self

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef class PrivateCopy:
    """The memory of a read-only array, said to be writable: what arrives is a copy of its own."""
    cdef HeldBuffer held

    def __cinit__(self, owner):
        self.held = HeldBuffer.of(owner, PyBUF_SIMPLE)

    def __getbuffer__(self, Py_buffer *view, int flags):
        export_memory(view, self, self.held.view.buf, self.held.view.len, False, flags)


def reduce_array(array):
    """What numpy makes of an array to pickle it, but arrays that are read-only arrive writable."""
    reduced = array.__reduce_ex__(5)
    if array.flags.writeable or type(reduced[1][0]) is not pickle.PickleBuffer:
        return reduced
    function, (buffer, *others) = reduced
    return function, (pickle.PickleBuffer(PrivateCopy(buffer.raw())), *others)


cdef class Codec:
    def __cinit__(self, str name not None):
        self.name = name
        if name == "pickle" or name == "cloudpickle":
            self.kind = KIND_PICKLE
            self.by_value = name == "cloudpickle"
        elif name == "raw":
            self.kind = KIND_RAW
        else:
            self.kind = KIND_CUSTOM
            self.encode_custom, self.decode_custom = custom_codec(name)

    cdef object encode(self, object item, Encoded *encoded):
        """Describe the item's body in `encoded`; keep the returned object until it is written."""
        cdef object kind = type(item)
        encoded.second = NULL
        encoded.second_size = 0
        if kind is bytes and self.kind != KIND_CUSTOM:
            encoded.tag = BYTES
            encoded.first = PyBytes_AS_STRING(item)
            encoded.size = encoded.first_size = PyBytes_GET_SIZE(item)
            return item
        if self.kind == KIND_PICKLE:
            return self.encode_typed(item, kind, encoded)
        if self.kind == KIND_RAW:
            return self.encode_raw(item, encoded)
        try:
            body = self.encode_custom(item)
        except Exception as error:
            raise cannot_encode(item, self.name, error) from error
        if type(body) is not bytes:
            raise EncodeError(
                f"codec {self.name!r} returned {type(body).__name__}, expected bytes; "
                "correct its encode function"
            )
        return whole(body, CUSTOM, encoded)

    cdef object encode_typed(self, object item, object kind, Encoded *encoded):
        cdef Py_ssize_t size
        cdef int overflow = 0
        cdef int64_t number
        if kind is str:
            try:
                if PyUnicode_GET_LENGTH(item) > TEXT_KEPT and not PyUnicode_IS_COMPACT_ASCII(item):
                    return whole(PyUnicode_AsUTF8String(item), TEXT, encoded)
                encoded.first = PyUnicode_AsUTF8AndSize(item, &size)
            except UnicodeEncodeError:
                return self.encode_pickle(item, encoded)  # lone surrogates
            encoded.tag = TEXT
            encoded.size = encoded.first_size = size
            return item
        if kind is int:
            number = PyLong_AsLongLongAndOverflow(item, &overflow)
            if overflow == 0:
                encoded.tag = INTEGER
                memcpy(encoded.scratch, &number, 8)
                encoded.first = encoded.scratch
                encoded.size = encoded.first_size = 8
                return item
        elif kind is float:
            encoded.tag = REAL
            (<double *> encoded.scratch)[0] = item
            encoded.first = encoded.scratch
            encoded.size = encoded.first_size = 8
            return item
        elif item is None or kind is bool:
            encoded.tag = NONE if item is None else (TRUE if item is True else FALSE)
            encoded.first = encoded.scratch
            encoded.size = encoded.first_size = 0
            return item
        elif kind is bytearray or kind is memoryview:
            return self.encode_raw(item, encoded)
        elif is_ndarray(item):
            held = encode_array(item, encoded)
            return self.encode_pickle(item, encoded) if held is None else held
        return self.encode_pickle(item, encoded)

    cdef object encode_raw(self, object item, Encoded *encoded):
        """bytes-like items; a memoryview arrives as bytes, a bytearray as a bytearray."""
        cdef HeldBuffer held
        try:
            if type(item) is memoryview and not item.c_contiguous:
                return whole(bytes(item), BYTES, encoded)
            held = HeldBuffer.of(item, PyBUF_SIMPLE)
        except Exception as error:
            raise cannot_encode(item, self.name, error) from error
        encoded.tag = BYTEARRAY if type(item) is bytearray else BYTES
        encoded.first = held.view.buf
        encoded.size = encoded.first_size = held.view.len
        return held

    cdef object encode_pickle(self, object item, Encoded *encoded):
        cdef Pickling pickling = self.pickling
        cdef list views = None
        cdef bytes body
        # Taken, not shared: pickling runs any code, which may put to the queue too or let another
        # thread do so. It is put back only when all went well: what failed would keep the item.
        self.pickling = None
        if pickling is None:
            pickling = Pickling(self.by_value)
        try:
            body = pickling.run(item)
            if pickling.buffers:
                views = [buffer.raw() for buffer in pickling.buffers]
        except Exception as error:
            raise cannot_encode(item, self.name, error) from error
        if pickling.forget(PyBytes_GET_SIZE(body)):
            self.pickling = pickling
        if views is None:
            return whole(body, PICKLE, encoded)
        return with_buffers(body, views, encoded)

    cdef bint has_arrays(self):
        return self.kind == KIND_PICKLE

    cdef object decode(self, uint8_t tag, const unsigned char *data, uint64_t size, object source):
        """The object a body stands for. Raises DecodeError when it stands for none.

        Arrays and buffers of a pickle are views of `source`, which exports the body of a lease,
        where it is given; else they are copies, and those of arrays can be written.
        """
        if self.kind == KIND_PICKLE:
            return decode_typed(tag, data, size, source, self.name)
        if self.kind == KIND_RAW and tag == BYTES:
            return PyBytes_FromStringAndSize(<const char *> data, size)
        if self.kind == KIND_RAW and tag == BYTEARRAY:
            return PyByteArray_FromStringAndSize(<const char *> data, size)
        if self.kind != KIND_CUSTOM or tag != CUSTOM:
            # another codec's tag is never honoured: it could ask for a pickle to be loaded
            raise CorruptSegment(f"tag {tag} is not one of codec {self.name!r}")
        body = PyBytes_FromStringAndSize(<const char *> data, size)
        try:
            return self.decode_custom(body)
        except Exception as error:
            raise cannot_decode(self.name, error, source) from error


cdef object cannot_encode(object item, str codec, object error):
    return EncodeError(
        f"codec {codec!r} cannot encode a {type(item).__qualname__}: {error}; nothing was put. "
        "Put something it can encode, or choose another codec for the queue"
    )


cdef object cannot_decode(str codec, object error, object source, bytes data=None,
                          tuple buffers=()):
    if source is None:
        outcome = "it is consumed"
    else:
        outcome = (
            "it stays in the queue and is delivered again; "
            "lease.release() or lease.reject(requeue=False) drops it"
        )
    return DecodeError(
        f"codec {codec!r} cannot decode a message: {error!r}; {outcome}", data, buffers
    )


cdef object whole(bytes body, uint8_t tag, Encoded *encoded):
    encoded.tag = tag
    encoded.first = PyBytes_AS_STRING(body)
    encoded.size = encoded.first_size = PyBytes_GET_SIZE(body)
    return body


cdef object describe_array(object shape, object dtype, bint fortran, Encoded *encoded):
    """Write an array's header to `encoded`; False where only a pickle can carry the array."""
    cdef ArrayHeader header
    cdef int64_t extent
    cdef bytes name
    cdef uint64_t at = sizeof(header)
    cdef uint64_t size = dtype.itemsize
    import_numpy()
    name = name_of_plain(dtype)
    if name is None or len(shape) > DIMENSIONS_MAX:
        return False
    memset(&header, 0, sizeof(header))
    header.dimensions = <uint8_t> len(shape)
    header.fortran = fortran
    header.dtype_length = <uint8_t> PyBytes_GET_SIZE(name)
    for extent in shape:
        memcpy(encoded.scratch + at, &extent, 8)
        at += 8
        size *= <uint64_t> extent
    memcpy(encoded.scratch + at, PyBytes_AS_STRING(name), header.dtype_length)
    at += header.dtype_length
    header.data_offset = <uint32_t> aligned(at)
    memcpy(encoded.scratch, &header, sizeof(header))
    encoded.tag = NDARRAY
    encoded.first = encoded.scratch
    encoded.first_size = at
    encoded.second = NULL
    encoded.second_offset = header.data_offset
    encoded.second_size = size
    encoded.size = header.data_offset + size
    return True


cdef object array_over(object source, const Encoded *encoded, object shape, object dtype,
                       bint fortran):
    """The array that `encoded` describes, in the memory of its body, which `source` exports."""
    return numpy.ndarray(
        shape, dtype, buffer=source, offset=encoded.second_offset, order="F" if fortran else "C"
    )


cdef object encode_array(object array, Encoded *encoded):
    """None where only a pickle can carry the array."""
    cdef HeldBuffer held
    flags = array.flags
    if not describe_array(array.shape, array.dtype, not flags.c_contiguous and flags.f_contiguous,
                          encoded):
        return None
    if not (flags.c_contiguous or flags.f_contiguous):
        array = numpy.ascontiguousarray(array)
        flags = array.flags
    if array.dtype.kind in "mM":
        array = array.view("i8")  # the buffer protocol has no dates
    held = HeldBuffer.of(array, PyBUF_ANY_CONTIGUOUS)
    encoded.second = held.view.buf
    return held


cdef object with_buffers(bytes body, list views, Encoded *encoded):
    """u32 count, u32 0, u64 pickle size; per buffer u64 size << 2 | what it comes out as; the
    pickle; then each buffer at the next multiple of ALIGNMENT."""
    cdef bytearray table = bytearray(16 + 8 * len(views))
    cdef unsigned char *at = <unsigned char *> PyByteArray_AS_STRING(table)
    cdef uint64_t number = PyBytes_GET_SIZE(body)
    cdef Py_ssize_t i
    (<uint32_t *> at)[0] = <uint32_t> len(views)
    memcpy(at + 8, &number, 8)
    cdef uint64_t total = len(table) + len(body)
    cdef list held = []
    for i, view in enumerate(views):
        if is_ndarray(view.obj) or isinstance(view.obj, PrivateCopy):
            number = AS_ARRAY
        else:
            number = AS_BYTES if view.readonly else AS_BYTEARRAY
        number |= (<uint64_t> view.nbytes) << 2
        memcpy(at + 16 + 8 * i, &number, 8)
        total = aligned(total) + <uint64_t> view.nbytes
        held.append(HeldBuffer.of(view, PyBUF_SIMPLE))
    head = bytes(table) + body
    encoded.tag = PICKLE_BUFFERS
    encoded.first = PyBytes_AS_STRING(head)
    encoded.first_size = PyBytes_GET_SIZE(head)
    encoded.size = total
    return (head, held)


cdef int write_body(const Encoded *encoded, object kept, unsigned char *target) except -1:
    """Write an encoded body of encoded.size bytes to target."""
    cdef HeldBuffer held
    cdef uint64_t at
    copy(target, encoded.first, encoded.first_size)
    if encoded.second != NULL:
        copy(target + encoded.second_offset, encoded.second, encoded.second_size)
    elif encoded.tag == PICKLE_BUFFERS:
        at = encoded.first_size
        for held in kept[1]:
            at = aligned(at)
            copy(target + at, held.view.buf, held.view.len)
            at += held.view.len
    return 0


cdef object decode_typed(uint8_t tag, const unsigned char *data, uint64_t size, object source,
                         str codec):
    if tag == BYTES:
        return PyBytes_FromStringAndSize(<const char *> data, size)
    if tag == PICKLE:
        return decode_pickle(data, size, None, source, codec, data, size)
    if tag == NDARRAY:
        return decode_array(data, size, source)
    if tag == TEXT:
        try:
            return PyUnicode_DecodeUTF8(<const char *> data, size, NULL)
        except UnicodeDecodeError as error:
            raise CorruptSegment(f"a text message is not UTF-8: {error}") from error
    if tag == INTEGER and size == 8:
        return PyLong_FromLongLong((<int64_t *> data)[0])
    if tag == REAL and size == 8:
        return (<double *> data)[0]
    if tag == NONE and size == 0:
        return None
    if (tag == TRUE or tag == FALSE) and size == 0:
        return tag == TRUE
    if tag == BYTEARRAY:
        return PyByteArray_FromStringAndSize(<const char *> data, size)
    if tag == PICKLE_BUFFERS:
        return decode_with_buffers(data, size, source, codec)
    raise CorruptSegment(f"a message has tag {tag} and {size} bytes, which no codec writes")


cdef object decode_pickle(const unsigned char *data, uint64_t size, list buffers, object source,
                          str codec, const unsigned char *message, uint64_t message_size):
    """The object of a pickle in a message, behind which its buffers lie if it has any."""
    cdef tuple copies = ()
    try:
        if size < WITHOUT_GIL:
            body = PyBytes_FromStringAndSize(<const char *> data, size)
        else:
            body = PyMemoryView_FromMemory(<char *> data, size, PyBUF_READ)
        if buffers is None:
            return loads(body)
        return loads(body, buffers=buffers)
    except Exception as error:
        if buffers is not None:
            copies = copy_buffers(message, message_size, len(buffers), data - message + size)
        raise cannot_decode(
            codec, error, source, PyBytes_FromStringAndSize(<const char *> data, size), copies
        ) from error


cdef uint64_t buffer_length(uint64_t number, uint64_t at, uint64_t size) except? -1:
    """The length of a buffer whose table entry is given, if a message of `size` bytes holds it."""
    if at > size or number >> 2 > size - at:
        raise CorruptSegment("a message with buffers is too short for them")
    return number >> 2


cdef tuple copy_buffers(const unsigned char *data, uint64_t size, uint32_t count, uint64_t at):
    """The buffers as they travelled, which unpickling may have written to since. Another process
    may have written to the table: it is not trusted for having been checked."""
    cdef uint64_t length
    cdef uint32_t i
    cdef list copies = []
    for i in range(count):
        at = aligned(at)
        length = buffer_length((<const uint64_t *> data)[2 + i], at, size)
        copies.append(PyBytes_FromStringAndSize(<const char *> data + at, length))
        at += length
    return tuple(copies)


cdef object decode_with_buffers(const unsigned char *data, uint64_t size, object source,
                                str codec):
    cdef uint32_t count, i
    cdef uint64_t pickle_size, number, length, at
    cdef const char *start
    cdef list buffers = []
    if size < 16:
        raise CorruptSegment("a message with buffers is too short for its table")
    count = (<const uint32_t *> data)[0]
    pickle_size = (<const uint64_t *> data)[1]
    at = 16 + 8 * <uint64_t> count
    if at > size or pickle_size > size - at:
        raise CorruptSegment("a message with buffers is too short for its pickle")
    cdef const unsigned char *body = data + at
    at += pickle_size
    for i in range(count):
        number = (<const uint64_t *> data)[2 + i]
        at = aligned(at)
        length = buffer_length(number, at, size)
        start = <const char *> data + at
        if source is not None:
            buffers.append(memoryview(source)[at:at + length])
        elif number & 3 == AS_BYTES:
            buffers.append(PyBytes_FromStringAndSize(start, length))
        elif number & 3 == AS_BYTEARRAY:
            buffers.append(PyByteArray_FromStringAndSize(start, length))
        elif length < BLOCK_LEAST:
            buffers.append(memoryview(PyByteArray_FromStringAndSize(start, length)))
        else:
            buffers.append(memoryview(block_copy(data + at, length)))
        at += length
    return decode_pickle(body, pickle_size, buffers, source, codec, data, size)


cdef object decode_array(const unsigned char *data, uint64_t size, object source):
    cdef ArrayHeader header
    cdef int64_t extent
    cdef HeldBuffer held
    cdef list shape = []
    cdef uint64_t at = sizeof(header)
    cdef uint8_t i
    if size < sizeof(header):
        raise CorruptSegment("an array message is too short for its header")
    memcpy(&header, data, sizeof(header))
    if header.dimensions > DIMENSIONS_MAX or header.dtype_length > DTYPE_MAX:
        raise CorruptSegment("an array message's header is out of range")
    if at + 8 * header.dimensions + header.dtype_length > size or header.data_offset > size:
        raise CorruptSegment("an array message is too short for its header")
    for i in range(header.dimensions):
        memcpy(&extent, data + at, 8)
        if extent < 0:
            raise CorruptSegment(f"an array message has an extent of {extent}")
        shape.append(extent)
        at += 8
    name = PyBytes_FromStringAndSize(<const char *> data + at, header.dtype_length)
    import_numpy()
    try:
        dtype = dtype_named(name)
    except (TypeError, ValueError) as error:
        raise CorruptSegment(f"an array message names no plain dtype: {error}") from error
    elements = 1
    for extent in shape:
        elements *= extent
    if elements * dtype.itemsize != size - header.data_offset:
        raise CorruptSegment(f"an array message has {size} bytes, but shape {shape} of {dtype}")
    order = "F" if header.fortran else "C"
    cdef uint64_t offset = header.data_offset
    if source is None and size - offset >= BLOCK_LEAST:
        source = block_copy(data + offset, size - offset)
        offset = 0
    try:
        if source is not None:
            return numpy.ndarray(shape, dtype, buffer=source, offset=offset, order=order)
        array = numpy.empty(shape, dtype, order)
    except ValueError as error:  # no elements, but such extents as no array has
        raise CorruptSegment(f"an array message has shape {shape}: {error}") from error
    if size > header.data_offset:
        held = HeldBuffer.of(
            array.view("i8") if dtype.kind in "mM" else array, PyBUF_ANY_CONTIGUOUS | PyBUF_WRITABLE
        )
        copy(held.view.buf, data + header.data_offset, size - header.data_offset)
    return array
