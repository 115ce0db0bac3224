/* Every operation, stopped at every one of its writes in turn, as by SIGSTOP, a debugger or a
 * frozen cgroup. While it stands: nobody takes it for dead, others come and go, and what they put
 * and take is right; where they have to wait for it, sq_held_up_by says so.
 * When it goes on, all is as if it had never been stopped. */
#include "operations.h"

static struct {
    uint32_t put, taken, early;
} during_stop; /* by the survivor, while the victim stands */

static void others_come_and_go(void) {
    sq_queue other;
    sq_options options = options_of(MPMC, 0, CAPACITY);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    close_queue(&other);
    create_with(&other, options);
    close_queue(&other);
}

static bool is_waited_for(pid_t victim, bool room) {
    return sq_held_up_by(&queue, room).pid == (uint32_t)victim;
}

/* None of the dead that the victim may be settling is in the way of more than that. */
static void search_for_the_dead(pid_t victim) {
    uint32_t found;
    sq_status status = sq_recover(&queue, &found);
    CHECK(status == SQ_OK || status == SQ_BUSY);
    CHECK(doing->before == others_die || found == 0);
    for (uint32_t index = 0; index < queue.segment.participants; index++) {
        uint64_t identity = atomic_load(&sq_entry_at(&queue, index)->identity);
        CHECK(sq_identity_pid(identity) != (uint32_t)victim ||
              !sq_participant_is_dead(&queue, index));
    }
}

static void put_during_stop(pid_t victim) {
    if (sq_queue_enrol_producer(&queue) != SQ_OK) {
        return; /* it is the victim's role, or a dead one's that the victim is settling */
    }
    for (uint64_t i = 0; i < 3; i++) {
        message m;
        uint32_t accepted;
        write_message(&m, SURVIVOR, 100 + i, &INLINE_BODIES);
        sq_item item = item_of(&queue, &m, &INLINE_BODIES);
        sq_status status = sq_put(&queue, &item, 1, &accepted);
        CHECK(status == SQ_OK || status == SQ_FULL ||
              (status == SQ_CLOSED && doing->run == shut_down));
        CHECK(status != SQ_FULL || sq_size(&queue) == CAPACITY || is_waited_for(victim, true));
        during_stop.put += accepted;
    }
}

static void take_during_stop(pid_t victim) {
    if (sq_queue_enrol_consumer(&queue) != SQ_OK) {
        return;
    }
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t value[SQ_TAKEN_WORDS];
        uint32_t count;
        sq_status status = sq_take(&queue, value, 1, &count);
        CHECK(status == SQ_OK || status == SQ_EMPTY ||
              (status == SQ_CLOSED && doing->run == shut_down));
        CHECK(sq_check_cursors(&queue) == SQ_OK);
        if (count == 0) {
            CHECK(sq_size(&queue) == 0 || is_waited_for(victim, false));
            continue;
        }
        message m;
        open_message(&queue, (sq_taken *)value, &m);
        CHECK(((sq_taken *)value)->deliveries == 0 || doing->before == others_die ||
              doing->run == return_claims || doing->before == claim_and_return ||
              doing->run == claim_and_leave);
        during_stop.taken += m.producer == SURVIVOR;
        during_stop.early += m.producer != SURVIVOR;
    }
}

static void stop_once(uint32_t mode, uint64_t stop_at) {
    memset(&during_stop, 0, sizeof during_stop);
    prepare(mode);
    hit_by = SIGSTOP;
    fflush(NULL);
    pid_t victim = fork();
    CHECK(victim >= 0);
    if (victim == 0) {
        live(&stop_at);
        raise(SIGKILL);
    }
    int status;
    CHECK(waitpid(victim, &status, WUNTRACED) == victim);
    CHECK(WIFSTOPPED(status) == (stop_at != 0));
    if (WIFSTOPPED(status)) {
        others_come_and_go();
        search_for_the_dead(victim);
        put_during_stop(victim);
        take_during_stop(victim);
        search_for_the_dead(victim);
        /* nobody but the victim has a role now */
        uint32_t self = queue.id;
        atomic_compare_exchange_strong(&queue.header->consumer, &self, 0);
        CHECK(kill(victim, SIGCONT) == 0);
        CHECK(waitpid(victim, &status, 0) == victim);
    }
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    settle_up(during_stop.put, during_stop.taken, during_stop.early);
}

static void every_stop_mpmc(void) {
    at_every_point(MPMC, "stopped", stop_once);
}
static void every_stop_spmc(void) {
    at_every_point(SPMC, "stopped", stop_once);
}
static void every_stop_mpsc(void) {
    at_every_point(MPSC, "stopped", stop_once);
}
static void every_stop_spsc(void) {
    at_every_point(SPSC, "stopped", stop_once);
}

int main(void) {
    static const test tests[] = {
        TEST(every_stop_mpmc),
        TEST(every_stop_spmc),
        TEST(every_stop_mpsc),
        TEST(every_stop_spsc),
    };
    return RUN_TESTS(tests);
}
