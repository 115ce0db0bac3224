/* Who takes part in a queue, who of them is dead, and who removes its name (csrc/queue.c, participant.c,
 * lock.c), for the spin model checker. The queue's own protocol is in queue.pml, which relies on what
 * is shown here: that one look at an entry tells whether its participant is dead.
 *
 * A segment has a name and, in the kernel, locks: MEMBERS, NAME and two for each entry of the table: one
 * that a newcomer has while it takes the entry, and the participant's own.
 * A lock belongs to an open file description and goes with it. Each process has one description for its
 * membership. A fork is prepared by the parent, which has the child's description open, too, until it
 * closes it. Locks of the moment (exclusive ones of MEMBERS and of NAME) are a process' own. No lock
 * is waited for.
 *
 * The first process has made the queue. A second and a third attach and leave. With FORK the first has
 * a child and may leave at once. With FORCE somebody removes the name by force. With CREATE somebody
 * makes a new queue of that name, if nobody holds the old one. With ONE_NEWCOMER the third is not there.
 * Between any two steps a process may die, up to DEATHS of them. The recoverer (Look) looks at the entries, and frees those of the dead. Shown:
 *
 *   a participant's name stays    who attached and has not left, and was not removed by force, finds the
 *                                 name to be its segment's; nor is a newcomer told then that it is gone
 *   no name is left behind        when all have left and nobody died, the name is gone
 *   no other name is removed      who unlinks the name unlinks its own segment's
 *   nobody alive is taken for dead, and an entry is one participant's
 *   nobody dead is taken for alive by a look that began after the death; but a child's lock is held as
 *                                 long as its parent has the child's description open, too
 *
 * What mirrors what (here: in C):  enter: sq_participant_enter (enter_at by its name, take_entry with it);  attach:
 * sq_queue_attach;  leave: sq_queue_leave, sq_participant_exit;  remove_if_last and remove_name by
 * their names;  Remover: sq_queue_remove with force;  Creator: sq_queue_create, which calls
 * sq_queue_remove without;  fork: sq_queue_fork_prepare, sq_queue_fork_parent, sq_queue_fork_child;
 * Look: sq_participant_is_dead, and the end of settle_participant.
 *
 * Left out: invitations, which are memberships without an entry, and descriptors that a fork copies
 * by the way, which inherited.c closes in the child.
 *
 * Mutations that must be found out, to show that the model can fail, are named BUG_ and stand beside
 * what they break; the Makefile lists them.
 */
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef ENTRIES
#define ENTRIES 2
#endif

#define FIRST 0
#define CHILD 3
#define REMOVER 4
#define CREATOR 5
#define PROCESSES 6
#define NOBODY 255

#define OLD 1
#define NEW 2

byte name = OLD; /* whose it is; 0: nobody's */
bool removed;    /* the bit of the control word */
byte identity[ENTRIES];
byte incarnations;

/* the kernel's part: descriptions are numbered like the processes that they are for */
bool member[PROCESSES];  /* shared lock of MEMBERS */
byte shut_out = NOBODY;  /* exclusive lock of MEMBERS */
byte name_lock = NOBODY; /* exclusive lock of NAME */
byte newcomer[ENTRIES] = NOBODY;  /* exclusive lock of an entry's byte of NEWCOMERS */
byte exclusive[ENTRIES] = NOBODY; /* exclusive lock of an entry */
bool alive[PROCESSES];
bool parent_has_it; /* the child's description */
bool child_has_it;

/* what an observer knows */
bool attached[PROCESSES], ended[PROCESSES], forced;
byte whose[8] = NOBODY; /* process of an incarnation; none: it is not one any more */
byte deaths;

#define anybody_is_member (member[0] || member[1] || member[2] || member[CHILD])
#define anybody_attached (attached[0] || attached[1] || attached[2] || attached[CHILD])
#define is_anybodys(x) (whose[x] != NOBODY && alive[whose[x]])

