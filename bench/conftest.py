"""Options of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=5, help="repeats of every case")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How often each case is repeated."""
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session", autouse=True)
def ray_ends_with_the_session() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()
