/* Names, attaching, the participant table, roles, forks: who may come, and what stays when all
 * have gone. */
#include "messages.h"

#include <fcntl.h>
#include <sys/stat.h>

/* ---- creating ---- */

static void options_are_checked(void) {
    sq_queue queue;
    const sq_options good = options_of(MPMC, 0, 64);
    sq_options bad[14];
    for (int i = 0; i < 14; i++) {
        bad[i] = good;
    }
    bad[0].capacity = 63;
    bad[1].capacity = 1;
    bad[2].capacity = 2 * SQ_CAPACITY_MAX;
    bad[3].maxsize = 65;
    bad[4].slot_bytes = 100;
    bad[5].slot_bytes = 0;
    bad[6].slot_bytes = 2 * SQ_SLOT_MAX;
    bad[7].participants = 0;
    bad[8].participants = SQ_PARTICIPANTS_MAX + 1;
    bad[9].mode = 4;
    bad[10].recovery_ms = 0;
    bad[11].pool_bytes = SQ_POOL_MIN - 1;
    bad[12].pool_bytes = SQ_POOL_MAX + 1;
    memset(bad[13].codec, 'x', sizeof bad[13].codec);
    for (int i = 0; i < 14; i++) {
        CHECK(sq_queue_create(&queue, fresh_name(), &bad[i]) == SQ_BAD_OPTION);
    }
}

static void names_are_checked(void) {
    sq_queue queue;
    sq_options options = options_of(MPMC, 0, 64);
    char name[SQ_FILE_NAME_MAX + 100];
    memset(name, 'x', sizeof name);
    name[SQ_QUEUE_NAME_MAX + 1] = '\0';
    CHECK(sq_queue_create(&queue, name, &options) == SQ_BAD_OPTION);
    CHECK(sq_queue_attach(&queue, name) == SQ_BAD_OPTION);
    CHECK(sq_queue_create(&queue, "", &options) == SQ_BAD_OPTION);
    CHECK(sq_queue_create(&queue, "../shm/x", &options) == SQ_BAD_OPTION);
    CHECK(sq_queue_attach(&queue, fresh_name()) == SQ_GONE);
}

static void the_largest_queue_is_laid_out(void) {
    sq_queue queue, other;
    sq_options options = options_of(MPMC, 0, SQ_CAPACITY_MAX);
    /* ThreadSanitizer leaves too little of the address space, qemu has a record of each page */
#if !SQ_THREAD_SANITIZER && !SQ_EMULATED
    options.pool_bytes = SQ_POOL_MAX;
#endif
    options.slot_bytes = SQ_SLOT_MAX;
    options.participants = SQ_PARTICIPANTS_MAX;
    create_with(&queue, options);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    CHECK(sq_chunk_largest(&other) >= options.pool_bytes / 2);
    close_queue(&other);
    close_queue(&queue);
}

static void a_name_belongs_to_one_queue(void) {
    sq_queue queue, other;
    sq_options options = options_of(MPMC, 0, 64);
    create_with(&queue, options);
    CHECK(sq_queue_create(&other, queue.file_name, &options) == SQ_EXISTS);
    CHECK(put_value(&queue, 1) == SQ_OK);
    close_queue(&queue);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_GONE);
    CHECK(sq_queue_create(&other, queue.file_name, &options) == SQ_OK);
    CHECK(sq_size(&other) == 0);
    close_queue(&other);
}

/* ---- attaching to what is no queue ---- */

static int open_file(const char *name, int flags) {
    char path[300];
    snprintf(path, sizeof path, "/dev/shm/%s", name);
    int fd = open(path, flags, 0600);
    CHECK(fd >= 0);
    return fd;
}

/* Attaching to it, and creating in its place, both answer `wanted`. */
static void expect_refused(const char *name, sq_status wanted) {
    sq_queue queue;
    sq_options options = options_of(MPMC, 0, 64);
    CHECK(sq_queue_attach(&queue, name) == wanted);
    CHECK(sq_queue_create(&queue, name, &options) == wanted);
}

