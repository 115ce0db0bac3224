"""LocalTask: the worker loop in a thread of this process."""

from __future__ import annotations

from sageruntime.task.base_task import BaseTask


class LocalTask(BaseTask):
    """A task hosted by a thread; see :class:`~sageruntime.task.base_task.BaseTask`.

    The other hosts run a LocalTask where they are, so it is what ``operator.task`` is everywhere.
    """
