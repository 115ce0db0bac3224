/* A live queue whose bytes another process scribbles on: between any two operations words of the
 * segment change, and in some runs a second thread goes on scribbling during them. */
#include "scribble.h"

#include <pthread.h>
#include <stdatomic.h>

static sq_queue queues[4];
static unsigned char *pristine[4];
static size_t restored; /* bytes that are put back before each run */
static char name[64];
static uint32_t runs;

/* The header's constants are copied out when a segment is mapped and not read again; of the rest,
 * what is scribbled on lies below the data of chunks, whose bytes are the codec's business. */
static size_t scribbled_bytes(const sq_queue *queue) {
    return queue->segment.data_offset[0];
}

static void *scribble_on(void *argument) {
    struct {
        _Atomic bool stop;
        sq_queue *queue;
        uint64_t seed;
    } *job = argument;
    uint64_t random = job->seed | 1;
    size_t words = scribbled_bytes(job->queue) / 8;
    for (uint32_t i = 0; i < 200 && !atomic_load(&job->stop); i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        _Atomic uint64_t *word = (_Atomic uint64_t *)job->queue->segment.base + random % words;
        uint64_t value = random >> (random % 61);
        atomic_store_explicit(word, value, memory_order_relaxed);
    }
    return NULL;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    for (uint32_t mode = 0; mode < 4; mode++) {
        sq_options options = tiny_queue(mode);
        snprintf(name, sizeof name, "sagequeue-fuzz-%d-%u", (int)getpid(), mode);
        if (sq_queue_create(&queues[mode], name, &options) != SQ_OK) {
            abort();
        }
        sq_segment_unlink(name); /* nothing is left behind, however this ends */
        sq_segment_back(&queues[mode].segment, 0, queues[mode].segment.bytes);
        restored = scribbled_bytes(&queues[mode]);
        pristine[mode] = malloc(restored);
        memcpy(pristine[mode], queues[mode].segment.base, restored);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint8_t mode = next_byte(&in);
    sq_queue *queue = &queues[mode & 3];
    sq_queue handle = *queue;
    memcpy(queue->segment.base, pristine[mode & 3], scribbled_bytes(queue));
    handle.backed = UINT64_MAX;
    struct {
        _Atomic bool stop;
        sq_queue *queue;
        uint64_t seed;
    } job = {.queue = &handle, .seed = next_word(&in, 4)};
    pthread_t scribbler;
    /* Rarely, because a thread is expensive; and not chosen by the input, or its random effects
     * would look like new coverage and mislead the fuzzer. */
    bool beside = ++runs % 256 == 0;
    if (beside && pthread_create(&scribbler, NULL, scribble_on, &job) != 0) {
        abort();
    }
    while (in.left > 0) {
        uint8_t what = next_byte(&in);
        if (what & 0x80) {
            /* a word of the header's shared part, of the table, of a slot, of a class, of a chunk
             */
            size_t from = offsetof(sq_header, control), bytes = scribbled_bytes(&handle) - from;
            size_t at = from + next_word(&in, 2) * 4 % (bytes - 8);
            uint64_t value = next_word(&in, 1 + (what & 7));
            memcpy(handle.segment.base + at, &value, (what & 7) + 1);
        } else {
            operate(&handle, what, &in);
        }
    }
    if (beside) {
        atomic_store(&job.stop, true);
        pthread_join(scribbler, NULL);
    }
    return 0;
}
