"""What a task and its operator know about their place in the job."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sageruntime.logs import TaskLogger
from sageruntime.tracing import Tracing


@dataclass
class TaskContext:
    """The identity of one task instance.

    Args:
        name: unique among running tasks; it names the task's input queue, so it holds letters,
            digits, ``_`` and ``-`` only.
        logger: where the task logs; by default a logger below ``sageruntime.task.<stage>`` whose
            records say which task they are of.
        stage: the pipeline stage the task is an instance of; by default its own name.
        index: which instance of the stage this is, from 0.
        parallelism: how many instances the stage has.
        upstreams: how many tasks send to this one. Each ends its part with a StopSignal, and the
            task drains after the last; with 0 only ``stop()`` ends it.
        job: the job the task is part of, if it is.
        profile: whether to sample the stacks of the worker threads.
        tracing: where spans of the task's batches go; None makes none.
    """

    name: str
    logger: logging.Logger = field(default=None)  # type: ignore[assignment]
    stage: str = ""
    index: int = 0
    parallelism: int = 1
    upstreams: int = 0
    job: str = ""
    profile: bool = False
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        if not self.stage:
            self.stage = self.name
        if self.logger is None:
            self.logger = TaskLogger(self.name, self.stage)
