/* Attaching to any file under a queue's name: the file is the input, or a queue's file with
 * words of it replaced. What is accepted is used. */
#include "scribble.h"

#include <sys/stat.h>

static unsigned char *valid;
static size_t valid_bytes, metadata_bytes;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    sq_segment segment;
    sq_options options = tiny_queue(0);
    if (sq_segment_create(&segment, &options) != SQ_OK) {
        abort();
    }
    valid_bytes = segment.bytes;
    metadata_bytes = segment.data_offset[0];
    valid = malloc(metadata_bytes);
    memcpy(valid, segment.base, metadata_bytes);
    sq_segment_unmap(&segment);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint8_t way = next_byte(&in);
    int fd = memfd_create("sagequeue-fuzz", MFD_CLOEXEC);
    if (fd < 0 || fchmod(fd, 0600) != 0) {
        abort();
    }
    if (way & 1) {
        if (write(fd, in.data, in.left) < 0) {
            abort();
        }
    } else {
        uint64_t replaced = next_byte(&in) % 8;
        if (write(fd, valid, metadata_bytes) < 0 ||
            ftruncate(fd, (off_t)(way & 2 ? valid_bytes : next_word(&in, 3))) != 0) {
            abort();
        }
        for (uint64_t i = 0; i < replaced; i++) {
            size_t at = next_word(&in, way & 4 ? 1 : 2) % metadata_bytes;
            uint64_t value = next_word(&in, 1 + next_byte(&in) % 8);
            if (way & 2 && pwrite(fd, &value, 8, (off_t)at) < 0) {
                abort();
            }
        }
    }
    sq_queue queue = {.file_name = "sagequeue-fuzz"};
    if (sq_segment_map(&queue.segment, fd, SQ_READ_WRITE) == SQ_OK) {
        queue.header = sq_segment_header(&queue.segment);
        queue.single_producer = queue.segment.mode & SQ_SINGLE_PRODUCER;
        queue.single_consumer = queue.segment.mode & SQ_SINGLE_CONSUMER;
        queue.bounded = queue.segment.maxsize != 0;
        queue.limit = queue.segment.maxsize ? queue.segment.maxsize : queue.segment.capacity;
        queue.turn_shift = (uint64_t)__builtin_ctz(queue.segment.capacity);
        queue.self = sq_segment_participant(&queue.segment, 0);
        queue.id = 1;
        for (uint32_t i = 0; i < 6 && in.left > 0; i++) {
            operate(&queue, next_byte(&in), &in);
        }
        sq_segment_unmap(&queue.segment);
    }
    return 0;
}
