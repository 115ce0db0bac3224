/* The crash-safety protocol of the ring (csrc/ring.c, recovery.c, pool.c), for the spin model checker.
 *
 *   make -C csrc/model          checks every configuration below, exhaustively
 *
 * Two producers and two consumers share a ring with many producers and many consumers. Each write,
 * CAS or read of shared memory that others can tell apart is a step of its own, and between any two
 * steps a participant may be killed (process Death), up to DEATHS of them. Whoever waits recovers the
 * dead. The last consumer stays alive, drains the queue and looks whether all is well:
 *
 *   nothing committed is lost    every message whose slot was committed has been acknowledged
 *   nothing is torn              both halves of a body that is read belong to one message
 *   nothing comes twice          unless the later delivery is flagged
 *   no slot is stuck             at the end all slots are empty in their turn, all chunks are free, and
 *                                no table entry is held by the dead; before, nobody waits for ever
 *                                (an invalid end state)
 *
 * What mirrors what (here: in C):  Producer: sq_put;  take: take_as_one_of_many;  read_and_release:
 * lease_copy, release_slots;  again: take_returned (slot_again: find_returned_slots, claim_returned,
 * read_slot;  chunk_again: find_returned_chunks, claim_returned);  Consumer: sq_claim, sq_take,
 * sq_lease_return, sq_chunk_release;  recover: sq_try_recover, become_recoverer, settle_the_dead; and
 * by their own names settle_participant, settle_chunk, bury_reservations, return_claims,
 * covered_by_the_living, announce_returned.
 *
 * With BODIES read_and_release is lease, release_slots, and Producer calls sq_chunk_acquire.
 *
 * Left out: memory orders (ThreadSanitizer and the comments in C answer for them; here memory is
 * sequentially consistent), batches (a batch is as many positions, each settled for itself), terms of
 * the recoverer (entries are not taken again here), counting of tombstones, waking.
 *
 * Configurations:  CLAIM  consumers claim, and acknowledge later; without, they get
 *                  BODIES messages lie in chunks of the pool, which consumers lease from their slots
 *                  REJECT a leased message may be given back
 *                  FIRST, SECOND  messages of the producers
 *                  DEATHS how many may die, MORTAL which of the participants 0 to 2, as bits
 * Mutations that must be found out, to show that the model can fail:
 *   BUG_EARLY_WITHDRAWAL, BUG_LIVING_IGNORED, BUG_LATE_LEASE, BUG_SILENT_RETURN, BUG_SLOT_IGNORED
 */
#ifndef FIRST
#define FIRST 1
#endif
#ifndef SECOND
#define SECOND 1
#endif
#ifndef DEATHS
#define DEATHS 2
#endif

#ifndef MORTAL
#define MORTAL 7
#endif
#define mortal(p) ((MORTAL >> (p)) & 1)

#define CAPACITY 2
#define MESSAGES (FIRST + SECOND)
#define CHUNKS 2 /* CLAIM: for copies, one a consumer; BODIES: the pool */
#if defined(CLAIM) || defined(BODIES)
#define LEASES
#endif
#define PARTICIPANTS 4
#define SURVIVOR 3

#define EMPTY 0
#define COMMITTED 1
#define TOMBSTONE 2
#define REDELIVER 3
#define sequence(position, state) ((position) / CAPACITY * 4 + (state))
#define slot(position) slots[(position) % CAPACITY]

#define NOWHERE 255

#define FREE 0
#define OWNED 1
#define LEASED 2
#define RETURNED 3

/* With BODIES a slot holds the number of its chunk, plus 1, in place of the first half. */
typedef Slot { byte sequence; byte half; byte other_half; byte deliveries };
typedef Chunk { byte state; byte holder; byte place; byte half; byte other_half; bool flagged };

Slot slots[CAPACITY];
Chunk chunks[CHUNKS];
byte tail, head, recoverer;
bool news[PARTICIPANTS];  /* the epoch in `news` is not the one this participant has seen */
bool fresh[PARTICIPANTS]; /* nor the one that it has read */
bool alive[PARTICIPANTS] = true;
bool entry[PARTICIPANTS] = true; /* identity != 0 */
byte put_intent[PARTICIPANTS];   /* position + 1 */
byte take_intent[PARTICIPANTS];
bool ended[PARTICIPANTS];

