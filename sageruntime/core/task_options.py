"""The options every task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sageruntime.core.options import (
    Count,
    CountFromTwo,
    Options,
    Seconds,
    list_options,
    option,
)
from sageruntime.core.policies import ErrorPolicy, RestartPolicy, RetryPolicy
from sageruntime.errors import InvalidOption


@dataclass(frozen=True)
class TaskOptions(Options):
    """How a task works, whatever its host; times are in seconds.

    ``error_policy`` may be given as the name of one.
    """

    max_buffer_size: Count = option(
        30_000, "Most results a worker gathers before it routes them.", section="task.local"
    )
    queue_maxsize: Count = option(
        50_000,
        "Most packets waiting in a task's input queue, which holds them in batches.",
        section="task.local",
    )
    worker_threads: Count = option(
        1,
        "Threads of one task that call its operator; packets of one key stay in order.",
        section="task.local",
        per_stage=True,
    )
    batch_processing: bool = option(
        True,
        "Whether packets travel in batches; `false` sends them one by one.",
        section="performance",
    )
    batch_size: Count = option(100, "Most packets that travel as one item.", section="performance")
    flush_interval: Seconds = option(
        0.02,
        "How long a batch that is not full may wait while its task is busy; a task that is idle "
        "sends what it has at once.",
        section="performance",
    )
    max_concurrency: Count = option(
        100,
        "Packets that an `async` operator works on at a time.",
        section="performance",
        per_stage=True,
    )
    processing_timeout: Seconds | None = option(
        None,
        "Longest an operator may work on one packet; past it, the error policy decides.",
        section="performance",
        per_stage=True,
    )
    error_policy: ErrorPolicy = option(
        ErrorPolicy.FAIL,
        "What becomes of a packet the operator fails on.",
        section="task",
        per_stage=True,
    )
    retry: RetryPolicy = option(
        RetryPolicy(),
        "How the error policy `retry` tries again.",
        section="task",
        per_stage=True,
    )
    restart: RestartPolicy = option(
        RestartPolicy(),
        "How often the task is started again when it fails.",
        section="task",
        per_stage=True,
    )
    max_deliveries: CountFromTwo = option(
        3,
        "How often a packet is given to the operator at most when the process that works on it "
        "dies each time; then it meets the error policy. Which packet it is shows the second time.",
        section="task",
        per_stage=True,
    )
    monitoring_interval: Seconds = option(
        0.2,
        "Between two measurements, and between two status messages of a task elsewhere.",
        section="performance",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "error_policy", ErrorPolicy(self.error_policy))
        super().__post_init__()
        if self.batch_size > self.queue_maxsize:
            raise InvalidOption(
                f"batch_size={self.batch_size} is more than queue_maxsize={self.queue_maxsize}; "
                "the queue has to hold at least one batch"
            )

    @property
    def writes_dead_letters(self) -> bool:
        """Whether the error policy may come to a dead letter."""
        return self.final_error_policy is ErrorPolicy.DEAD_LETTER

    @property
    def final_error_policy(self) -> ErrorPolicy:
        """What becomes of a packet that failed every time."""
        if self.error_policy is ErrorPolicy.RETRY:
            return ErrorPolicy(self.retry.then)
        return self.error_policy

    def as_dict(self) -> dict[str, Any]:
        """The options by name, as :func:`task_options` takes them."""
        return {name: getattr(self, name) for name in OPTION_NAMES}

    @property
    def packets_per_batch(self) -> int:
        """Most packets that travel as one item."""
        return self.batch_size if self.batch_processing else 1

    @property
    def queue_slots(self) -> int:
        """Batches that the input queue holds."""
        return max(1, self.queue_maxsize // self.packets_per_batch)


class TaskKeywords(TypedDict, total=False):
    """The options of a task as keyword arguments, spelled out for type checkers.

    See :class:`TaskOptions` for what they mean.
    """

    max_buffer_size: int
    queue_maxsize: int
    worker_threads: int
    batch_processing: bool
    batch_size: int
    flush_interval: float
    max_concurrency: int
    processing_timeout: float | None
    error_policy: ErrorPolicy | str
    retry: RetryPolicy
    restart: RestartPolicy
    max_deliveries: int
    monitoring_interval: float


OPTION_NAMES = [each.name for each in list_options(TaskOptions)]
"""The names of a task's options."""


def task_options(given: Mapping[str, Any]) -> TaskOptions:
    """Options given by name.

    Raises:
        InvalidOption: an option is unknown or out of range.
    """
    for name in given:
        if name not in OPTION_NAMES:
            raise InvalidOption(
                f"unknown option {name!r}; expected one of: {', '.join(OPTION_NAMES)}"
            )
    return TaskOptions(**given)
