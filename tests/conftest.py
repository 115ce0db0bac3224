"""Options and checks of the whole suite."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sagequeue import QueueNotFound, inspect_queue

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of stress tests")


# Ray would kill a test's workers when other programs fill the memory, and has them yield to other
# programs (nice 15): beside busy ones they get hardly any time.
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 - its name
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


# The same examples in every run, however long each takes: a busy machine finds no other faults.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Mount a /dev/shm of the suite's own, for this process and all that it starts.

    So queues of other programs, and of another run of the suite, are not seen here, and a test that
    prunes queues does not touch theirs. Where the kernel does not allow it, /dev/shm is shared.
    """
    libc = ctypes.CDLL(None)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)) != 0:
        return
    if user:
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    # private first: otherwise everybody would get the mount
    if libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0:
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV, None)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("sagequeue-")}


def of_another_program(segment: str) -> bool:
    """Whether somebody else takes part in it, which is possible where /dev/shm is shared."""
    name = segment.removeprefix("sagequeue-").partition(".")[0]
    try:
        return any(pid != os.getpid() for pid in inspect_queue(name).pids)
    except QueueNotFound:
        return True  # its program has just removed it


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_in_shared_memory() -> Iterator[None]:
    """The suite fails if a segment that it made is left when it ends."""
    before = segments()
    yield
    left = {segment for segment in segments() - before if not of_another_program(segment)}
    assert not left


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray on this machine, for as long as the suite runs."""
    import ray

    # "local": not one that another test has started
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