static void what_is_no_queue_is_refused(void) {
    char name[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    int fd = open_file(name, O_CREAT | O_EXCL | O_RDWR);
    expect_refused(name, SQ_INCOMPATIBLE); /* empty */
    CHECK(ftruncate(fd, sizeof(sq_header) - 1) == 0);
    expect_refused(name, SQ_INCOMPATIBLE);
    CHECK(ftruncate(fd, 1 << 20) == 0);
    expect_refused(name, SQ_INCOMPATIBLE); /* zeros */
    for (off_t at = 0; at < 1 << 14; at += 8) {
        uint64_t noise = ((uint64_t)at + 1) * UINT64_C(0x9e3779b97f4a7c15);
        CHECK(pwrite(fd, &noise, sizeof noise, at) == sizeof noise);
    }
    expect_refused(name, SQ_INCOMPATIBLE);
    CHECK(fchmod(fd, 0644) == 0);
    expect_refused(name, SQ_FOREIGN);
    CHECK(fchmod(fd, 0600) == 0 && close(fd) == 0);

    char path[300], link_name[70], link_path[300];
    snprintf(link_name, sizeof link_name, "%s", fresh_name());
    snprintf(path, sizeof path, "/dev/shm/%s", name);
    snprintf(link_path, sizeof link_path, "/dev/shm/%s", link_name);
    CHECK(symlink(path, link_path) == 0);
    expect_refused(link_name, SQ_FOREIGN);
    CHECK(unlink(link_path) == 0 && unlink(path) == 0);
}

/* Change each word of a good header in turn. */
static void every_word_of_the_header_is_checked(void) {
    sq_queue queue, other;
    sq_header header;
    create_with(&queue, options_of(MPMC, 0, 64));
    int fd = open_file(queue.file_name, O_RDWR);
    CHECK(pread(fd, &header, sizeof header, 0) == sizeof header);
    static const uint64_t noises[] = {0, 1, UINT32_MAX, UINT64_MAX, UINT64_C(1) << 63, 4097};
    static const size_t unchecked[] = {offsetof(sq_header, chunks), offsetof(sq_header, birth),
                                       offsetof(sq_header, recovery_ms), offsetof(sq_header, mode),
                                       offsetof(sq_header, maxsize)};
    for (size_t at = 0; at < offsetof(sq_header, codec); at += 4) {
        for (unsigned n = 0; n < sizeof noises / sizeof *noises; n++) {
            if (memcmp((char *)&header + at, &noises[n], 4) == 0) {
                continue;
            }
            CHECK(pwrite(fd, &noises[n], 4, (off_t)at) == 4);
            sq_status status = sq_queue_attach(&other, queue.file_name);
            if (status == SQ_OK) {
                bool free_to_change = false;
                for (unsigned u = 0; u < sizeof unchecked / sizeof *unchecked; u++) {
                    free_to_change |= at - unchecked[u] < 8;
                }
                CHECK(free_to_change);
                close_queue(&other);
            } else {
                CHECK(status == SQ_INCOMPATIBLE || status == SQ_CORRUPT);
            }
            CHECK(pwrite(fd, (char *)&header + at, 4, (off_t)at) == 4);
        }
    }
    uint32_t version = SQ_LAYOUT_VERSION + 1;
    CHECK(pwrite(fd, &version, 4, offsetof(sq_header, version)) == 4);
    expect_refused(queue.file_name, SQ_INCOMPATIBLE);
    version = SQ_LAYOUT_VERSION;
    CHECK(pwrite(fd, &version, 4, offsetof(sq_header, version)) == 4);
    CHECK(ftruncate(fd, (off_t)queue.segment.bytes - 4096) == 0);
    expect_refused(queue.file_name, SQ_CORRUPT);
    CHECK(ftruncate(fd, (off_t)queue.segment.bytes) == 0);
    close(fd);
    close_queue(&queue);
}

/* ---- the participant table ---- */

static void a_full_table_refuses(void) {
    sq_queue queue, second, third, fourth;
    sq_options options = options_of(MPMC, 0, 64);
    options.participants = 3;
    create_with(&queue, options);
    CHECK(sq_queue_attach(&second, queue.file_name) == SQ_OK);
    CHECK(sq_queue_attach(&third, queue.file_name) == SQ_OK);
    CHECK(sq_queue_attach(&fourth, queue.file_name) == SQ_TABLE_FULL);
    CHECK(second.id != third.id && second.id != queue.id && third.id != queue.id);
    close_queue(&second);
    CHECK(sq_queue_attach(&fourth, queue.file_name) == SQ_OK);
    close_queue(&fourth);
    close_queue(&third);
    close_queue(&queue);
}

static void attach_and_put(void *argument) {
    sq_queue *own = calloc(1, sizeof *own);
    CHECK(sq_queue_attach(own, ((sq_queue *)argument)->file_name) == SQ_OK);
    CHECK(put_value(own, 7) == SQ_OK);
}

static void a_table_full_of_the_dead_does_not(void) {
    sq_queue queue, second, third, fourth;
    uint64_t value;
    sq_options options = options_of(MPMC, 0, 64);
    options.participants = 3;
    create_with(&queue, options);
    for (int round = 0; round < 3; round++) {
        run_and_kill(attach_and_put, &queue);
        run_and_kill(attach_and_put, &queue);
        CHECK(sq_queue_attach(&second, queue.file_name) == SQ_OK);
        CHECK(sq_queue_attach(&third, queue.file_name) == SQ_OK);
        CHECK(sq_queue_attach(&fourth, queue.file_name) == SQ_TABLE_FULL);
        CHECK(take_value(&queue, &value) == SQ_OK && take_value(&queue, &value) == SQ_OK);
        CHECK(value == 7 && take_value(&queue, &value) == SQ_EMPTY);
        close_queue(&second);
        close_queue(&third);
    }
    close_queue(&queue);
}

/* ---- roles ---- */

static void a_role_has_one_bearer(void) {
    sq_queue queue, other;
    create_with(&queue, options_of(SPSC, 0, 64));
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    enrol(&queue);
    enrol(&queue); /* again is the same */
    CHECK(sq_queue_enrol_producer(&other) == SQ_ROLE_TAKEN && !other.producing);
    CHECK(sq_queue_enrol_consumer(&other) == SQ_ROLE_TAKEN && !other.consuming);
    close_queue(&queue);
    enrol(&other);
    close_queue(&other);

    create_with(&queue, options_of(MPMC, 0, 64));
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    enrol(&queue);
    enrol(&other);
    close_queue(&other);
    close_queue(&queue);
}

static void take_both_roles(void *argument) {
    sq_queue *own = calloc(1, sizeof *own);
    CHECK(sq_queue_attach(own, ((sq_queue *)argument)->file_name) == SQ_OK);
    enrol(own);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK(put_value(own, i) == SQ_OK);
    }
}

