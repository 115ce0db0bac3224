# Included by _codec.pyx: memory for the large parts of items, used again.
#
# The C library gives large blocks back to the system, which hands out pages of zeros for the next:
# for batches of arrays that costs more than copying them. What an array has let go of is kept here
# instead, as much as a batch of them needs.

cdef enum:
    BLOCK_LEAST = 1 << 15      # bytes; below, the C library keeps its memory itself
    BLOCKS_KEPT_MOST = 256
    BLOCK_BYTES_KEPT = 1 << 26

cdef struct FreeBlock:
    void *memory
    size_t size

# From the oldest to the newest. The GIL guards them.
cdef FreeBlock[BLOCKS_KEPT_MOST] kept_blocks
cdef Py_ssize_t blocks_kept = 0
cdef size_t block_bytes_kept = 0


cdef size_t block_size(size_t size) noexcept:
    """Rounded up by an eighth at most, so that arrays of similar size can share."""
    cdef size_t step = 4096
    while step * 16 <= size:
        step *= 2
    return (size + step - 1) // step * step


cdef void *take_block(Py_ssize_t i) noexcept:
    global blocks_kept, block_bytes_kept
    cdef void *memory = kept_blocks[i].memory
    block_bytes_kept -= kept_blocks[i].size
    blocks_kept -= 1
    memmove(&kept_blocks[i], &kept_blocks[i + 1], (blocks_kept - i) * sizeof(FreeBlock))
    return memory


cdef void keep_block(void *memory, size_t size) noexcept:
    """Keep a block for the next who needs one; the oldest make room."""
    global blocks_kept, block_bytes_kept
    if size > BLOCK_BYTES_KEPT:
        free(memory)
        return
    while blocks_kept == BLOCKS_KEPT_MOST or block_bytes_kept + size > BLOCK_BYTES_KEPT:
        free(take_block(0))
    kept_blocks[blocks_kept] = FreeBlock(memory, size)
    blocks_kept += 1
    block_bytes_kept += size


cdef class Block:
    """Writable memory of so many bytes, aligned as arrays in a queue are."""
    cdef void *memory
    cdef size_t size
    cdef Py_ssize_t length

    @staticmethod
    cdef Block allocate(size_t length):
        cdef Block self = Block.__new__(Block)
        cdef Py_ssize_t i
        self.length = length
        self.size = block_size(length)
        for i in range(blocks_kept - 1, -1, -1):  # the newest is still in the cache
            if kept_blocks[i].size == self.size:
                self.memory = take_block(i)
                return self
        self.memory = aligned_alloc(ALIGNMENT, self.size)
        if self.memory == NULL:
            raise MemoryError()
        return self

    def __getbuffer__(self, Py_buffer *view, int flags):
        export_memory(view, self, self.memory, self.length, False, flags)

    def __dealloc__(self):
        if self.memory != NULL:
            keep_block(self.memory, self.size)
