"""ThreadHost: the runner in a thread of this process."""

from __future__ import annotations

import threading

from sageruntime.metrics import MetricsSnapshot
from sageruntime.runner import commands as do
from sageruntime.runner.status import TaskStatus
from sageruntime.runner.task_runner import TaskRunner


class ThreadHost:
    """See :class:`~sageruntime.host.host.Host`.

    Args:
        runner: what to run; it tells its events to the handle itself.
    """

    def __init__(self, runner: TaskRunner) -> None:
        self.runner = runner
        self._thread = threading.Thread(target=runner.run, name=runner.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, command: do.Command) -> None:
        self.runner.post(command)

    def kill(self) -> None:
        """A thread cannot be killed."""

    def wait(self) -> None:
        """See ``Host``; a thread that does not end is left behind."""

    def close(self) -> None:
        if not self._thread.is_alive():
            self.runner.abandon()

    def get_status(self) -> TaskStatus:
        return self.runner.get_status()

    def measure(self) -> MetricsSnapshot:
        return self.runner.measure()