static void the_role_of_a_dead_one_is_free(void) {
    sq_queue queue;
    uint64_t value;
    create_with(&queue, options_of(SPSC, 0, 64));
    run_and_kill(take_both_roles, &queue);
    enrol(&queue);
    CHECK(put_value(&queue, 3) == SQ_OK);
    for (uint64_t i = 0; i < 4; i++) {
        CHECK(take_value(&queue, &value) == SQ_OK && value == i);
    }
    close_queue(&queue);
}

/* ---- the last one out ---- */

typedef struct race {
    char name[64];
    _Atomic uint32_t created, attached, gone;
} race;

/* Others may have filled it while we were not running. */
static void put_or_find_full(sq_queue *queue) {
    sq_status status = put_value(queue, 1);
    CHECK(status == SQ_OK || status == SQ_FULL);
}

static void create_and_leave(void *argument) {
    race *r = argument;
    sq_options options = options_of(MPMC, 0, 64);
    for (int i = 0; i < 300; i++) {
        sq_queue queue;
        sq_status status = sq_queue_create(&queue, r->name, &options);
        CHECK(status == SQ_OK || status == SQ_EXISTS || status == SQ_BUSY);
        if (status == SQ_OK) {
            atomic_fetch_add(&r->created, 1);
            put_or_find_full(&queue);
            close_queue(&queue);
        }
    }
}

