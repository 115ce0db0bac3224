#include "every_write.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGIONS 16

static struct {
    unsigned char *start;
    size_t bytes;
} regions[REGIONS]; /* mappings that are shared with other processes */
static uint64_t count, fatal;
static int with;
static bool armed;

void every_write_arm(uint64_t hit_at, int signal) {
    count = 0;
    fatal = hit_at;
    with = signal;
    armed = true;
}

uint64_t every_write_count(void) {
    armed = false;
    return count;
}

static void point(void) {
    if (armed && ++count == fatal) {
        raise(with);
    }
}

static bool is_shared(const volatile void *address) {
    for (int i = 0; i < REGIONS; i++) {
        if ((size_t)((const unsigned char *)address - regions[i].start) < regions[i].bytes) {
            return true;
        }
    }
    return false;
}

/* ---- what the compiler calls ---- */

void __tsan_init(void) {
}
void __tsan_func_entry(void *caller) {
    (void)caller;
}
void __tsan_func_exit(void) {
}

#define HOOKS(size)                                                                                \
    void __tsan_read##size(void *address) {                                                        \
        (void)address;                                                                             \
    }                                                                                              \
    void __tsan_unaligned_read##size(void *address) {                                              \
        (void)address;                                                                             \
    }                                                                                              \
    void __tsan_volatile_read##size(void *address) {                                               \
        (void)address;                                                                             \
    }                                                                                              \
    void __tsan_write##size(void *address) {                                                       \
        if (is_shared(address)) {                                                                  \
            point();                                                                               \
        }                                                                                          \
    }                                                                                              \
    void __tsan_unaligned_write##size(void *address) {                                             \
        __tsan_write##size(address);                                                               \
    }                                                                                              \
    void __tsan_volatile_write##size(void *address) {                                              \
        __tsan_write##size(address);                                                               \
    }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void *address, size_t bytes) {
    (void)address;
    (void)bytes;
}
void __tsan_write_range(void *address, size_t bytes) {
    (void)bytes;
    __tsan_write1(address);
}

/* An atomic write is a point before and after it: then all that came before is dead with us, or it
 * alone is done. */
#define AROUND(address, operation)                                                                 \
    __typeof__(operation) result;                                                                  \
    bool shared = is_shared(address);                                                              \
    if (shared) {                                                                                  \
        point();                                                                                   \
    }                                                                                              \
    result = operation;                                                                            \
    if (shared) {                                                                                  \
        point();                                                                                   \
    }                                                                                              \
    return result

#define ATOMICS(bits)                                                                              \
    typedef uint##bits##_t u##bits;                                                                \
    u##bits __tsan_atomic##bits##_load(const volatile u##bits *a, int order) {                     \
        (void)order;                                                                               \
        return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                               \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile u##bits *a, u##bits v, int order) {                  \
        (void)order;                                                                               \
        bool shared = is_shared(a);                                                                \
        if (shared) {                                                                              \
            point();                                                                               \
        }                                                                                          \
        __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                  \
        if (shared) {                                                                              \
            point();                                                                               \
        }                                                                                          \
    }                                                                                              \
    u##bits __tsan_atomic##bits##_exchange(volatile u##bits *a, u##bits v, int order) {            \
        (void)order;                                                                               \
        AROUND(a, __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST));                                    \
    }                                                                                              \
    u##bits __tsan_atomic##bits##_fetch_add(volatile u##bits *a, u##bits v, int order) {           \
        (void)order;                                                                               \
        AROUND(a, __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST));                                     \
    }                                                                                              \
    u##bits __tsan_atomic##bits##_fetch_sub(volatile u##bits *a, u##bits v, int order) {           \
        (void)order;                                                                               \
        AROUND(a, __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST));                                     \
    }                                                                                              \
    u##bits __tsan_atomic##bits##_fetch_or(volatile u##bits *a, u##bits v, int order) {            \
        (void)order;                                                                               \
        AROUND(a, __atomic_fetch_or(a, v, __ATOMIC_SEQ_CST));                                      \
    }                                                                                              \
    u##bits __tsan_atomic##bits##_fetch_and(volatile u##bits *a, u##bits v, int order) {           \
        (void)order;                                                                               \
        AROUND(a, __atomic_fetch_and(a, v, __ATOMIC_SEQ_CST));                                     \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile u##bits *a, u##bits *expected,      \
                                                      u##bits v, int order, int failure) {         \
        (void)order;                                                                               \
        (void)failure;                                                                             \
        AROUND(a, __atomic_compare_exchange_n(a, expected, v, false, __ATOMIC_SEQ_CST,             \
                                              __ATOMIC_SEQ_CST));                                  \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile u##bits *a, u##bits *expected,        \
                                                    u##bits v, int order, int failure) {           \
        return __tsan_atomic##bits##_compare_exchange_strong(a, expected, v, order, failure);      \
    }