/* what an observer knows, and no participant */
bool committed[MESSAGES + 1], acknowledged[MESSAGES + 1], delivered[MESSAGES + 1];

#define gone(p) (ended[p] || !alive[p])
#define producers_gone (gone(0) && gone(1))
#define drained(me) (producers_gone && head == tail && !somebody_dead && \
                     (me != SURVIVOR || gone(2)))
#define is_dead(p) (entry[p] && !alive[p])
#define somebody_dead (is_dead(0) || is_dead(1) || is_dead(2))
#define can_recover (somebody_dead && (recoverer == 0 || !alive[recoverer - 1]))
#define readable (slot(head).sequence == sequence(head, COMMITTED) || \
                  slot(head).sequence == sequence(head, TOMBSTONE))
#define chunk_is_free (chunks[0].state == FREE || chunks[1].state == FREE)
#define all_acknowledged \
    (!committed[1] || acknowledged[1]) && (!committed[2] || acknowledged[2]) && \
    (MESSAGES < 3 || !committed[MESSAGES] || acknowledged[MESSAGES])

inline deliver(m, flagged) {
    assert(flagged || !delivered[m]); /* nothing comes twice without the flag */
    delivered[m] = true
}

/* ---- recovery.c ---- */

#define announce_returned news[2] = true; news[3] = true; fresh[2] = true; fresh[3] = true

/* Whether the position is in the intent of a living participant other than the dead one. */
#define covers(x, position, taking) \
    (x != dead && alive[x] && \
     ((taking && take_intent[x] == position + 1) || (!taking && put_intent[x] == position + 1)))

inline covered_by_the_living(position, taking) {
    /* one participant after the other: their intents change meanwhile */
    covered = covers(0, position, taking);
    covered = covered || covers(1, position, taking);
    covered = covered || covers(2, position, taking);
    atomic {
        covered = covered || covers(3, position, taking);
#ifdef BUG_LIVING_IGNORED
        covered = false
#endif
    }
}

inline settle_chunk(me, c) {
    atomic {
        word = chunks[c].state;
        if
        :: (word == OWNED || word == LEASED) && chunks[c].holder == dead + 1
        :: else -> word = FREE
        fi
    };
    if
    :: word != FREE ->
        atomic { /* place, and whether its slot still holds the message: sq_slot_holds */
            position = chunks[c].place;
            in_slot = position != 0 && tail >= position && tail - position < CAPACITY &&
                      (slot(position - 1).sequence == sequence(position - 1, COMMITTED) ||
                       slot(position - 1).sequence == sequence(position - 1, REDELIVER));
            position = 0;
#ifdef BUG_SLOT_IGNORED
            in_slot = false
#endif
        };
        atomic { /* the CAS */
            if
            :: chunks[c].state == word && chunks[c].holder == dead + 1 ->
                if
#ifdef BODIES
                :: in_slot -> chunks[c].state = OWNED; chunks[c].holder = 0; word = FREE /* queued */
#endif
                :: word == LEASED && !in_slot ->
                    chunks[c].state = RETURNED; chunks[c].holder = 0; word = RETURNED
                :: else -> chunks[c].holder = me + 1; chunks[c].state = OWNED; word = OWNED
                fi
            :: else -> word = FREE
            fi;
            in_slot = false
        };
        if
        :: word == OWNED -> atomic { chunks[c].state = FREE; chunks[c].holder = 0; word = 0 }
        :: word == RETURNED -> atomic { announce_returned; word = 0 }
        :: else
        fi
    :: else
    fi
}

inline settle_chunks(me) {
#ifdef LEASES
    settle_chunk(me, 0);
    settle_chunk(me, 1)
#else
    skip
#endif
}

/* Reserved by the dead and not committed becomes a tombstone. */
inline bury_reservations() {
    atomic {
        position = put_intent[dead];
        settled = true;
        if
        :: position != 0 && position <= tail &&
           slot(position - 1).sequence < sequence(position - 1, COMMITTED) ->
            position--;
            word = slot(position).sequence
        :: else -> position = NOWHERE
        fi
    };
    if
    :: position != NOWHERE ->
        covered_by_the_living(position, false);
        atomic { /* the CAS */
            if
            :: covered -> settled = false
            :: !covered && slot(position).sequence == word ->
                slot(position).sequence = sequence(position, TOMBSTONE)
            :: else
            fi;
            covered = false; word = 0; position = 0
        }
    :: else -> position = 0
    fi
}

