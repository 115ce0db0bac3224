/* The crash-safety protocol of the ring (csrc/ring.c, recovery.c, pool.c, redelivery.c, control.c), for
 * the spin model checker. Who takes part, and how the dead are told from the living, is in
 * membership.pml.
 *
 *   make -C csrc/model          checks every configuration, exhaustively
 *
 * Two producers and two consumers share a ring. Each write, CAS or read of shared memory that others
 * can tell apart is a step of its own. Between any two steps a participant may be killed (process
 * Death), up to DEATHS of them, a recoverer like any other. The queue is shut down when both producers
 * have put all, or, with EARLY_SHUTDOWN, at any time. Who waits recovers the dead. The last consumer stays alive. When it is told that the
 * queue has ended, and when the others are gone and settled, it looks whether all is well:
 *
 *   nothing committed is lost    every message that was put has been acknowledged when the last
 *                                consumer is told the end
 *   nothing is torn              both halves of a body that is read belong to one message
 *   nothing comes twice          unless the later delivery is flagged
 *   nothing is stuck             at the end all slots are empty in their turn, all chunks are free, no
 *                                segment of a message is left, no table entry is held by the dead, and
 *                                tombstones are counted right; before, nobody waits for ever (an
 *                                invalid end state)
 *   maxsize is kept              with LIMIT: a put succeeds only if fewer messages wait, those to be
 *                                delivered again included, than LIMIT; what is returned while the put
 *                                looks does not count
 *
 * What mirrors what (here: in C):  Producer: sq_put, then sq_await_done with JOIN;  take:
 * take_as_one_of_many;  read_and_release: read_slot, lease_copy or lease, release_slots;  again:
 * take_returned (slot_again: a slot; chunk_again: a chunk);  Consumer: take_next, then
 * sq_lease_return or sq_chunk_release;  recover: sq_recover, settle_alone and settle_the_dead (look_at:
 * sq_participant_is_dead);  free_chunk_of_the_dead: sq_chunk_settle;  release_chunk: sq_chunk_release;
 * announce_returned: sq_announce_returned;  settle_reservation and settle_claim: settle_reservations and
 * settle_claims, for one position; and by their own names settle_participant, settle_chunk,
 * complete_tombstone.
 *
 * The end of a queue: a shutdown sets the closed bit of the tail, and a reservation is a CAS of the same
 * word, so it fails from then on. A consumer that finds the queue drained (shut down, head == tail) looks
 * for the dead itself. Only if that look, begun then, found nobody dead or settled all it found, and
 * there is nothing new to deliver again, has the queue ended. Otherwise it waits and looks again.
 * A consumer answers for what itself has claimed: the last one asks for the end when the other is gone.
 *
 * Waiting: who waits goes on when it could get on, or when a look for the dead could achieve
 * something. In C a look comes at intervals, whether it can achieve something or not.
 *
 * Left out: memory orders (ThreadSanitizer and the comments in C answer for them; here memory is
 * sequentially consistent), batches (a batch is as many positions, each settled for itself), one
 * consumer, pins of chunks by their producers, waking, immediate shutdown, and that who shuts down may
 * die between the closed bit and the control word (who waits completes that).
 *
 * Configurations:  CLAIM   consumers claim, and acknowledge later; without, they get
 *                  BODIES  messages lie in chunks of the pool, which consumers lease from their slots
 *                  EXTERNAL  with BODIES: each chunk stands for a segment of its own
 *                  REJECT  a leased message may be given back
 *                  ANY_CHUNK  not the first free chunk is acquired, but any
 *                  SINGLE_PRODUCER  one producer at a time: slots are written, then the tail moves
 *                  EARLY_SHUTDOWN  the queue is shut down at any time
 *                  LIMIT   a maxsize
 *                  FIRST, SECOND  messages of the producers, in each of their lives
 *                  DEATHS  how many may die, MORTAL which of the participants 0 to 2, as bits
 *                  JOIN    which producers wait until all is answered, as bits
 *                  LEAVES  which producers leave when they have put their messages, as bits
 *                  AGAIN   which entries are taken by a newcomer when their participant has left, or
 *                          has died and is settled, as bits
 *                  ABSENT  which of the participants 1 and 2 are not there, as bits
 *                  SECOND_THREAD  the participant with a thread that awaits beside the other
 * Mutations that must be found out, to show that the model can fail, are named BUG_ and stand beside
 * what they break; the Makefile lists them.
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
#ifndef JOIN
#define JOIN 0
#endif
#ifndef LEAVES
#define LEAVES 0
#endif
#ifndef ABSENT
#define ABSENT 0
#endif
#ifndef AGAIN
#define AGAIN 0
#endif
#if LEAVES
#define LOOK_IN_STEPS
#endif
#define has(participants, p) (((participants) >> (p)) & 1)

#define CAPACITY 2
#define LIVES_OF_0 (1 + has(AGAIN, 0))
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
#define PINNED 4

/* With BODIES a slot holds the number of its chunk, plus 1, in place of the first half. */
#define spoil_slot(position) slot(position).half = 0; slot(position).other_half = 0; \
                             slot(position).redelivered = false