static void attach_and_leave(void *argument) {
    race *r = argument;
    for (int i = 0; i < 1000; i++) {
        sq_queue queue;
        sq_status status = sq_queue_attach(&queue, r->name);
        CHECK(status == SQ_OK || status == SQ_GONE);
        atomic_fetch_add(status == SQ_OK ? &r->attached : &r->gone, 1);
        if (status == SQ_OK) {
            /* as long as we are in it the name is this queue's */
            CHECK(sq_segment_has_name(&queue.segment, r->name));
            put_or_find_full(&queue);
            close_queue(&queue);
        }
    }
}

static void comings_and_goings_race(void) {
    race *r = shared_memory(sizeof *r);
    pid_t children[4];
    snprintf(r->name, sizeof r->name, "%s", fresh_name());
    for (int i = 0; i < 4; i++) {
        children[i] = start_process(i < 2 ? create_and_leave : attach_and_leave, r);
    }
    for (int i = 0; i < 4; i++) {
        expect_exit(children[i]);
    }
    CHECK(atomic_load(&r->created) > 0);
    CHECK(count_files(r->name, false) == 0);
}

static void create_with_an_external(void *argument) {
    sq_queue *own = calloc(1, sizeof *own);
    sq_options options = options_of(SPSC, 0, 64);
    uint32_t chunk;
    unsigned char *data;
    CHECK(sq_queue_create(own, argument, &options) == SQ_OK);
    CHECK(sq_external_acquire(own, 2 << 20, &chunk, &data) == SQ_OK);
}

static void a_name_left_by_the_dead_is_free(void) {
    sq_queue queue, other;
    sq_options options = options_of(MPMC, 0, 64);
    uint32_t chunk;
    unsigned char *data;
    char name[64];
    snprintf(name, sizeof name, "%s", fresh_name());
    run_and_kill(create_with_an_external, name);
    CHECK(count_files(name, false) == 2);
    CHECK(sq_queue_create(&queue, name, &options) == SQ_OK);
    CHECK(count_files(name, false) == 1);
    CHECK(sq_queue_create(&other, name, &options) == SQ_EXISTS);
    CHECK(sq_external_acquire(&queue, 2 << 20, &chunk, &data) == SQ_OK);
    sq_external_unmap(data, 2 << 20);
    close_queue(&queue);
}

static void the_last_survivor_unlinks(void) {
    sq_queue queue;
    create_with(&queue, options_of(MPMC, 0, 64));
    run_and_kill(attach_and_put, &queue);
    close_queue(&queue); /* the dead one does not keep the name */
    CHECK(count_files(queue.file_name, false) == 0);
}

/* ---- forks ---- */

typedef struct family {
    sq_queue queue;
    uint32_t chunk;
    int ready[2];
    int go[2];
} family;

static void open_family(family *f, sq_options options) {
    memset(f, 0, sizeof *f);
    create_with(&f->queue, options);
    CHECK(pipe(f->ready) == 0 && pipe(f->go) == 0);
}

static void tell(const int pipe[2]) {
    CHECK(write(pipe[1], "x", 1) == 1);
}

static void wait_for(const int pipe[2]) {
    char byte;
    CHECK(read(pipe[0], &byte, 1) == 1);
}

static void act_as_child(forked *child) {
    family *f = child->argument;
    uint32_t parent = f->queue.id;
    CHECK(sq_queue_fork_child(&f->queue, child->invitation) == SQ_OK && f->queue.id != parent);
    CHECK(sq_identity_pid(atomic_load(&f->queue.self->identity)) == (uint32_t)getpid());
    CHECK(sq_queue_enrol_producer(&f->queue) == SQ_ROLE_TAKEN);
    sq_chunk_release(&f->queue, f->chunk); /* the parent's: nothing happens */
    sq_queue_leave(&f->queue);
}

