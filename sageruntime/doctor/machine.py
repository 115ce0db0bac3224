"""The machine: system, futexes, shared memory, processes."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from pathlib import Path

from sageruntime.doctor.check import Check, failed, ok, warning

_SHARED_MEMORY = Path("/dev/shm")
_MIB = 1 << 20

# What the queues of a small job take, and what those of a large one may.
_LEAST_SHARED_MEMORY = 16 * _MIB
_GOOD_SHARED_MEMORY = 256 * _MIB

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX_WAKE = 1


def system() -> Check:
    """A 64-bit Linux."""
    uname = os.uname()
    found = f"{uname.sysname} {uname.release} {uname.machine}, Python {platform.python_version()}"
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return failed("system", found, "use 64-bit Linux and a 64-bit Python; nothing else works")
    return ok("system", found)


def futex() -> Check:
    """Futexes that processes share, by which they wait for each other."""
    number = _SYS_FUTEX.get(platform.machine())
    if number is None:
        return warning(
            "futex",
            f"not looked at on {platform.machine()}",
            "run the tests of the queue: python -m pytest tests/sage",
        )
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_uint32()
    if libc.syscall(number, ctypes.byref(word), _FUTEX_WAKE, 1, None, None, 0) < 0:
        return failed(
            "futex",
            f"the system call is refused: {os.strerror(ctypes.get_errno())}",
            "allow futex in the seccomp profile of the sandbox or container",
        )
    return ok("futex", "usable")


def shared_memory(directory: Path = _SHARED_MEMORY) -> Check:
    """The directory that queues between processes are in."""
    name = "shared memory"
    if not directory.is_dir():
        return failed(
            name,
            f"{directory} is not there",
            f"mount -t tmpfs -o mode=1777 tmpfs {directory}",
        )
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 4096)
        finally:
            os.close(descriptor)
    except OSError as error:
        return failed(name, f"{directory} takes no file: {error.strerror}", _REMEDIES.get(
            error.errno or 0, f"mount -t tmpfs -o mode=1777 tmpfs {directory}"
        ))  # fmt: skip
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    size = status.f_blocks * status.f_frsize
    found = f"{directory} has {free // _MIB:,} of {size // _MIB:,} MiB free"
    if free < _LEAST_SHARED_MEMORY:
        return failed(name, found, _MORE_SHARED_MEMORY)
    if free < _GOOD_SHARED_MEMORY:
        return warning(name, found, _MORE_SHARED_MEMORY)
    return ok(name, found)


def process_list() -> Check:
    """``/proc``, by which files are opened again and processes are measured."""
    name = "process list"
    namespace = _read_link("/proc/self/ns/pid")
    seen = _read_link("/proc/self")
    if seen != str(os.getpid()):
        return failed(
            name,
            f"/proc shows this process as {seen or 'nothing'}, and it is {os.getpid()}",
            "mount the proc of this pid namespace: unshare --mount-proc, or mount -t proc proc "
            "/proc",
        )
    return ok(name, namespace)


_MORE_SHARED_MEMORY = (
    "mount -o remount,size=2G /dev/shm, or docker run --shm-size=2g, and remove what is left "
    "over: sagert queues prune"
)
_REMEDIES = {
    errno.ENOSPC: _MORE_SHARED_MEMORY,
    errno.EACCES: "chmod 1777 /dev/shm",
    errno.EROFS: "mount -o remount,rw /dev/shm",
}


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