/* Claimed by the dead and not released is to be delivered again; a tombstone is just released. */
inline return_claims() {
    atomic {
        position = take_intent[dead];
        if
        :: position != 0 && position <= head &&
           (slot(position - 1).sequence == sequence(position - 1, COMMITTED) ||
            slot(position - 1).sequence == sequence(position - 1, TOMBSTONE)) ->
            position--;
            word = slot(position).sequence
        :: else -> position = NOWHERE
        fi
    };
    if
    :: position != NOWHERE ->
        covered_by_the_living(position, true);
        atomic { /* the CAS */
            if
            :: covered -> settled = false
            :: !covered && slot(position).sequence == word ->
                if
                :: word == sequence(position, COMMITTED) ->
                    slot(position).sequence = sequence(position, REDELIVER)
                :: else -> slot(position).sequence = sequence(position + CAPACITY, EMPTY)
                fi
            :: else
            fi;
            covered = false; word = 0; position = 0
        }
    :: else -> position = 0
    fi
}

inline settle_participant(me) {
    settle_chunks(me);
    bury_reservations();
    return_claims();
    if
    :: settled ->
        atomic { announce_returned };
        atomic { put_intent[dead] = 0 };
        atomic { take_intent[dead] = 0; settled = false };
        entry[dead] = false
    :: else
    fi
}

inline recover(me) {
    atomic { /* become_recoverer; the reads before the CAS decide nothing that the CAS does not */
        if
        :: can_recover -> recoverer = me + 1; dead = 0
        :: else -> dead = PARTICIPANTS
        fi
    };
    do
    :: atomic { dead < PARTICIPANTS - 1 && is_dead(dead) } ->
        settle_participant(me);
        dead++
    :: atomic { dead < PARTICIPANTS - 1 && !is_dead(dead) -> dead++ }
    :: atomic { dead == PARTICIPANTS - 1 -> recoverer = 0; dead = 0; break }
    :: atomic { dead == PARTICIPANTS -> dead = 0; break }
    od
}

#define RECOVERY_VARIABLES \
    byte dead, position, word; \
    bool covered, settled, in_slot

/* What a dead one knew makes no difference any more: so many fewer states. */
#define FORGET_RECOVERY \
    dead = 0; position = 0; word = 0; covered = false; settled = false; in_slot = false

/* ---- sq_chunk_acquire, sq_copy_acquire: the CAS of the first free one ---- */

inline acquire(c) {
    atomic {
        c = CHUNKS;
        if
        :: chunks[0].state == FREE -> c = 0
        :: chunks[0].state != FREE && chunks[1].state == FREE -> c = 1
        :: else
        fi;
        if
        :: c < CHUNKS -> chunks[c].holder = me + 1; chunks[c].state = OWNED
        :: else
        fi
    }
}

/* ---- sq_put ---- */

proctype Producer(byte me; byte first; byte n) {
    byte t, chunk;
    byte message = first;
    bool reserved;
    RECOVERY_VARIABLES;
    {
        do
        :: message < first + n ->
#ifdef BODIES
            acquire(chunk);
            do
            :: chunk == CHUNKS -> /* sq_await_chunk */
                chunk_is_free || can_recover;
                recover(me);
                acquire(chunk)
            :: else -> break
            od;
            chunks[chunk].place = 0;
            chunks[chunk].half = message;
            chunks[chunk].other_half = message;
#endif
            do
            :: !reserved ->
                atomic {
                    t = tail;
                    if
                    :: t - head < CAPACITY && slot(t).sequence == sequence(t, EMPTY)
                    :: else -> t = NOWHERE
                    fi
                };
                if
                :: t != NOWHERE ->
                    put_intent[me] = t + 1;
                    atomic { /* the CAS */
                        if
                        :: tail == t -> tail++; reserved = true
                        :: else
                        fi
                    };
                    if
                    :: !reserved -> put_intent[me] = 0
                    :: else
                    fi
                :: else -> /* sq_await_room */
                    (tail - head < CAPACITY && slot(tail).sequence == sequence(tail, EMPTY)) ||
                        can_recover;
                    recover(me)
                fi
            :: else -> break
            od;
#ifdef BUG_EARLY_WITHDRAWAL
            put_intent[me] = 0;
#endif
#ifdef BODIES
            atomic { slot(t).half = chunk + 1; slot(t).deliveries = 0 };
            chunks[chunk].place = t + 1;
#else
            slot(t).half = message;
            atomic { slot(t).other_half = message; slot(t).deliveries = 0 };
#endif
            atomic { slot(t).sequence = sequence(t, COMMITTED); committed[message] = true };
            atomic { put_intent[me] = 0; message++; reserved = false; t = 0; chunk = 0 }
        :: else -> break
        od;
        ended[me] = true
    } unless {
        d_step { !alive[me] -> t = 0; message = 0; chunk = 0; reserved = false; FORGET_RECOVERY }
    }
}

