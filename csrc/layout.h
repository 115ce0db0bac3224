/* The shared segment: everything two processes must agree on, and nothing else.
 *
 *   header | participants | slots | size classes | chunk descriptors | chunk data
 *
 * Positions count messages since the queue was made and never wrap; position p lives in slot
 * p mod capacity, and its turn is p / capacity. All-zero bytes are a valid empty queue, so a
 * new segment is sparse: a page costs memory when it is first used.
 */
#ifndef SQ_LAYOUT_H
#define SQ_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(__linux__)
#error "sagequeue's shared-memory core needs Linux (futex, O_TMPFILE, open file description locks)"
#endif
#if UINTPTR_MAX != UINT64_MAX
#error "sagequeue's shared-memory core needs a 64-bit platform"
#endif
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
              "atomics shared between processes must be lock-free");

#define SQ_MAGIC UINT64_C(0x3145554555514753) /* "SGQUEUE1" */
#define SQ_LAYOUT_VERSION 4u

#define SQ_PAIR 128 /* two cache lines: the adjacent-line prefetcher makes neighbours one */
#define SQ_PAGE 4096u
#define SQ_CODEC_MAX 32
#define SQ_CLASSES_MAX 34u
#define SQ_PARTICIPANTS_MAX 4096u
#define SQ_BATCH_MAX 4096u
#define SQ_CAPACITY_MIN 2u
#define SQ_CAPACITY_MAX (1u << 24)
#define SQ_SLOT_MIN 64u
#define SQ_SLOT_MAX 1024u
#define SQ_POOL_MIN (64u << 10)
#define SQ_POOL_MAX (UINT64_C(1) << 40)

/* Modes: one producer or many, one consumer or many. */
enum { SQ_SINGLE_PRODUCER = 1, SQ_SINGLE_CONSUMER = 2 };

/* A slot's sequence word: the turn it is in, and what it is in that turn. */
enum { SQ_EMPTY_SLOT = 0, SQ_COMMITTED = 1, SQ_TOMBSTONE = 2, SQ_REDELIVER = 3 };

/* Where a message's body is. */
enum { SQ_INLINE = 0, SQ_IN_CHUNK = 1 };

/* A chunk's word: its state, the participant (table index + 1) that holds it, and the producer, if
 * any, that pins it: it has a view of what it wrote, so the chunk must not be reused.
 * The word is the allocation: there is no free list that a crash could tear. */
enum {
    SQ_CHUNK_FREE = 0,
    SQ_CHUNK_OWNED = 1,    /* by a producer: being written, or queued (its slot names it) */
    SQ_CHUNK_LEASED = 2,   /* by a consumer: claimed, not yet released */
    SQ_CHUNK_RETURNED = 3, /* by nobody: claimed by one that died or gave it back */
    SQ_CHUNK_PINNED = 4,   /* by one that has views of it; its message is done with */
};

/* The first size class holds copies of messages that were claimed from their slots. Producers take
 * none of it, so a claim never waits for what only a claim could set free. */
#define SQ_COPIES 0u
#define SQ_FIRST_CLASS 1u

/* The control word: shutdown and removal flags in bits 0 to 2, the redelivery epoch above them. One
 * load tells a participant that nothing exceptional has happened. */
enum { SQ_SHUTDOWN = 1, SQ_SHUTDOWN_IMMEDIATE = 2, SQ_REMOVED = 4, SQ_EPOCH = 8 };

/* The top bit of the tail closes the queue: a reservation is a CAS on that same word, so every
 * position below the tail was reserved before the shutdown and none after it. */
#define SQ_TAIL_CLOSED (UINT64_C(1) << 63)

typedef struct sq_event {
    _Atomic uint32_t word; /* bit 0: somebody may be asleep; the rest counts wake-ups */
} sq_event;

/* Linux has at most 2^22 pids. The incarnation counts the participants that there have been, so no
 * identity comes twice; the pid is for people only. */
#define SQ_PID_BITS 22

typedef struct sq_participant {
    _Atomic uint64_t identity;    /* incarnation << SQ_PID_BITS | pid; 0: entry free */
    _Atomic uint64_t put_intent;  /* positions about to be reserved, or reserved, not committed */
    _Atomic uint64_t take_intent; /* positions about to be claimed, or claimed, not released */
    uint64_t reserved[13];
} sq_participant;
static_assert(sizeof(sq_participant) == SQ_PAIR, "one participant per cache line pair");

