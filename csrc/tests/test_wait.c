/* No wake-up is lost: two threads hand one message back and forth, each asleep in between. */
#include "check.h"

typedef struct side {
    sq_queue in, out;
    uint32_t rounds;
    bool serves;
} side;

static void pass(sq_queue *queue, uint64_t value) {
    sq_item item = {.body = &value, .length = sizeof value, .storage = SQ_INLINE};
    uint32_t accepted;
    while (sq_put(queue, &item, 1, &accepted) == SQ_FULL) {
        sq_await_room(queue, 10000000000u);
    }
}

static uint64_t receive(sq_queue *queue) {
    uint64_t space[SQ_TAKEN_WORDS], value;
    uint32_t count = 0;
    uint64_t start = sq_now_ns();
    while (sq_take(queue, space, 1, &count) == SQ_EMPTY) {
        sq_await_message(queue, 10000000000u);
        CHECK(sq_now_ns() - start < 5000000000u); /* far beyond any scheduling delay */
    }
    memcpy(&value, ((sq_taken *)space)->body, sizeof value);
    return value;
}

static void *play(void *argument) {
    side *s = argument;
    for (uint64_t round = 0; round < s->rounds; round++) {
        if (s->serves) {
            pass(&s->out, round);
        }
        CHECK(receive(&s->in) == round);
        if (!s->serves) {
            pass(&s->out, round);
        }
        if (round % 16 == 0) {
            atomic_store(&s->in.spin_ns, 0); /* no spinning: sleep at once */
        }
    }
    return NULL;
}

int main(void) {
    for (uint32_t mode = 0; mode < 4; mode++) {
        side left = {.rounds = 3000 * MANY, .serves = true};
        side right = {.rounds = 3000 * MANY, .serves = false};
        char there[64], back[64];
        sq_options options = options_of(mode, 1, 64);
        options.recovery_ms = 60000; /* a lost wake-up shall not be mended by a look for the dead */
        snprintf(there, sizeof there, "%s", fresh_name());
        snprintf(back, sizeof back, "%s", fresh_name());
        CHECK(sq_queue_create(&left.out, there, &options) == SQ_OK);
        CHECK(sq_queue_create(&right.out, back, &options) == SQ_OK);
        CHECK(sq_queue_attach(&right.in, there) == SQ_OK);
        CHECK(sq_queue_attach(&left.in, back) == SQ_OK);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, play, &right) == 0);
        play(&left);
        pthread_join(thread, NULL);
        leave_and_unmap(&left.in);
        leave_and_unmap(&left.out);
        leave_and_unmap(&right.in);
        leave_and_unmap(&right.out);
    }
    return 0;
}