/* ---- sq_take and sq_claim ---- */

/* The slot at `at` is ours: read it, and with CLAIM make it a lease, then release it. */
inline read_and_release() {
#ifdef BODIES
    atomic { leased = slot(at).half - 1; flagged = slot(at).deliveries > 0 };
    assert(chunks[leased].state == OWNED || chunks[leased].state == LEASED);
    chunks[leased].flagged = flagged;
    chunks[leased].place = at + 1;
    atomic { chunks[leased].holder = me + 1; chunks[leased].state = LEASED };
    slot(at).sequence = sequence(at + CAPACITY, EMPTY);
    atomic { take_intent[me] = 0; at = 0; got = true }
#else
    message = slot(at).half;
    atomic {
        assert(slot(at).other_half == message); /* nothing is torn */
        flagged = slot(at).deliveries > 0
    };
#ifdef CLAIM
#ifndef BUG_LATE_LEASE
    atomic { chunks[copy].half = message; chunks[copy].flagged = flagged };
    chunks[copy].place = at + 1;
    chunks[copy].state = LEASED;
#endif
    slot(at).sequence = sequence(at + CAPACITY, EMPTY);
#ifdef BUG_LATE_LEASE
    atomic { chunks[copy].half = message; chunks[copy].flagged = flagged };
    chunks[copy].place = at + 1;
    chunks[copy].state = LEASED;
#endif
    atomic { take_intent[me] = 0; leased = copy; at = 0; got = true }
#else
    /* handed over: whoever dies from here on had got it */
    atomic {
        slot(at).sequence = sequence(at + CAPACITY, EMPTY);
        deliver(message, flagged);
        acknowledged[message] = true;
        message = 0; flagged = false
    };
    atomic { take_intent[me] = 0; at = 0; got = true }
#endif
#endif
}

/* A slot to deliver again: find_returned_slots and claim_returned. */
inline slot_again(i) {
    atomic {
        at = head; /* the position behind it whose slot this is */
        do
        :: at > 0 && at + CAPACITY > head && (at == head || at % CAPACITY != i) -> at--
        :: else -> break
        od;
        if
        :: !found && at < head && at % CAPACITY == i &&
           slot(at).sequence == sequence(at, REDELIVER) -> found = true; won = true
        :: else -> at = 0
        fi
    };
    if
    :: won ->
        take_intent[me] = at + 1;
        atomic { /* the CAS */
            if
            :: slot(at).sequence == sequence(at, REDELIVER) ->
                slot(at).sequence = sequence(at, COMMITTED)
            :: else -> won = false
            fi
        };
        if
        :: won -> atomic { slot(at).deliveries = 1; won = false }; read_and_release()
        :: else -> atomic { take_intent[me] = 0; at = 0 }
        fi
    :: else
    fi
}

/* A chunk to deliver again. */
inline chunk_again(i) {
    if
    :: atomic { !found && chunks[i].state == RETURNED -> found = true };
        atomic { /* the CAS */
            if
            :: chunks[i].state == RETURNED ->
                chunks[i].holder = me + 1; chunks[i].state = LEASED;
                flagged = true; leased = i; got = true
            :: else
            fi
        };
        chunks[i].flagged = true
    :: else
    fi
}

