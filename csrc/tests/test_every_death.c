/* Every operation, killed at every one of its writes in turn: what was committed before is there,
 * in order and once (or flagged), what was in hand is there whole or not at all, and everything
 * that the dead one held is free again. */
#include "operations.h"

static void die_once(uint32_t mode, uint64_t die_at) {
    prepare(mode);
    run_and_kill(live, &die_at);
    settle_up(0, 0, 0);
}

static void every_death_mpmc(void) {
    at_every_point(MPMC, "killed", die_once);
}
static void every_death_spmc(void) {
    at_every_point(SPMC, "killed", die_once);
}
static void every_death_mpsc(void) {
    at_every_point(MPSC, "killed", die_once);
}
static void every_death_spsc(void) {
    at_every_point(SPSC, "killed", die_once);
}

/* ---- creating ---- */

static char new_name[64];

static void create_and_leave_behind(void *unused) {
    (void)unused;
    sq_options options = options_of(MPMC, 0, CAPACITY);
    CHECK(sq_queue_create(&queue, new_name, &options) == SQ_OK);
    put_messages(&queue, VICTIM, 5, 1, &(bodies){"external", 1000, 2000, true});
}

static void create(void *die_at) {
    sq_queue own;
    sq_options options = options_of(MPMC, 0, CAPACITY);
    every_write_arm(*(uint64_t *)die_at, SIGKILL);
    CHECK(sq_queue_create(&own, new_name, &options) == SQ_OK);
    *points = every_write_count();
}

/* Over nothing, and over what another one that died had left. */
static void every_death_of_a_creator(void) {
    uint64_t die_at = 0;
    points = shared_memory(sizeof *points);
    static const operation creating = {"create", nothing, nothing, NULL, false, false};
    doing = &creating;
    for (uint32_t leftover = 0; leftover < 2; leftover++) {
        die_at = *points = 0;
        do {
            snprintf(new_name, sizeof new_name, "%s", fresh_name());
            if (leftover) {
                run_and_kill(create_and_leave_behind, NULL);
            }
            run_and_kill(create, &die_at);
            sq_options options = options_of(MPMC, 0, CAPACITY);
            CHECK(sq_queue_create(&queue, new_name, &options) == SQ_OK);
            all_is_free();
            close_queue(&queue);
            CHECK(count_files(new_name, false) == 0);
        } while (die_at++ < *points);
        printf("   create%s: killed at each of %u points\n", leftover ? " over a leftover" : "",
               (unsigned)*points);
    }
}

int main(void) {
    static const test tests[] = {
        TEST(every_death_of_a_creator), TEST(every_death_mpmc), TEST(every_death_spmc),
        TEST(every_death_mpsc),         TEST(every_death_spsc),
    };
    return RUN_TESTS(tests);
}