static void a_child_is_a_participant_of_its_own(void) {
    family f;
    uint64_t value;
    open_family(&f, options_of(SPSC, 0, 64));
    enrol(&f.queue);
    CHECK(sq_chunk_acquire(&f.queue, 100, &f.chunk) == SQ_OK);
    pid_t child = fork_with(&f.queue, act_as_child, &f);
    CHECK(put_value(&f.queue, 1) == SQ_OK && take_value(&f.queue, &value) == SQ_OK);
    expect_exit(child);
    CHECK(chunks_in_use(&f.queue) == 1);
    sq_chunk_release(&f.queue, f.chunk);
    CHECK(chunks_in_use(&f.queue) == 0);
    CHECK(recover_now(&f.queue) == 0);
    close_queue(&f.queue);
}

/* The parent leaves before the child has come to act at all: nothing is lost, not even what lies in
 * a segment of its own. */
static void outlive_the_parent(forked *child) {
    family *f = child->argument;
    message m;
    wait_for(f->go);
    CHECK(sq_queue_fork_child(&f->queue, child->invitation) == SQ_OK);
    CHECK(count_files(f->queue.file_name, false) == 2);
    CHECK(take_message(&f->queue, &m) == 0 && m.number == 5);
    sq_queue_leave(&f->queue);
    CHECK(count_files(f->queue.file_name, false) == 0);
}

static void a_child_outlives_a_parent_that_leaves_at_once(void) {
    family f;
    open_family(&f, options_of(MPMC, 0, 64));
    put_messages(&f.queue, 0, 5, 1, &(bodies){"external", 1000, 2000, true});
    pid_t child = fork_with(&f.queue, outlive_the_parent, &f);
    close_queue(&f.queue);
    tell(f.go);
    expect_exit(child);
}

static void take_part_and_wait(forked *child) {
    family *f = child->argument;
    prctl(PR_SET_PDEATHSIG, 0);
    CHECK(sq_queue_fork_child(&f->queue, child->invitation) == SQ_OK);
    tell(f->ready);
    wait_for(f->go);
    sq_queue_leave(&f->queue);
    tell(f->ready);
}

static void fork_and_die(void *argument) {
    family *f = argument;
    sq_queue own;
    CHECK(sq_queue_attach(&own, f->queue.file_name) == SQ_OK);
    f->queue = own;
    fork_with(&f->queue, take_part_and_wait, f);
    wait_for(f->ready);
}

/* A child does not keep its dead parent's entry alive, nor the other way round. */
static void a_parent_that_dies_is_told_from_its_child(void) {
    family f;
    sq_queue queue;
    open_family(&f, options_of(MPMC, 0, 64));
    queue = f.queue;
    run_and_kill(fork_and_die, &f);
    CHECK(recover_now(&queue) == 1);
    tell(f.go);
    wait_for(f.ready);
    CHECK(recover_now(&queue) == 0);
    close_queue(&queue);
}

static void have_no_entry(forked *child) {
    sq_queue *queue = child->queue;
    CHECK(sq_queue_fork_child(queue, child->invitation) == SQ_TABLE_FULL);
    CHECK(queue->self == NULL && queue->id == 0);
    sq_queue_unmap(queue);
}

static void a_child_for_which_there_is_no_entry(void) {
    sq_queue first, second;
    uint64_t value;
    sq_options options = options_of(MPMC, 0, 64);
    options.participants = 2;
    create_with(&first, options);
    CHECK(sq_queue_attach(&second, first.file_name) == SQ_OK);
    expect_exit(fork_with(&first, have_no_entry, NULL));
    CHECK(put_value(&first, 1) == SQ_OK && take_value(&first, &value) == SQ_OK);
    close_queue(&second);
    close_queue(&first);
}

static void execute_another_program(forked *child) {
    CHECK(sq_queue_fork_child(child->queue, child->invitation) == SQ_OK);
    execl("/bin/sleep", "sleep", "100", (char *)NULL);
    abort();
}

