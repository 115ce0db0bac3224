"""Where the tests of the runtime run their tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import in_other_thread

from sageruntime import BaseTask, LocalTask
from sageruntime.task.process_task import ProcessTask
from sageruntime.task.ray_task import RayTask


@pytest.fixture(params=["thread", "process", "ray"])
def host(request: pytest.FixtureRequest) -> Any:
    """Each host, as stages name it."""
    return _with_ray(request)


@pytest.fixture(params=["process", "ray"])
def far_host(request: pytest.FixtureRequest) -> Any:
    """Each host that is another process."""
    return _with_ray(request)


@pytest.fixture(params=[LocalTask, ProcessTask, RayTask], ids=lambda kind: kind.__name__)
def task_class(request: pytest.FixtureRequest) -> Any:
    """Each type of task."""
    return _with_ray(request)


@pytest.fixture(params=[ProcessTask, RayTask], ids=lambda kind: kind.__name__)
def far_task_class(request: pytest.FixtureRequest) -> Any:
    """Each type of task that runs in another process."""
    return _with_ray(request)


@pytest.fixture
def tidy() -> Iterator[Callable[[Any], Any]]:
    """Takes tasks that are cleaned up when the test has ended, and returns them."""
    tasks: list[BaseTask] = []

    def keep(task: Any) -> Any:
        tasks.append(task)
        return task

    yield keep
    for task in tasks:
        in_other_thread(task.cleanup)


def _with_ray(request: pytest.FixtureRequest) -> Any:
    if request.param in ("ray", RayTask):
        request.getfixturevalue("ray_cluster")
    return request.param
