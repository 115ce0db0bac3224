"""TaskView: what operators and plugins see of a task, whatever hosts it."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from sageruntime.core.state import TaskState


class TaskView(Protocol):
    """A task, as far as it is the same in every host.

    Attributes:
        name: its name.
        logger: where it logs.
        coordinated: whether it takes part in checkpoints.
    """

    name: str
    logger: logging.Logger
    coordinated: bool

    @property
    def ctx(self) -> Any:
        """Its :class:`~sageruntime.context.TaskContext`."""

    @property
    def router(self) -> Any:
        """Its :class:`~sageruntime.communication.router.BaseRouter`."""

    @property
    def operator(self) -> Any:
        """Its operator."""

    @property
    def input_buffer(self) -> Any:
        """Its input queue."""

    @property
    def metrics(self) -> Any:
        """What it counts."""

    @property
    def state(self) -> TaskState:
        """Where it is in its life."""

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """End it."""

    def pause(self) -> None:
        """Process nothing more, until :meth:`resume`."""

    def resume(self) -> None:
        """Go on."""

    def get_status(self) -> Any:
        """A :class:`~sageruntime.runner.status.TaskStatus`."""

    def measure(self) -> Any:
        """A :class:`~sageruntime.metrics.MetricsSnapshot`."""