ATOMICS(8)
ATOMICS(16)
ATOMICS(32)
ATOMICS(64)

/* ---- what the linker sends here (--wrap) ---- */

void *__real_memcpy(void *target, const void *source, size_t bytes);
void *__wrap_memcpy(void *target, const void *source, size_t bytes);
void *__wrap_memcpy(void *target, const void *source, size_t bytes) {
    if (!armed || !is_shared(target)) {
        return __real_memcpy(target, source, bytes);
    }
    point();
    __real_memcpy(target, source, bytes / 2);
    point();
    return (unsigned char *)__real_memcpy((unsigned char *)target + bytes / 2,
                                          (const unsigned char *)source + bytes / 2,
                                          bytes - bytes / 2) -
           bytes / 2;
}

void *__real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    unsigned char *start = __real_mmap(address, bytes, protection, flags, fd, offset);
    for (int i = 0; i < REGIONS && start != MAP_FAILED && fd >= 0; i++) {
        if (regions[i].bytes == 0) {
            regions[i].start = start;
            regions[i].bytes = bytes;
            return start;
        }
    }
    if (start != MAP_FAILED && fd >= 0) {
        abort(); /* more mappings than REGIONS */
    }
    return start;
}

int __real_munmap(void *start, size_t bytes);
int __wrap_munmap(void *start, size_t bytes);
int __wrap_munmap(void *start, size_t bytes) {
    for (int i = 0; i < REGIONS; i++) {
        if (regions[i].start == start) {
            regions[i].bytes = 0;
        }
    }
    return __real_munmap(start, bytes);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    bool noticed = flags & O_CREAT;
    if (noticed) {
        point();
    }
    int fd = __real_open(path, flags, flags & (O_CREAT | O_TMPFILE) ? 0600 : mode);
    if (noticed) {
        point();
    }
    return fd;
}

#define WRAP(name, parameters, arguments)                                                          \
    int __real_##name parameters;                                                                  \
    int __wrap_##name parameters;                                                                  \
    int __wrap_##name parameters {                                                                 \
        point();                                                                                   \
        int result = __real_##name arguments;                                                      \
        point();                                                                                   \
        return result;                                                                             \
    }
WRAP(unlink, (const char *path), (path))
WRAP(linkat, (int from, const char *source, int to, const char *target, int flags),
     (from, source, to, target, flags))
WRAP(fallocate, (int fd, int mode, off_t offset, off_t bytes), (fd, mode, offset, bytes))

int __real_fcntl(int fd, int operation, ...);
int __wrap_fcntl(int fd, int operation, ...);
int __wrap_fcntl(int fd, int operation, ...) {
    va_list rest;
    va_start(rest, operation);
    struct flock *lock = va_arg(rest, struct flock *);
    va_end(rest);
    if (operation != F_OFD_SETLK) {
        return __real_fcntl(fd, operation, lock);
    }
    point();
    int result = __real_fcntl(fd, operation, lock);
    point();
    return result;
}
