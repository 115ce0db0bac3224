"""LocalTask: a task hosted by a thread of this process."""

from __future__ import annotations

from sageruntime.task.base_task import BaseTask


class LocalTask(BaseTask):
    """A task hosted by a thread; see :class:`~sageruntime.task.base_task.BaseTask`."""