/* A program that the process executes does not take part. */
static void who_executes_another_program_has_left(void) {
    sq_queue queue;
    create_with(&queue, options_of(MPMC, 0, 64));
    pid_t child = fork_with(&queue, execute_another_program, NULL);
    uint32_t found = 0;
    while (found == 0) {
        CHECK(sq_recover(&queue, &found) == SQ_OK);
    }
    close_queue(&queue);
    CHECK(count_files(queue.file_name, false) == 0);
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
}

/* ---- invitations ---- */

static void accept_and_leave(void *argument) {
    family *f = argument;
    sq_queue own;
    uint64_t value;
    const char *name = f->queue.file_name;
    wait_for(f->go);
    CHECK(sq_queue_accept(&own, name, f->ready[0]) == SQ_OK);
    CHECK(take_value(&own, &value) == SQ_OK && value == 3);
    close_queue(&own);
    CHECK(count_files(name, false) == 0);
}

static void an_invitation_keeps_the_queue(void) {
    family f;
    open_family(&f, options_of(MPMC, 0, 64));
    CHECK(put_value(&f.queue, 3) == SQ_OK);
    f.ready[0] = sq_queue_invite(&f.queue, false);
    CHECK(f.ready[0] >= 0);
    pid_t child = start_process(accept_and_leave, &f);
    close(f.ready[0]);
    close_queue(&f.queue);
    CHECK(count_files(f.queue.file_name, false) == 1);
    tell(f.go);
    expect_exit(child);
}

static void the_last_invitation_removes_the_queue(void) {
    sq_queue queue;
    create_with(&queue, options_of(MPMC, 0, 64));
    int invitation = sq_queue_invite(&queue, false);
    CHECK(invitation >= 0);
    sq_queue_leave(&queue);
    CHECK(count_files(queue.file_name, false) == 1);
    sq_queue_end_invitation(&queue, invitation);
    CHECK(count_files(queue.file_name, false) == 0);
    sq_queue_unmap(&queue);
}

/* Who finds the table full was a member for a moment, in which the others may all have left. */
static void a_newcomer_in_vain_removes_the_queue(void) {
    sq_queue queue, second, newcomer;
    sq_options options = options_of(MPMC, 0, 64);
    options.participants = 2;
    create_with(&queue, options);
    CHECK(sq_queue_attach(&second, queue.file_name) == SQ_OK);
    int fd;
    CHECK(sq_segment_open(queue.file_name, &fd) == SQ_OK);
    CHECK(sq_lock_try(fd, SQ_LOCK_MEMBERS, SQ_LOCK_SHARED) == SQ_OK);
    CHECK(sq_participant_enter(&queue) == SQ_TABLE_FULL);
    close_queue(&second);
    close_queue(&queue);
    CHECK(count_files(queue.file_name, false) ==
          1); /* the descriptor with the members' lock keeps it */
    close(fd);
    CHECK(sq_queue_attach(&newcomer, queue.file_name) == SQ_OK);
    close_queue(&newcomer);
    CHECK(count_files(queue.file_name, false) == 0);
}

/* A child that knows nothing of the queue, as one that a library forks, does not keep alive what
 * its parent had locked, not even what it was about to lock. */
static void inherit_and_wait(void *argument) {
    wait_for(((family *)argument)->go);
}

static void lock_all_and_die(void *argument) {
    family *f = argument;
    static sq_queue own;
    CHECK(sq_queue_attach(&own, f->queue.file_name) == SQ_OK);
    /* the descriptor of one that is about to take part */
    int entering = sq_segment_reopen(&own.segment);
    CHECK(entering >= 0 && sq_inherited_add(entering, false));
    CHECK(sq_lock_try(entering, SQ_LOCK_MEMBERS, SQ_LOCK_SHARED) == SQ_OK);
    CHECK(sq_lock_try(own.segment.fd, SQ_LOCK_RECOVERY, SQ_LOCK_EXCLUSIVE) == SQ_OK);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, 0);
        tell(f->ready);
        inherit_and_wait(f);
        _exit(0);
    }
    wait_for(f->ready);
}

