"""ProcessTask: a task hosted by a process of its own, over shared-memory queues."""

from __future__ import annotations

from sageruntime.host.host import Host
from sageruntime.host.process_host import ProcessHost
from sageruntime.task.base_task import BaseTask


class ProcessTask(BaseTask):
    """A task hosted by a child process; see :class:`~sageruntime.task.base_task.BaseTask`.

    The child comes from a fork server that has imported the runtime, so a script that starts one
    keeps its main part under ``if __name__ == "__main__":``. It ends with this process, even if
    that is killed.
    """

    host = "process"
    default_scope = "machine"
    is_in_this_process = False

    @property
    def pid(self) -> int | None:
        """The host's process id, once there is one."""
        host = self._control.host
        return host.pid if isinstance(host, ProcessHost) else None

    def _make_host(self) -> Host:
        data = self._make_blueprint().dumps()
        return ProcessHost(self.name, data, self._loop, self._control.receive)
