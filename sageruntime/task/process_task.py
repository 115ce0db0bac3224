"""ProcessTask: a task hosted by a process of its own, over shared-memory queues."""

from __future__ import annotations

from sageruntime.communication.router import BaseRouter
from sageruntime.host.blueprint import Blueprint
from sageruntime.host.host import Host
from sageruntime.host.process_host import ProcessHost
from sageruntime.task.base_task import BaseTask
from sageruntime.task.handle_router import HandleRouter


class ProcessTask(BaseTask):
    """A task hosted by a child process; see :class:`~sageruntime.task.base_task.BaseTask`.

    The child comes from a fork server that has imported the runtime, so a script that starts one
    keeps its main part under ``if __name__ == "__main__":``. It ends with this process, even if
    that is killed.
    """

    host = "process"
    default_scope = "machine"

    @property
    def pid(self) -> int | None:
        """The host's process id, once there is one."""
        host = self._control.host
        return host.pid if isinstance(host, ProcessHost) else None

    def _make_router(self) -> BaseRouter:
        return HandleRouter(self.ctx, self._change_router)

    def _prepare_host(self) -> Host | None:
        return None

    def _make_host(self) -> Host:
        router = self.router
        blueprint = Blueprint(
            self._spec, router.connections, router.partitioners, self.host, self._keeps_messages()
        )
        return ProcessHost(self.name, blueprint.dumps(), self._loop, self._control.receive)

    def _is_restartable(self) -> bool:
        return super()._is_restartable() or self.options.processing_timeout is not None