inline again() {
    fresh[me] = false;
#ifdef CLAIM
    if
    :: copy < CHUNKS ->
#endif
        slot_again(0);
        slot_again(1);
#ifdef CLAIM
    :: else
    fi;
#endif
#ifdef LEASES
    chunk_again(0);
    chunk_again(1);
#endif
    atomic {
        if
#ifdef CLAIM
        :: !found && copy < CHUNKS -> news[me] = fresh[me]
#else
        :: !found -> news[me] = fresh[me]
#endif
        :: else
        fi;
        found = false
    }
}

/* take_as_one_of_many */
inline take() {
    atomic {
        at = head;
        if
        :: readable
        :: else -> at = NOWHERE
        fi
    };
    if
    :: at != NOWHERE ->
        take_intent[me] = at + 1;
        atomic { /* the CAS */
            if
            :: head == at -> head++; won = true
            :: else
            fi
        };
        if
        :: won && slot(at).sequence == sequence(at, TOMBSTONE) ->
            atomic { slot(at).sequence = sequence(at + CAPACITY, EMPTY); won = false };
            atomic { take_intent[me] = 0; at = 0 }
        :: won && slot(at).sequence != sequence(at, TOMBSTONE) ->
            won = false;
            read_and_release()
        :: else -> atomic { take_intent[me] = 0; at = 0 }
        fi
    :: else -> at = 0
    fi
}

proctype Consumer(byte me) {
    byte at, message, copy, leased;
    bool got, found, flagged, won;
    RECOVERY_VARIABLES;
    {
        do
        :: atomic { drained(me) && !news[me] -> break }
        :: atomic { /* message_ready, or the recovery interval has passed */
               (readable || news[me] || can_recover) && !(drained(me) && !news[me])
           } ->
#ifdef CLAIM
            acquire(copy);
#endif
            if
            :: news[me] -> again()
            :: else
            fi;
            if
#ifdef CLAIM
            :: !got && copy < CHUNKS -> take()
#else
            :: !got -> take()
#endif
            :: else
            fi;
#ifdef CLAIM
            if
            :: copy < CHUNKS && (!got || leased != copy) -> /* it was not needed */
                atomic { chunks[copy].state = FREE; chunks[copy].holder = 0 }
            :: else
            fi;
            copy = 0;
#endif
#ifdef LEASES
            if
            :: got ->
                message = chunks[leased].half;
                atomic {
#ifdef BODIES
                    assert(chunks[leased].other_half == message); /* nothing is torn */
#endif
                    deliver(message, flagged)
                };
                if
#ifdef REJECT
                :: !chunks[leased].flagged -> /* sq_lease_return */
                    atomic { chunks[leased].holder = 0; chunks[leased].state = RETURNED };
#ifndef BUG_SILENT_RETURN
                    atomic { announce_returned }
#endif
#endif
                :: true -> /* sq_chunk_release */
                    atomic {
                        chunks[leased].state = FREE;
                        chunks[leased].holder = 0;
                        acknowledged[message] = true
                    }
                fi;
                atomic { leased = 0; message = 0; flagged = false }
            :: else
            fi;
#endif
            got = false;
            if
            :: can_recover -> recover(me)
            :: else
            fi
        od;
        ended[me] = true
    } unless {
        d_step {
            !alive[me] ->
            at = 0; message = 0; copy = 0; leased = 0;
            got = false; found = false; flagged = false; won = false; FORGET_RECOVERY
        }
    };
    if
    :: me == SURVIVOR ->
        assert(all_acknowledged); /* nothing committed is lost */
        assert(slot(tail).sequence == sequence(tail, EMPTY));
        assert(slot(tail + 1).sequence == sequence(tail + 1, EMPTY));
        assert(chunks[0].state == FREE && chunks[1].state == FREE);
        assert(recoverer == 0)
    :: else
    fi
}

#define kill(p) \
    atomic { \
        deaths < DEATHS && mortal(p) && !gone(p) -> \
        alive[p] = false; deaths++; \
        if \
        :: deaths == DEATHS -> break \
        :: else \
        fi \
    }

/* It may end at any time, so that a queue that is stuck is seen to be: no death gets it going. */
proctype Death() {
    byte deaths;
    do
    :: kill(0)
    :: kill(1)
    :: kill(2)
    :: break
    od
}

init {
    atomic {
        run Producer(0, 1, FIRST);
        run Producer(1, 1 + FIRST, SECOND);
        run Consumer(2);
        run Consumer(SURVIVOR);
        run Death()
    }
}