#define spoil_chunk(c) chunks[c].half = 0; chunks[c].other_half = 0; chunks[c].flagged = false

typedef Slot { byte sequence; byte half; byte other_half; bool redelivered };
typedef Chunk {
    byte state; byte holder; byte place; byte half; byte other_half; bool flagged;
    bool external; /* the segment's number is on record */
    bool exists    /* the segment does */
};

Slot slots[CAPACITY];
Chunk chunks[CHUNKS];
byte tail, head;
#ifdef EARLY_SHUTDOWN
bool closed; /* the top bit of the tail, and SQ_SHUTDOWN in the control word */
#else
#define closed (have_put(0) && have_put(1))
#endif
bool changed[PARTICIPANTS];  /* the epoch in the control word is not the one this participant has seen */
bool fresh[PARTICIPANTS]; /* nor the one that it has read */
byte identity[PARTICIPANTS] = 1;
byte put_intent[PARTICIPANTS]; /* position + 1 */
byte take_intent[PARTICIPANTS];
byte producer; /* with SINGLE_PRODUCER: who has the role */
byte pending_tombstone, tombstones_after, dropped;

/* the kernel's part */
bool alive[PARTICIPANTS] = true;
byte recovery; /* whose handle has the RECOVERY lock, plus 1 */

bool recovering; /* the flag of the handle of SECOND_THREAD */

/* what an observer knows, and no participant */
bool came[PARTICIPANTS]; /* no newcomer will take this entry any more */
bool ended[PARTICIPANTS];
bool joining[2]; /* this producer has put all */
bool committed[5], acknowledged[5], delivered[5]; /* of four messages at most */
#ifdef LIMIT
byte returned_since[2]; /* returned while this producer looked for room */
#endif

#define gone(p) (ended[p] || (!alive[p] && came[p]))
#define have_put(p) (gone(p) || alive[p] && joining[p])
#define locked(p) (alive[p] && identity[p] != 0)
#define is_dead(p) (identity[p] != 0 && !alive[p])
#define somebody_dead (is_dead(0) || is_dead(1) || is_dead(2))
#define drained(me) (closed && head == tail && (me != SURVIVOR || gone(2)))
#define readable \
    (slot(head).sequence == sequence(head, COMMITTED) && may_be_taken || \
     slot(head).sequence == sequence(head, TOMBSTONE))
#ifdef SINGLE_PRODUCER
#define may_be_taken (head < tail)
#define may_be_written(position) \
    (slot(position).sequence == sequence(position, EMPTY) || \
     slot(position).sequence == sequence(position, COMMITTED))
#else
#define may_be_taken true
#define may_be_written(position) (slot(position).sequence == sequence(position, EMPTY))
#endif
#define chunk_is_free (chunks[0].state == FREE || chunks[1].state == FREE)

#define number_of(x) (x[1] + x[2] + x[3] + x[4])
#define all_acknowledged (number_of(committed) == number_of(acknowledged))
#define unfinished (tail - number_of(acknowledged) - dropped)

/* A living one's intent keeps the dead one from being settled. */
#define shields(x, p) \
    (alive[x] && (put_intent[p] != 0 && put_intent[x] == put_intent[p] || \
                  take_intent[p] != 0 && take_intent[x] == take_intent[p]))