/* The last descriptor, or mapping, of a description is gone. */
inline drop_description(d) {
    member[d] = false;
    newcomer[0] = (newcomer[0] == d -> NOBODY : newcomer[0]);
    exclusive[0] = (exclusive[0] == d -> NOBODY : exclusive[0]);
#if ENTRIES > 1
    newcomer[1] = (newcomer[1] == d -> NOBODY : newcomer[1]);
    exclusive[1] = (exclusive[1] == d -> NOBODY : exclusive[1])
#endif
}

/* What a process held is gone, when it dies or lets go. */
inline drop_locks_of_the_moment(p) {
    shut_out = (shut_out == p -> NOBODY : shut_out);
    name_lock = (name_lock == p -> NOBODY : name_lock)
}

/* ---- joining ---- */

inline enter_at(entry, d, p) {
    if
    :: identity[entry] == 0 ->
#ifndef BUG_LOCK_HIDES_THE_DEAD
        atomic { /* while it has this lock nobody else takes the entry */
            if
            :: newcomer[entry] == NOBODY -> newcomer[entry] = d; locked = true
            :: else
            fi
        };
        if
        :: locked && identity[entry] == 0 ->
#endif
            atomic {
                if
                :: exclusive[entry] == NOBODY -> exclusive[entry] = d; locked = true
                :: else -> locked = false
                fi
            };
            if
            :: locked ->
                atomic {
                    if
                    :: identity[entry] == 0 -> take_entry(entry, p)
#ifdef BUG_LOCK_HIDES_THE_DEAD
                    :: else
#endif
                    fi
                }
            :: else
            fi;
#ifdef BUG_LOCK_HIDES_THE_DEAD
            atomic {
                if
                :: locked && entered == NOBODY -> exclusive[entry] = NOBODY
                :: else
                fi;
                locked = false
            }
#else
            skip
        :: else
        fi;
        atomic {
            newcomer[entry] = (newcomer[entry] == d -> NOBODY : newcomer[entry]); locked = false
        }
#endif
    :: else
    fi
}

inline take_entry(entry, p) {
    incarnations++;
    assert(incarnations < 8);
    identity[entry] = incarnations;
    whose[incarnations] = p;
    entered = entry
}

/* Sets `entered`, and `refused` if the queue is being removed. */
inline enter(d, p) {
    atomic {
        entered = NOBODY;
        if
        :: shut_out == NOBODY -> member[d] = true
        :: else -> refused = true; assert(!anybody_attached || forced)
        fi
    };
    if
    :: !refused ->
        enter_at(0, d, p);
#if ENTRIES > 1
        if
        :: entered == NOBODY -> enter_at(1, d, p)
        :: else
        fi;
#endif
        if
        :: entered == NOBODY -> atomic { drop_description(d) } /* SQ_TABLE_FULL */
        :: else
        fi
    :: else
    fi
}

/* ---- leaving and removing ---- */

inline remove_name(p) {
    removed = true;
    if
    :: name == OLD ->
        atomic {
            assert(name == OLD); /* no other name is removed */
            name = 0
        }
    :: else
    fi
}

inline remove_if_last(p) {
    if
    :: atomic { !anybody_is_member && shut_out == NOBODY -> shut_out = p };
        if
        :: atomic { name_lock == NOBODY -> name_lock = p };
            remove_name(p);
            name_lock = NOBODY
        :: atomic { name_lock != NOBODY }
        fi;
        shut_out = NOBODY
    :: atomic { anybody_is_member || shut_out != NOBODY }
    fi
}

