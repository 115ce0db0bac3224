/* What of the ring and the pool is in use, as it looks at this moment. */
#ifndef SQ_USAGE_H
#define SQ_USAGE_H

#include "handle.h"

typedef struct sq_usage {
    uint64_t chunk_bytes_held;
    uint32_t slots_held;  /* claimed and not released */
    uint32_t chunks_held; /* being written, queued, leased or viewed */
    uint32_t leases;
} sq_usage;

sq_usage sq_usage_of(const sq_queue *queue);

#endif
