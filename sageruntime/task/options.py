"""The options every task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sageruntime.errors import InvalidOption
from sageruntime.recovery.policies import RestartPolicy, RetryPolicy
from sageruntime.task.error_policy import ErrorPolicy

_COUNTS = ("max_buffer_size", "queue_maxsize", "worker_threads", "batch_size", "max_concurrency")


@dataclass(frozen=True)
class TaskOptions:
    """How a task works, whatever its host. Times are in seconds.

    Args:
        max_buffer_size: most results a worker gathers before it routes them.
        queue_maxsize: most packets waiting in the input queue, which holds them in batches.
        worker_threads: threads that call ``process`` side by side; one for each key at a time.
        batch_processing: whether packets travel in batches at all.
        batch_size: most packets that travel as one item.
        flush_interval: how long a batch that is not full may wait while its task is busy; one that
            is idle sends what it has at once.
        max_concurrency: packets that an ``async`` operator works on at a time.
        processing_timeout: longest an operator may work on one packet; None is no limit.
        error_policy: what becomes of a packet the operator fails on.
        retry: how the error policy ``retry`` tries again.
        restart: how often the task is started again when it fails.
        monitoring_interval: between two measurements, and between two status messages of a task
            in another process.
    """

    max_buffer_size: int = 30_000
    queue_maxsize: int = 50_000
    worker_threads: int = 1
    batch_processing: bool = True
    batch_size: int = 100
    flush_interval: float = 0.02
    max_concurrency: int = 100
    processing_timeout: float | None = None
    error_policy: ErrorPolicy = ErrorPolicy.FAIL
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    monitoring_interval: float = 0.2

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidOption(f"{name}={value!r} is not allowed; expected an int from 1")
        if self.batch_size > self.queue_maxsize:
            raise InvalidOption(
                f"batch_size={self.batch_size} is more than queue_maxsize={self.queue_maxsize}; "
                "the queue has to hold at least one batch"
            )
        for name in ("flush_interval", "monitoring_interval", "processing_timeout"):
            seconds = getattr(self, name)
            if not (seconds is None and name == "processing_timeout") and not seconds > 0:
                raise InvalidOption(f"{name}={seconds!r} is not allowed; expected seconds above 0")

    @property
    def writes_dead_letters(self) -> bool:
        """Whether the error policy may come to a dead letter."""
        policy = self.retry.then if self.error_policy is ErrorPolicy.RETRY else self.error_policy
        return policy == ErrorPolicy.DEAD_LETTER

    @property
    def packets_per_batch(self) -> int:
        """Most packets that travel as one item."""
        return self.batch_size if self.batch_processing else 1

    @property
    def queue_slots(self) -> int:
        """Batches that the input queue holds."""
        return max(1, self.queue_maxsize // self.packets_per_batch)


OPTION_NAMES = [field.name for field in fields(TaskOptions)]
"""The names of a task's options."""


def task_options(given: Mapping[str, Any]) -> TaskOptions:
    """Options given by name; names of policies may stand for them.

    Raises:
        InvalidOption: an option is unknown or out of range.
    """
    for name in given:
        if name not in OPTION_NAMES:
            raise InvalidOption(
                f"unknown option {name!r}; expected one of: {', '.join(OPTION_NAMES)}"
            )
    values = dict(given)
    if "error_policy" in values:
        values["error_policy"] = ErrorPolicy(values["error_policy"])
    return TaskOptions(**values)
