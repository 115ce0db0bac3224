"""LocalTask: the worker loop in a thread of this process."""

from __future__ import annotations

import threading

from sageruntime.errors import TaskCancelled
from sageruntime.task.base_task import BaseTask
from sageruntime.task.state import TaskState


class LocalTask(BaseTask):
    """A task hosted by a thread; see :class:`~sageruntime.task.base_task.BaseTask`.

    The other hosts run a LocalTask where they are, so it is what ``operator.task`` is everywhere.
    """

    host = "thread"
    default_scope = "thread"

    def start_running(self) -> None:
        """See :class:`BaseTask`."""
        self._begin()
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """See :class:`BaseTask`."""
        if self._state is TaskState.CREATED:
            self._advance(TaskState.STOPPED)
        if not self._state.ended:
            if drain:
                self._worker.drain()
                self._advance(TaskState.DRAINING)
            else:
                self._worker.cancel()
        return self.join(timeout)

    def cleanup(self, grace: float = 1.0) -> None:
        """See :class:`BaseTask`."""
        if not self.stop(drain=False, timeout=grace):
            self.logger.warning("%s: the operator did not return; left behind", self.name)
            self._advance(TaskState.STOPPED)
        self.input_buffer.close()

    def _run(self) -> None:
        try:
            self._advance(TaskState.RUNNING)
            result = self._worker.run(draining=self._drain)
        except TaskCancelled:
            self._advance(TaskState.STOPPED)
        except BaseException as error:  # whatever it is, the job has to learn of it
            self._fail(error)
        else:
            self._advance(TaskState.STOPPED, result)

    def _drain(self) -> None:
        self._advance(TaskState.DRAINING)
