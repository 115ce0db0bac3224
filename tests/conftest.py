"""Options and checks of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of stress tests")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return bool(request.config.getoption("--long"))


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("sagequeue-")}


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_in_shared_memory() -> Iterator[None]:
    """The suite fails if a segment that it made is left when it ends."""
    before = segments()
    yield
    left = segments() - before
    assert not left


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray on this machine, for as long as the suite runs."""
    import ray

    # "local": not one that another test has started
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