inline leave(p) {
    attached[p] = false;
#ifdef BUG_UNLOCKED_BEFORE_IDENTITY
    atomic { drop_description(p) };
#endif
    atomic { whose[identity[entered]] = NOBODY; identity[entered] = 0 };
#ifdef BUG_UPGRADE
    /* try before its own lock is gone */
    if
    :: atomic { !member[(p + 1) % 4] && !member[(p + 2) % 4] && !member[(p + 3) % 4] &&
                shut_out == NOBODY -> shut_out = p; drop_description(p) };
        removed = true;
        if
        :: atomic { name == OLD -> name = 0 }
        :: else
        fi;
        shut_out = NOBODY
    :: else -> atomic { drop_description(p) }
    fi
#else
    atomic { drop_description(p) };
    remove_if_last(p)
#endif
}

inline attach(p) {
    if
    :: name == OLD -> /* opened and mapped */
        enter(p, p);
        if
        :: refused
        :: !refused && entered == NOBODY -> /* the table is full */
#ifndef BUG_FULL_AND_GONE
            remove_if_last(p)
#else
            skip
#endif
        :: !refused && entered != NOBODY ->
            /* one step: from here on it relies on the name */
            atomic {
                attached[p] = !removed && name == OLD;
                assert(attached[p] || !anybody_attached || forced)
            };
            leave(p)
        fi
    :: else
    fi
}

/* ---- processes ---- */

chan die[PROCESSES] = [0] of { bool };

inline lose_all(p) {
    alive[p] = false; attached[p] = false;
    drop_locks_of_the_moment(p);
    if
    :: p != CHILD -> drop_description(p)
    :: else -> child_has_it = false
    fi;
    if
    :: p == FIRST -> parent_has_it = false
    :: else
    fi;
    if
    :: (p == CHILD || p == FIRST) && !parent_has_it && !child_has_it -> drop_description(CHILD)
    :: else
    fi
}

proctype First() {
    byte entered;
    bool locked, refused;
    {
#ifdef FORK
        atomic { parent_has_it = true };
        enter(CHILD, FIRST); /* sq_queue_fork_prepare */
        if
        :: entered != NOBODY ->
            atomic { /* the fork */
                whose[identity[entered]] = CHILD;
                alive[CHILD] = true; child_has_it = true; attached[CHILD] = true;
                run Child(entered)
            };
#ifdef BUG_PARENT_UNLOCKS
            atomic { parent_has_it = false; drop_description(CHILD) }
#else
            atomic { /* sq_queue_fork_parent: close */
                parent_has_it = false;
                if
                :: !child_has_it -> drop_description(CHILD)
                :: else
                fi
            }
#endif
        :: else -> atomic { parent_has_it = false; ended[CHILD] = true }
        fi;
#endif
        entered = 0;
        leave(FIRST);
        ended[FIRST] = true
    } unless {
        atomic { die[FIRST]?_ -> lose_all(FIRST); entered = 0; locked = false; refused = false }
    }
}

proctype Child(byte entered) {
    {
        /* sq_queue_fork_child: it keeps the description by a mapping */
        leave(CHILD);
        ended[CHILD] = true
    } unless {
        atomic { die[CHILD]?_ -> lose_all(CHILD); entered = 0 }
    }
}

proctype Newcomer(byte me) {
    byte entered;
    bool locked, refused;
    {
        attach(me);
        ended[me] = true
    } unless {
        atomic { die[me]?_ -> lose_all(me); entered = 0; locked = false; refused = false }
    }
}

proctype Remover() {
    {
        if
        :: name == OLD ->
            if
            :: atomic { name_lock == NOBODY -> name_lock = REMOVER };
                if
                :: name == OLD -> forced = true; remove_name(REMOVER)
                :: else
                fi;
                name_lock = NOBODY
            :: atomic { name_lock != NOBODY } /* SQ_BUSY */
            fi
        :: else
        fi;
        ended[REMOVER] = true
    } unless {
        atomic { die[REMOVER]?_ -> lose_all(REMOVER) }
    }
}