#define settleable(p, x) (is_dead(p) && !shields(x, p))
#define anybody_settleable (settleable(0, 1) || settleable(1, 0) || settleable(2, SURVIVOR))
#ifdef BUG_TWO_RECOVERERS
#define can_lock(me) true
#else
#define can_lock(me) (recovery == 0)
#endif
#define can_recover (anybody_settleable && can_lock(me))

chan die[PARTICIPANTS] = [0] of { bool };

#ifdef SECOND_THREAD
#define forget_flag(p) recovering = recovering && p != SECOND_THREAD
#else
#define forget_flag(p) skip
#endif

/* The kernel drops the locks of the dead. */
#define lose_locks(p) \
    alive[p] = false; recovery = (recovery == p + 1 -> 0 : recovery); forget_flag(p)

inline deliver(m, flagged) {
    assert(m != 0); /* it was read before it was spoilt */
    assert(flagged || !delivered[m]); /* nothing comes twice without the flag */
    delivered[m] = true
}

/* ---- recovery.c ---- */

/* Those who do not look any more are left out: so many fewer states. */
#define announce_returned \
    changed[2] = alive[2] && !ended[2]; fresh[2] = changed[2]; \
    changed[SURVIVOR] = !ended[SURVIVOR]; fresh[SURVIVOR] = changed[SURVIVOR]

#ifdef LIMIT
#define a_return returned_since[0]++; returned_since[1]++
#else
#define a_return skip
#endif

/* Whether the position is in the intent of the living: of a dead producer's, only the other producer's
 * could be, and of the dead consumer's the survivor's. */
#define intended_by_a_producer(position) \
    (alive[1 - dead] && put_intent[1 - dead] == position + 1)
#define intended_by_a_consumer(position) (take_intent[SURVIVOR] == position + 1)

inline covered_by_the_living(intended) {
    atomic {
        covered = intended;
#ifdef BUG_LIVING_IGNORED
        covered = false
#endif
    }
}

/* The CAS of a chunk's word from what its holder has. */
inline free_held(c, its_holder) {
    atomic {
        if
        :: chunks[c].holder == its_holder + 1 ->
            chunks[c].state = FREE; chunks[c].holder = 0; spoil_chunk(c)
        :: else
        fi
    }
}

/* A producer or a consumer is done with a chunk of its own. */
inline release_chunk(c) {
#ifdef EXTERNAL
    chunks[c].state = PINNED;
    chunks[c].exists = false;
    chunks[c].external = false;
#endif
    free_held(c, me)
}

/* sq_chunk_settle: first make sure that it is the dead one's still, and stays it until it is free. */
inline free_chunk_of_the_dead(c) {
#ifdef BUG_UNLINK_FIRST
    atomic {
        chunks[c].exists = chunks[c].exists && !chunks[c].external; chunks[c].external = false
    };
#endif
    atomic { /* the CAS */
        if
        :: chunks[c].holder == dead + 1 -> chunks[c].state = PINNED
        :: else -> word = FREE
        fi
    };
    if
    :: word != FREE ->
#ifdef EXTERNAL
        atomic { chunks[c].exists = chunks[c].exists && !chunks[c].external };
        chunks[c].external = false;
#endif
#ifndef BUG_PLACE_KEPT
        chunks[c].place = 0;
#endif
        free_held(c, dead)
    :: else
    fi
}