typedef struct sq_slot {
    _Atomic uint64_t sequence; /* turn << 2 | state */
    uint32_t length;           /* bytes of the body that are in use */
    uint8_t tag;               /* what the body means; belongs to the codec */
    uint8_t storage;
    uint16_t deliveries; /* how often a claim of it was abandoned */
    unsigned char body[];
} sq_slot;
static_assert(offsetof(sq_slot, body) == 16, "slot header");

typedef struct sq_chunk {
    _Atomic uint64_t word; /* state << 32 | pinned by << 16 | holder */
    /* Position whose slot names it, or did until it was leased, plus 1. That of a chunk that is
     * free is 0 or of a slot that was released since, so it is nobody's. */
    _Atomic uint64_t place;
    uint64_t length;   /* bytes of data in use */
    uint64_t backed;   /* bytes of data that have memory behind them */
    uint64_t external; /* 0, or the number of the segment that holds the body instead */
    uint8_t tag;
    uint8_t reserved[5];
    uint16_t deliveries;
    uint64_t spare[2];
} sq_chunk;
static_assert(sizeof(sq_chunk) == 64, "one descriptor per cache line");

typedef struct sq_class {
    uint64_t chunk_bytes; /* usable bytes of a chunk */
    uint64_t stride;      /* distance between chunks */
    uint64_t data_offset;
    uint64_t first; /* index of its first descriptor */
    uint32_t count;
    _Atomic uint32_t hint;       /* a good place to look for a free chunk; only advice */
    _Atomic uint32_t high_water; /* chunks at and above it were never used */
    uint32_t reserved0;
    uint64_t reserved[10];
} sq_class;
static_assert(sizeof(sq_class) == SQ_PAIR, "one size class per cache line pair");

typedef struct sq_header {
    /* Written once, before the segment has a name; read-only ever after. */
    uint64_t magic;
    uint32_t version;
    uint32_t mode;
    uint64_t segment_bytes;
    uint64_t maxsize; /* as asked for; 0: bounded by the capacity only */
    uint32_t capacity;
    uint32_t slot_bytes;
    uint32_t participants;
    uint32_t classes;
    uint32_t chunks;
    uint32_t recovery_ms; /* how long a waiter waits before it looks for the dead */
    uint64_t pool_bytes;
    uint64_t participants_offset;
    uint64_t slots_offset;
    uint64_t classes_offset;
    uint64_t chunks_offset;
    uint64_t birth; /* random: tells the segments of its messages from those of a namesake */
    char codec[SQ_CODEC_MAX];

    /* Read by everyone, seldom written. */
    _Alignas(SQ_PAIR) _Atomic uint64_t control; /* see SQ_EPOCH */
    _Atomic uint32_t producer;        /* single producer: participant in that role, or 0 */
    _Atomic uint32_t consumer;        /* single consumer: likewise */
    _Atomic uint32_t recoverer;       /* its pid, for people, or 0 */
    _Atomic uint64_t incarnations;    /* participants that there have been */
    _Atomic uint64_t redelivery_from; /* slots to deliver again lie in [from, to) */
    _Atomic uint64_t redelivery_to;
    _Atomic uint64_t last_recovery_ns;  /* monotonic clock, common to the machine */
    _Atomic uint64_t slots_backed;      /* bytes of the ring that have memory behind them */
    _Atomic uint64_t external_segments; /* source of numbers for them */
    _Atomic uint64_t pending_tombstone; /* position that is being made a tombstone, plus 1, or 0 */
    _Atomic uint64_t tombstones_after;  /* what `dropped` is to be when that is done */

    /* Each cursor and event on a line pair of its own: they are written by different sides. */
    _Alignas(SQ_PAIR) _Atomic uint64_t tail; /* next position to reserve, and the closed bit */
    _Alignas(SQ_PAIR) _Atomic uint64_t head; /* next position to claim */
    _Alignas(SQ_PAIR) sq_event not_empty;
    _Alignas(SQ_PAIR) sq_event not_full;
    sq_event chunk_free;
    _Alignas(SQ_PAIR) sq_event all_done;
    _Atomic uint64_t done;    /* answers by task_done */
    _Atomic uint64_t dropped; /* positions that never carried a message: tombstones */
    _Atomic uint64_t deaths;  /* participants found dead */
    _Alignas(SQ_PAIR) unsigned char end[];
} sq_header;
static_assert(offsetof(sq_header, control) == 2 * SQ_PAIR, "shared words after the constants");
static_assert(sizeof(sq_header) == 8 * SQ_PAIR, "header");

#endif