proctype Creator() {
    {
        do
        :: atomic { name == 0 -> name = NEW; break } /* published */
        :: atomic { name == NEW -> break }
        :: name == OLD -> /* sq_queue_remove, unless somebody holds it */
            if
            :: atomic { !anybody_is_member && shut_out == NOBODY -> shut_out = CREATOR };
                if
                :: atomic { name_lock == NOBODY -> name_lock = CREATOR };
                    remove_name(CREATOR);
                    atomic { name_lock = NOBODY; shut_out = NOBODY }
                :: atomic { name_lock != NOBODY -> shut_out = NOBODY; break } /* SQ_BUSY */
                fi
            :: atomic { anybody_is_member || shut_out != NOBODY -> break } /* SQ_EXISTS */
            fi
        od;
        ended[CREATOR] = true
    } unless {
        atomic { die[CREATOR]?_ -> lose_all(CREATOR) }
    }
}

/* Any participant, and the one recoverer. */
/* A child's lock is still there while its parent has the child's description open. */
#define dead_in(entry) \
    (identity[entry] != 0 && !is_anybodys(identity[entry]) && \
     !(parent_has_it && exclusive[entry] == CHILD))
#define all_ended \
    ((ended[0] || !alive[0]) && (ended[1] || !alive[1]) && (ended[2] || !alive[2]) && \
     (ended[3] || !alive[3]) && (ended[4] || !alive[4]) && (ended[5] || !alive[5]))

#define look_begins(at) \
    atomic { \
        entry == NOBODY && identity[at] != 0 -> \
        entry = at; seen = identity[at]; was_dead = (dead_in(at) -> seen : 0) \
    }

proctype Look() {
    byte entry = NOBODY, seen, was_dead;
    bool refused;
end:
    do
    :: look_begins(0)
#if ENTRIES > 1
    :: look_begins(1)
#endif
    :: entry != NOBODY ->
        refused = exclusive[entry] != NOBODY; /* would a shared lock be refused */
        atomic {
            if
#ifdef BUG_IDENTITY_READ_ONCE
            :: !refused ->
#else
            :: !refused && identity[entry] == seen ->
#endif
                assert(!is_anybodys(seen)); /* nobody alive is taken for dead */
#ifdef BUG_IDENTITY_READ_ONCE
                assert(identity[entry] == seen || !is_anybodys(identity[entry]));
#endif
                /* settled, and the entry freed */
                identity[entry] = 0
            :: else ->
                assert(was_dead == 0 || identity[entry] != was_dead) /* nobody dead is for alive */
            fi;
            was_dead = 0; seen = 0; refused = false; entry = NOBODY
        }
    od
}

#define relies_on_its_name(p) (attached[p] && !forced && !(name == OLD))

/* The names of participants stay, at any time. */
proctype Observer() {
    do
    :: atomic {
            relies_on_its_name(0) || relies_on_its_name(1) || relies_on_its_name(2) ||
                relies_on_its_name(CHILD) ->
            assert(false)
        }
    :: atomic { all_ended -> break }
    od;
    assert(deaths > 0 || name != OLD) /* no name is left behind */
}

#define kill(p) \
    atomic { \
        deaths < DEATHS && alive[p] && !ended[p] -> \
        deaths++; \
        die[p]!true \
    }

proctype Death() {
end:
    do
    :: kill(0)
    :: kill(1)
    :: kill(2)
    :: kill(CHILD)
    :: kill(REMOVER)
    :: kill(CREATOR)
    od
}

init {
    atomic {
        alive[0] = true; alive[1] = true;
        member[0] = true; exclusive[0] = 0; identity[0] = 1; whose[1] = 0; incarnations = 1;
        attached[0] = true;
        run First();
        run Newcomer(1);
#ifndef ONE_NEWCOMER
        alive[2] = true;
        run Newcomer(2);
#endif
#ifdef FORCE
        alive[REMOVER] = true;
        run Remover();
#endif
#ifdef CREATE
        alive[CREATOR] = true;
        run Creator();
#endif
        run Look();
        run Observer();
        run Death()
    }
}