static void a_child_that_knows_nothing_keeps_nothing(void) {
    family f;
    open_family(&f, options_of(MPMC, 0, 64));
    run_and_kill(lock_all_and_die, &f);
    CHECK(recover_now(&f.queue) == 1);
    tell(f.go);
    close_queue(&f.queue);
    CHECK(count_files(f.queue.file_name, false) == 0);
}

/* Two threads fork at the same time: neither child has the other's invitation. */
static void *fork_in_a_thread(void *argument) {
    family *f = argument;
    pid_t child = fork_with(&f->queue, take_part_and_wait, f);
    f->chunk = (uint32_t)child;
    return NULL;
}

static void the_invitations_of_two_forks_are_apart(void) {
    family f;
    pthread_t thread;
    open_family(&f, options_of(MPMC, 0, 64));
    int other = sq_queue_invite(&f.queue, true); /* by this thread, which has not forked */
    CHECK(other >= 0 && pthread_create(&thread, NULL, fork_in_a_thread, &f) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    wait_for(f.ready);
    close_queue(&f.queue);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)f.chunk, other);
    CHECK(access(path, F_OK) != 0); /* the child of the other thread does not hold it */
    close(other);
    tell(f.go);
    expect_exit((pid_t)f.chunk);
    CHECK(count_files(f.queue.file_name, false) == 0);
}

/* A child that dies at once is seen to be dead, though its parent has not come to end its copy of
 * the invitation: a message that it had claimed comes again. */
static void claim_as_child_and_die(forked *child) {
    uint64_t space[SQ_TAKEN_WORDS];
    uint32_t count;
    CHECK(sq_queue_fork_child(child->queue, child->invitation) == SQ_OK);
    CHECK(sq_claim(child->queue, space, 1, &count) == SQ_OK);
    raise(SIGKILL);
}

static void a_childs_death_is_not_hidden_by_its_parent(void) {
    sq_queue queue;
    uint64_t value;
    message m;
    create_with(&queue, options_of(MPMC, 0, 64));
    put_messages(&queue, 0, 7, 1, &INLINE_BODIES);
    int invitation = sq_queue_invite(&queue, true);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        claim_as_child_and_die(&(forked){.queue = &queue, .invitation = invitation});
    }
    CHECK(waitpid(pid, NULL, 0) == pid);
    sq_shutdown(&queue, false);
    CHECK(take_message(&queue, &m) == 1 && m.number == 7);
    CHECK(take_value(&queue, &value) == SQ_CLOSED);
    sq_queue_end_invitation(&queue, invitation);
    close_queue(&queue);
}

/* ---- who lives ---- */

static void *outlast_the_first_thread(void *argument) {
    char byte;
    (void)!read(*(int *)argument, &byte, 1);
    exit(0);
}

static void end_the_first_thread(void *argument) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, outlast_the_first_thread, argument) == 0);
    pthread_exit(NULL);
}

static char state_of(pid_t pid) {
    char path[64], text[256], *state;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(length > 0);
    text[length] = '\0';
    state = strrchr(text, ')');
    CHECK(state != NULL);
    return state[2];
}

static void attach_and_end_the_first_thread(void *argument) {
    family *f = argument;
    static sq_queue own;
    CHECK(sq_queue_attach(&own, f->queue.file_name) == SQ_OK);
    tell(f->ready);
    end_the_first_thread(&f->go[0]);
}

static void attach_and_end(void *argument) {
    sq_queue own;
    CHECK(sq_queue_attach(&own, ((family *)argument)->queue.file_name) == SQ_OK);
}

static void the_living_are_told_from_the_dead(void) {
    family f;
    siginfo_t info;
    open_family(&f, options_of(MPMC, 0, 64));
    CHECK(sq_participant_lives(&f.queue, 0) && !sq_participant_is_dead(&f.queue, 0));
    CHECK(!sq_participant_lives(&f.queue, 1) && !sq_participant_is_dead(&f.queue, 1));

    pid_t child = start_process(attach_and_end, &f); /* it ends without leaving */
    CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0);
    CHECK(state_of(child) == 'Z' && sq_participant_is_dead(&f.queue, 1)); /* a zombie */
    expect_exit(child);
    CHECK(recover_now(&f.queue) == 1);

    child = start_process(attach_and_end_the_first_thread, &f);
    wait_for(f.ready);
    while (state_of(child) != 'Z') {
        usleep(1000);
    }
    CHECK(sq_participant_lives(&f.queue, 1));
    tell(f.go);
    expect_exit(child);
    CHECK(recover_now(&f.queue) == 1);
    close_queue(&f.queue);
}