inline settle_chunk(me, c) {
    atomic {
        word = chunks[c].state;
        if
        :: chunks[c].holder == dead + 1
        :: else -> word = FREE
        fi
    };
    if
    :: atomic { word != FREE -> /* place, and whether its slot still holds the message: sq_slot_holds */
            position = chunks[c].place;
            in_slot = word != PINNED && position != 0 && tail >= position &&
                      tail - position < CAPACITY &&
                      (slot(position - 1).sequence == sequence(position - 1, COMMITTED) ||
                       slot(position - 1).sequence == sequence(position - 1, REDELIVER));
            position = 0;
#ifdef BUG_SLOT_IGNORED
            in_slot = false;
#endif
        };
        if
#ifdef BODIES
        :: in_slot ->
            atomic { /* the CAS: it is queued */
                if
                :: chunks[c].state == word && chunks[c].holder == dead + 1 ->
                    chunks[c].state = OWNED; chunks[c].holder = 0
                :: else
                fi;
                in_slot = false; word = 0
            }
#endif
        :: word == LEASED && !in_slot ->
            atomic { /* the CAS */
                if
                :: chunks[c].state == word && chunks[c].holder == dead + 1 ->
                    chunks[c].state = RETURNED; chunks[c].holder = 0; a_return
                :: else -> word = 0
                fi
            };
            if
            :: word != 0 -> atomic { announce_returned; word = 0 }
            :: else
            fi
        :: else ->
#ifdef BUG_RECOVERER_OWNS_CHUNK
            atomic {
                if
                :: chunks[c].state == word && chunks[c].holder == dead + 1 ->
                    chunks[c].state = OWNED; chunks[c].holder = me + 1
                :: else
                fi
            };
            free_held(c, me);
#else
            free_chunk_of_the_dead(c);
#endif
            atomic { in_slot = false; word = 0 }
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

inline complete_tombstone() {
    atomic {
        word = pending_tombstone - 1;
        if
        :: slot(word).sequence >= sequence(word, TOMBSTONE) -> dropped = tombstones_after
        :: else
        fi;
        word = 0
    };
    pending_tombstone = 0
}

/* settle_reservations: reserved by the dead and not committed becomes a tombstone. */
inline look_at_reservation() {
    position = put_intent[dead];
    settled = true;
    if
    :: position != 0 && position <= tail &&
       slot(position - 1).sequence < sequence(position - 1, COMMITTED) ->
        position--;
        word = slot(position).sequence
    :: else -> position = NOWHERE
    fi
}

inline settle_reservation() {
    if
    :: position != NOWHERE ->
        covered_by_the_living(intended_by_a_producer(position));
        if
        :: atomic { covered -> settled = false; covered = false }
        :: atomic { !covered && slot(position).sequence == word ->
                /* write_tombstone */
#ifndef BUG_TOMBSTONE_UNRECORDED
                tombstones_after = dropped + 1; pending_tombstone = position + 1
#endif
            };
            atomic { /* the CAS */
                if
                :: slot(position).sequence == word ->
                    slot(position).sequence = sequence(position, TOMBSTONE);
                    spoil_slot(position)
                :: else
                fi;
                word = 0; position = 0
            };
#ifdef BUG_TOMBSTONE_UNRECORDED
            dropped++
#else
            complete_tombstone()
#endif
        :: atomic { !covered && slot(position).sequence != word }
        fi
    :: else
    fi;
    atomic { word = 0; position = 0 }
}

/* settle_claims: claimed by the dead and not released is to be delivered again; a tombstone is just
 * released. */
inline look_at_claim() {
    position = take_intent[dead];
    settled = true;
    if
    :: position != 0 && position <= head &&
       (slot(position - 1).sequence == sequence(position - 1, COMMITTED) ||
        slot(position - 1).sequence == sequence(position - 1, TOMBSTONE)) ->
        position--;
        word = slot(position).sequence
    :: else -> position = NOWHERE
    fi
}

inline settle_claim() {
    if
    :: position != NOWHERE ->
        covered_by_the_living(intended_by_a_consumer(position));
        atomic { /* the CAS */
            if
            :: covered -> settled = false
            :: !covered && slot(position).sequence == word ->
                if
                :: word == sequence(position, COMMITTED) ->
                    slot(position).sequence = sequence(position, REDELIVER); a_return
                :: else -> slot(position).sequence = sequence(position + CAPACITY, EMPTY)
                fi
            :: else
            fi;
            covered = false; word = 0; position = 0
        }
    :: else -> position = 0
    fi
}

/* What a producer or a consumer cannot have left is not looked for. */
inline settle_participant(me) {
    settle_chunks(me);
    if
    :: atomic { dead < 2 -> look_at_reservation() }; settle_reservation()
    :: atomic { dead == 2 -> look_at_claim() }; settle_claim()
    fi;
    if
    :: atomic { settled ->
#ifdef BUG_ENTRY_FREED_EARLY
            identity[dead] = 0
        };
        atomic {
#endif
            announce_returned
        };
#ifdef SINGLE_PRODUCER
        if
        :: atomic { producer == dead + 1 -> producer = 0 }
        :: else
        fi;
#endif
        atomic { put_intent[dead] = 0; take_intent[dead] = 0; settled = false };
        atomic { identity[dead] = 0; seen = 0; dead++ }
    :: atomic { !settled -> busy = true; seen = 0; dead++ }
    fi
}

/* Two threads of a handle share an open file description: its lock does not keep one of them out, the
 * flag does. */
#ifdef SECOND_THREAD
#ifdef BUG_FLAG_IGNORED
#define flag_is_set(me) false
#else
#define flag_is_set(me) (me == SECOND_THREAD && recovering)
#endif
#define may_lock(me) (!flag_is_set(me) && (can_lock(me) || recovery == me + 1))
#define lock(me) recovery = me + 1; recovering = recovering || me == SECOND_THREAD
#define unlock(me) recovery = 0; recovering = recovering && me != SECOND_THREAD
#else
#define may_lock(me) can_lock(me)
#define lock(me) recovery = me + 1
#define unlock(me) recovery = 0
#endif

#ifdef LOOK_IN_STEPS

/* sq_participant_is_dead: sets `seen` to the identity of a dead participant, or to 0. */
inline look_at() {
    seen = identity[dead];
    if
    :: seen != 0 ->
        atomic {
            if
            :: locked(dead) -> seen = 0
            :: else
            fi
        };
#ifndef BUG_IDENTITY_READ_ONCE
        atomic {
            if
            :: identity[dead] != seen -> seen = 0
            :: else
            fi
        }
#endif
    :: else
    fi
}

inline find_the_next() {
    do
    :: dead < SURVIVOR && seen == 0 ->
        look_at();
        if
        :: seen == 0 -> dead++
        :: else
        fi
    :: else -> break
    od
}

#else

/* One atomic look says the same as the three of look_at, as long as nobody leaves. */
inline find_the_next() {
    do
    :: dead < SURVIVOR && !is_dead(dead) -> dead++
    :: else -> break
    od
}

#endif

/* Sets `busy` if not all who died before are settled then. */
inline recover(me) {
#ifdef LOOK_IN_STEPS
    atomic { dead = 0; busy = false };
    find_the_next(); /* is_anybody_dead */
    atomic { /* the flag, and the lock */
#else
    atomic {
        dead = 0; busy = false;
        find_the_next();
#endif
        seen = 0;
        if
        :: dead == SURVIVOR -> dead = PARTICIPANTS
        :: dead < SURVIVOR && may_lock(me) -> lock(me); dead = 0
        :: else -> busy = true; dead = PARTICIPANTS
        fi
    };
    do
    :: atomic { dead == 0 && pending_tombstone != 0 } -> complete_tombstone()
#ifdef LOOK_IN_STEPS
    :: dead < SURVIVOR && (dead != 0 || pending_tombstone == 0) ->
        find_the_next();
        if
        :: dead < SURVIVOR -> settle_participant(me)
        :: else
        fi
    :: atomic { dead == SURVIVOR -> unlock(me); dead = 0; break }
#else
    :: atomic {
            dead < PARTICIPANTS && (dead != 0 || pending_tombstone == 0) ->
            find_the_next();
            if
            :: dead == SURVIVOR -> unlock(me); dead = 0; break
            :: else
            fi
        };
        settle_participant(me)
#endif
    :: atomic { dead == PARTICIPANTS -> dead = 0; break }
    od
}

#define RECOVERY_VARIABLES \
    byte dead, position, word, seen; \
    bool covered, settled, in_slot, busy

/* What a dead one knew makes no difference any more: so many fewer states. */
#define FORGET_RECOVERY \
    dead = 0; position = 0; word = 0; seen = 0; covered = false; settled = false; in_slot = false; \
    busy = false

/* ---- sq_chunk_acquire, sq_copy_acquire: the CAS of the first free one ---- */

inline acquire(c) {
    atomic {
        c = CHUNKS;
        if
        :: chunks[0].state == FREE -> c = 0
#ifdef ANY_CHUNK
        :: chunks[1].state == FREE -> c = 1
#else
        :: chunks[0].state != FREE && chunks[1].state == FREE -> c = 1
#endif
        :: else
        fi;
        if
        :: c < CHUNKS ->
            chunks[c].holder = me + 1; chunks[c].state = OWNED;
            assert(!chunks[c].exists)
        :: else
        fi
    }
}

/* ---- sq_put ---- */

#ifdef LIMIT
#define returned_chunk(c) (chunks[c].state == RETURNED)
#define returned_slot(i) (slots[i].sequence % 4 == REDELIVER)
#define returned (returned_chunk(0) + returned_chunk(1) + returned_slot(0) + returned_slot(1))
#define has_room(n) (tail - head + n < LIMIT)
#else
#define returned 0
#define has_room(n) (tail - head < CAPACITY)
#endif
#define room_at_tail (has_room(returned) && may_be_written(tail))

inline write_slot() {
#ifdef BODIES
    atomic { slot(t).half = chunk + 1; slot(t).redelivered = false };
    chunks[chunk].place = t + 1
#else
    slot(t).half = message;
    atomic { slot(t).other_half = message; slot(t).redelivered = false }
#endif
}

proctype Producer(byte me; byte first; byte n) {
    byte t, chunk;
    byte message = first;
    byte last = first + n;
    bool reserved;
    byte waiting_again;
    RECOVERY_VARIABLES;
begin:
    {
#ifdef SINGLE_PRODUCER
        do /* sq_queue_enrol_producer, again and again */
        :: atomic { producer == 0 -> producer = me + 1; break }
        :: producer != 0 && can_recover -> recover(me)
        :: atomic { closed -> message = last; break }
        od;
#endif
        do
        :: message < last ->
#ifdef BODIES
            acquire(chunk);
            do
            :: chunk == CHUNKS && !closed -> /* sq_await_chunk */
                if
                :: atomic { can_recover } -> recover(me)
                :: chunk_is_free || closed
                fi;
                acquire(chunk)
            :: else -> break
            od;
            if
            :: chunk < CHUNKS ->
                chunks[chunk].place = 0;
#ifdef EXTERNAL
                chunks[chunk].external = true;
                chunks[chunk].exists = true;
#endif
                atomic { chunks[chunk].half = message; chunks[chunk].other_half = message }
            :: else
            fi;
#endif
            do
            :: !reserved && !closed ->
#ifdef LIMIT
                atomic { returned_since[me] = 0; waiting_again = returned_chunk(0) };
                waiting_again = waiting_again + returned_chunk(1);
                waiting_again = waiting_again + returned_slot(0);
                waiting_again = waiting_again + returned_slot(1);
#ifdef BUG_RETURNED_NOT_COUNTED
                waiting_again = 0;
#endif
#endif
                atomic {
                    t = tail;
                    if
                    :: has_room(waiting_again) && may_be_written(t)
                    :: else -> t = NOWHERE
                    fi;
                    waiting_again = 0
                };
                if
                :: t != NOWHERE ->
#ifdef SINGLE_PRODUCER
                    write_slot();
                    slot(t).sequence = sequence(t, COMMITTED);
                    atomic { /* the CAS */
                        if
                        :: !closed -> tail++; reserved = true; committed[message] = true
                        :: else
                        fi
                    }
#else
                    put_intent[me] = t + 1;
                    atomic { /* the CAS */
                        if
                        :: tail == t && !closed ->
#ifdef LIMIT
                            assert(tail - head + returned - returned_since[me] < LIMIT);
#endif
                            tail++; reserved = true
                        :: else
                        fi
                    };
                    if
                    :: !reserved -> put_intent[me] = 0
                    :: else
                    fi
#endif
                :: else -> /* sq_await_room */
                    if
                    :: atomic { can_recover } -> recover(me)
                    :: room_at_tail || closed
                    fi
                fi
            :: else -> break
            od;
            if
            :: reserved ->
#ifndef SINGLE_PRODUCER
#ifdef BUG_EARLY_WITHDRAWAL
                put_intent[me] = 0;
#endif
                write_slot();
                atomic { slot(t).sequence = sequence(t, COMMITTED); committed[message] = true };
                put_intent[me] = 0;
#endif
                atomic { message++; reserved = false; t = 0; chunk = 0 }
            :: else -> /* SQ_CLOSED */
#ifdef BODIES
                if
                :: chunk < CHUNKS -> release_chunk(chunk)
                :: else
                fi;
#endif
                atomic { message = last; t = 0; chunk = 0 }
            fi
        :: else -> break
        od;
        if
        :: has(JOIN, me) ->
            joining[me] = true;
            do
            :: atomic { unfinished == 0 -> break }
            :: atomic { unfinished != 0 && can_recover } -> recover(me)
            od
        :: else
        fi;
#ifdef SINGLE_PRODUCER
        if
        :: atomic { producer == me + 1 -> producer = 0 }
        :: else
        fi;
#endif
        if
        :: has(LEAVES, me) ->
            atomic { identity[me] = 0; ended[me] = came[me] }
        :: else -> ended[me] = true
        fi
    } unless {
        atomic {
            die[me]?_ -> lose_locks(me);
            t = 0; chunk = 0; reserved = false; waiting_again = 0; FORGET_RECOVERY
        }
    };
    if
    :: atomic { !ended[me] && !came[me] && identity[me] == 0 -> /* a newcomer */
            came[me] = true; alive[me] = true; identity[me] = 2;
            message = first + n; last = first + 2 * n
        };
        goto begin
    :: ended[me] || came[me] -> atomic { message = 0; last = 0 }
    fi
}

/* ---- sq_take and sq_claim ---- */

/* The slot at `at` is ours: read it, and with CLAIM make it a lease, then release it. */
inline read_and_release() {
#ifdef BODIES
    atomic { leased = slot(at).half - 1; flagged = slot(at).redelivered };
    assert(chunks[leased].state == OWNED || chunks[leased].state == LEASED);
    chunks[leased].flagged = flagged;
    chunks[leased].place = at + 1;
    atomic { chunks[leased].holder = me + 1; chunks[leased].state = LEASED };
    atomic { slot(at).sequence = sequence(at + CAPACITY, EMPTY); spoil_slot(at) };
    atomic { take_intent[me] = 0; at = 0; got = true }
#else
    message = slot(at).half;
    atomic {
        assert(slot(at).other_half == message); /* nothing is torn */
        flagged = slot(at).redelivered
    };
#ifdef CLAIM
#ifndef BUG_LATE_LEASE
    atomic { chunks[copy].half = message; chunks[copy].flagged = flagged };
    chunks[copy].place = at + 1;
    chunks[copy].state = LEASED;
#endif
    atomic { slot(at).sequence = sequence(at + CAPACITY, EMPTY); spoil_slot(at) };
#ifdef BUG_LATE_LEASE
    atomic { chunks[copy].half = message; chunks[copy].flagged = flagged };
    chunks[copy].place = at + 1;
    chunks[copy].state = LEASED;
#endif
    atomic { take_intent[me] = 0; leased = copy; at = 0; got = true }
#else
    /* handed over: whoever dies from here on had got it */
    atomic {
        slot(at).sequence = sequence(at + CAPACITY, EMPTY); spoil_slot(at);
        deliver(message, flagged);
        acknowledged[message] = true;
        message = 0; flagged = false
    };
    atomic { take_intent[me] = 0; at = 0; got = true }
#endif
#endif
}

/* A slot to deliver again. */
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
        :: won -> atomic { slot(at).redelivered = true; won = false }; read_and_release()
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
        :: !found && copy < CHUNKS -> changed[me] = fresh[me]
#else
        :: !found -> changed[me] = fresh[me]
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

/* A look for the end that found others at work is worth another one when they are done. */
#define end_may_be_near(me) (drained(me) && (!busy || !somebody_dead || can_recover))
#define others_are_gone (gone(0) && gone(1) && !somebody_dead && recovery == 0)

proctype Consumer(byte me) {
    byte at, message, copy, leased;
    bool got, found, flagged, won;
    bool ending, told; /* the queue is drained; it is said to have ended */
    RECOVERY_VARIABLES;
begin:
    {
        do
        :: atomic { told && (me != SURVIVOR || others_are_gone) -> break }
        :: atomic { told && me == SURVIVOR && can_recover } -> recover(me)
        :: atomic { !told && (readable || changed[me]) } ->
#ifdef CLAIM
            acquire(copy);
#endif
            if
            :: changed[me] -> again()
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
                atomic {
                    message = chunks[leased].half;
#ifdef BODIES
                    assert(chunks[leased].other_half == message); /* nothing is torn */
#endif
#ifdef EXTERNAL
                    assert(chunks[leased].exists);
#endif
                    deliver(message, flagged)
                };
                if
#ifdef REJECT
                :: !chunks[leased].flagged -> /* sq_lease_return */
                    atomic {
                        chunks[leased].holder = 0; chunks[leased].state = RETURNED; a_return
                    };
#ifndef BUG_SILENT_RETURN
                    atomic { announce_returned }
#endif
#endif
                :: true -> /* sq_chunk_release */
#ifdef EXTERNAL
                    atomic { chunks[leased].state = PINNED; acknowledged[message] = true };
                    chunks[leased].exists = false;
                    chunks[leased].external = false;
#endif
                    atomic {
                        chunks[leased].state = FREE; chunks[leased].holder = 0; spoil_chunk(leased);
                        acknowledged[message] = true
                    }
                fi;
                atomic { leased = 0; message = 0; flagged = false; got = false }
            :: else
            fi
#else
            got = false
#endif
        :: atomic { !told && !readable && !changed[me] && (can_recover || end_may_be_near(me)) ->
               ending = drained(me)
           };
            recover(me);
            atomic {
#ifdef BUG_END_WHILE_RECOVERING
                told = ending && !changed[me];
#else
                told = ending && !busy && !changed[me];
#endif
                busy = busy && ending;
                ending = false;
                assert(!told || me != SURVIVOR || all_acknowledged) /* nothing committed is lost */
            }
        od;
        ended[me] = true
    } unless {
        atomic {
            die[me]?_ -> lose_locks(me);
            changed[me] = false; fresh[me] = false;
            at = 0; message = 0; copy = 0; leased = 0; ending = false; told = false;
            got = false; found = false; flagged = false; won = false; FORGET_RECOVERY
        }
    };
    if
    :: atomic { !ended[me] && !came[me] && identity[me] == 0 -> /* a newcomer */
            came[me] = true; alive[me] = true; identity[me] = 2; changed[me] = true; fresh[me] = true
        };
        goto begin
    :: ended[me] || came[me]
    fi;
    if
    :: me == SURVIVOR ->
        assert(slot(tail).sequence == sequence(tail, EMPTY) || may_be_written(tail));
        assert(slot(tail + 1).sequence == sequence(tail + 1, EMPTY));
        assert(chunks[0].state == FREE && chunks[1].state == FREE);
        assert(!chunks[0].exists && !chunks[1].exists);
        assert(unfinished == 0);
        assert(producer == 0 || alive[producer - 1])
    :: else
    fi
}

#ifdef SECOND_THREAD
/* A thread that waits beside the one that puts or takes; both die with their process. */
proctype Awaiter(byte me) {
    RECOVERY_VARIABLES;
    {
        do
        :: atomic { !ended[me] && can_recover } -> recover(me)
        :: ended[me] -> break
        od
    } unless {
        d_step { !alive[me] -> FORGET_RECOVERY }
    }
}
#endif

#define kill(p) \
    atomic { \
        deaths < DEATHS && has(MORTAL, p) && alive[p] && identity[p] != 0 && !ended[p] -> \
        deaths++; \
        die[p]!true \
    }

/* It may spare the rest at any time, so that a queue that is stuck is seen to be: no death gets it
 * going. */
proctype Death() {
    byte deaths;
end:
    do
    :: kill(0)
    :: kill(1)
    :: kill(2)
    :: atomic { deaths < DEATHS -> deaths = DEATHS }
    od
}

/* sq_shutdown: one atomic or of the word that reservations CAS */
#ifdef EARLY_SHUTDOWN
proctype Shutdown() {
    closed = true
}
#endif

#define run_unless_absent(p, participant) \
    if \
    :: has(ABSENT, p) -> ended[p] = true \
    :: else -> run participant \
    fi

init {
    atomic {
        came[0] = !has(AGAIN, 0);
        came[1] = !has(AGAIN, 1);
        came[2] = !has(AGAIN, 2);
        came[3] = true;
        run Producer(0, 1, FIRST);
        run_unless_absent(1, Producer(1, 1 + FIRST * LIVES_OF_0, SECOND));
        run_unless_absent(2, Consumer(2));
        run Consumer(SURVIVOR);
#ifdef SECOND_THREAD
        run Awaiter(SECOND_THREAD);
#endif
#ifdef EARLY_SHUTDOWN
        run Shutdown();
#endif
        run Death()
    }
}
