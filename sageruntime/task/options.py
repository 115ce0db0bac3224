"""The options every task has."""

from __future__ import annotations

from dataclasses import dataclass

from sageruntime.errors import InvalidOption
from sageruntime.task.error_policy import ErrorPolicy


@dataclass(frozen=True)
class TaskOptions:
    """How a task works, whatever its host.

    Args:
        max_buffer_size: most results a worker gathers before it routes them.
        queue_maxsize: most packets waiting in the input queue, which holds them in batches.
        worker_threads: threads that call ``process`` side by side; one for each key at a time.
        batch_size: most packets that travel as one item.
        error_policy: what becomes of a packet the operator fails on.
        status_interval: seconds between two status messages of a task in another process.
    """

    max_buffer_size: int = 30_000
    queue_maxsize: int = 50_000
    worker_threads: int = 1
    batch_size: int = 100
    error_policy: ErrorPolicy = ErrorPolicy.FAIL
    status_interval: float = 0.2

    def __post_init__(self) -> None:
        for name in ("max_buffer_size", "queue_maxsize", "worker_threads", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidOption(f"{name}={value!r} is not allowed; expected an int from 1")
        if self.batch_size > self.queue_maxsize:
            raise InvalidOption(
                f"batch_size={self.batch_size} is more than queue_maxsize={self.queue_maxsize}; "
                "the queue has to hold at least one batch"
            )
        if not self.status_interval > 0:
            raise InvalidOption(
                f"status_interval={self.status_interval!r} is not allowed; expected seconds above 0"
            )