/* A participant that cannot tell must not conclude that another one is dead: here the descriptor is
 * gone, or stands for another file. */
static void a_lost_descriptor_makes_nobody_dead(void) {
    sq_queue queue, other;
    uint32_t found;
    uint64_t value;
    create_with(&queue, options_of(MPMC, 0, 64));
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK);
    int lost = other.segment.fd;
    close(lost);
    CHECK(!sq_participant_is_dead(&other, 0) && sq_recover(&other, &found) == SQ_SYSTEM);
    int null = open("/dev/null", O_RDWR);
    CHECK(dup2(null, lost) == lost);
    CHECK(!sq_participant_is_dead(&other, 0) && sq_recover(&other, &found) == SQ_SYSTEM);
    sq_shutdown(&other, false);
    CHECK(take_value(&other, &value) == SQ_SYSTEM); /* nor is a queue at its end for it */
    CHECK(!sq_participant_is_dead(&queue, 1));      /* and who lost it still lives */
    sq_queue_leave(&other);
    sq_queue_unmap(&other);
    CHECK(fcntl(lost, F_GETFD) >= 0); /* what stands there now is not ours to close */
    close_queue(&queue);
}

/* The number of a descriptor that was closed behind its handle's back goes to another handle of the
 * same queue: the first one must not use it, nor close it. */
static void a_lost_descriptor_is_anothers(void) {
    sq_queue queue, other;
    uint32_t found;
    create_with(&queue, options_of(MPMC, 0, 64));
    int lost = queue.segment.fd;
    close(lost);
    CHECK(sq_queue_attach(&other, queue.file_name) == SQ_OK && other.segment.fd == lost);
    CHECK(sq_recover(&queue, &found) == SQ_SYSTEM);
    sq_queue_leave(&queue);
    sq_queue_unmap(&queue);
    CHECK(sq_recover(&other, &found) == SQ_OK);
    close_queue(&other);
    CHECK(count_files(queue.file_name, false) == 0);
}

int main(void) {
    static const test tests[] = {
        TEST(options_are_checked),
        TEST(names_are_checked),
        TEST(the_largest_queue_is_laid_out),
        TEST(a_name_belongs_to_one_queue),
        TEST(what_is_no_queue_is_refused),
        TEST(every_word_of_the_header_is_checked),
        TEST(a_full_table_refuses),
        TEST(a_table_full_of_the_dead_does_not),
        TEST(a_role_has_one_bearer),
        TEST(the_role_of_a_dead_one_is_free),
        TEST(comings_and_goings_race),
        TEST(a_name_left_by_the_dead_is_free),
        TEST(the_last_survivor_unlinks),
        TEST(a_child_is_a_participant_of_its_own),
        TEST(a_child_outlives_a_parent_that_leaves_at_once),
        TEST(a_parent_that_dies_is_told_from_its_child),
        TEST(a_child_for_which_there_is_no_entry),
        TEST(who_executes_another_program_has_left),
        TEST(an_invitation_keeps_the_queue),
        TEST(the_last_invitation_removes_the_queue),
        TEST(a_newcomer_in_vain_removes_the_queue),
        TEST(a_child_that_knows_nothing_keeps_nothing),
        TEST(the_invitations_of_two_forks_are_apart),
        TEST(a_childs_death_is_not_hidden_by_its_parent),
        TEST(the_living_are_told_from_the_dead),
        TEST(a_lost_descriptor_makes_nobody_dead),
        TEST(a_lost_descriptor_is_anothers),
    };
    return RUN_TESTS(tests);
}
