"""HostedTask: a task in a process of its own, as its operator sees it there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle

from sageruntime.communication.router import BaseRouter, Connection, Packet, Partitioner
from sageruntime.core.state import TaskState
from sageruntime.errors import InvalidOption, TaskCancelled
from sageruntime.metrics import MetricsSnapshot, TaskMetrics
from sageruntime.operator import BaseOperator
from sageruntime.profiling import StackProfile
from sageruntime.profiling.spy import Spy
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskStatus
from sageruntime.runner.task_runner import TaskRunner, TaskSpec, Tell, make_plugins


class HostedTask:
    """What ``operator.task`` is in a process that hosts a task; its handle is elsewhere.

    Args:
        spec: the task.
        connections: where its results go.
        partitioners: how each group of connections shares them.
        host: the kind of host.
        keeps: whether what is unacknowledged comes again after a failure.
        tell: takes events to the handle; any thread may call it.

    Raises:
        Exception: what the operator's constructor raises.
    """

    def __init__(
        self,
        spec: TaskSpec,
        connections: list[Connection],
        partitioners: Mapping[str, Partitioner],
        host: str,
        keeps: bool,
        tell: Tell,
    ) -> None:
        self.ctx = spec.ctx
        self.name = spec.ctx.name
        self.logger = spec.ctx.logger
        self.options = spec.options
        self.coordinated = spec.coordinated
        self.input_buffer = spec.input_buffer
        self.input_buffer.logger = self.logger
        self.dead_letters = spec.dead_letters
        self.router = BaseRouter(spec.ctx)
        self._tell = tell
        self._custom: Callable[..., Any] | None = spec.custom_process
        if self._custom is not None:
            spec.custom_process = self.custom_process
        self._runner = TaskRunner(
            spec, host=host, keeps=keeps, task=self, tell=tell, router=self.router,
            plugins=make_plugins(spec), profile=self._get_profile,
        )  # fmt: skip
        for connection in connections:
            self.router.add_connection(connection)
        for group, partitioner in partitioners.items():
            self.router.set_partitioner(group, partitioner)
        self._spy = Spy() if self.ctx.profile else None
        self._ended = threading.Event()
        # To remove a connection may have to wait for room: the changes have a thread of their own.
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="router-changes")

    @property
    def operator(self) -> BaseOperator:
        """The operator of the present attempt."""
        return self._runner.operator

    @property
    def metrics(self) -> TaskMetrics:
        """What the task counts."""
        return self._runner.metrics

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._runner.state

    @property
    def is_running(self) -> bool:
        """Whether the task has not ended."""
        return not self.state.ended

    def custom_process(self, packet: Packet) -> Any:
        """What is done with each packet: as the handle's class says."""
        if self._custom is None:
            return self.operator.process(packet)
        return self._custom(self, packet)

    def stop(self, drain: bool = True, timeout: float | None = 0) -> bool:
        """Ask the task to end; it does so after the operator has returned."""
        self._runner.post(do.Stop(drain))
        return False

    def pause(self) -> None:
        """Process nothing more after the packets in hand."""
        self._runner.post(do.Pause())

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._runner.post(do.Resume())

    def get_status(self) -> TaskStatus:
        """A snapshot of the task."""
        return self._runner.get_status()

    def measure(self) -> MetricsSnapshot:
        """What is measured of the task."""
        return self._runner.measure()

    # What the host does with it.

    def run(self) -> None:
        """Run the task to its end in the calling thread, and give back its queues."""
        threading.Thread(target=self._report_often, daemon=True).start()
        try:
            self._runner.run()
        finally:
            self._ended.set()
        self._give_back_queues()

    def take_command(self, command: do.Command) -> None:
        """Carry out a command of the handle."""
        if isinstance(command, do.ChangeRouter):
            self._changes.submit(self._change_router, command)
        else:
            self._runner.post(command)

    def _give_back_queues(self) -> None:
        self._changes.shutdown(wait=False)
        self._runner.abandon()
        for connection in self.router.connections:
            connection.queue.close()
        self.input_buffer.close()

    def _report_often(self) -> None:
        while not self._ended.wait(self.options.monitoring_interval):
            status = self._runner.get_full_status()
            self._tell(told.StatusReported(attempt=self.router.attempt, status=status))

    def _change_router(self, command: do.ChangeRouter) -> None:
        try:
            arguments = cloudpickle.loads(command.arguments)
            connection = getattr(self.router, command.method)(*arguments)
        except (InvalidOption, TaskCancelled):
            return  # the connection is lost here already, or the task is ending
        except Exception as error:
            self._runner.fail(error)
            return
        if command.method == "remove_connection":
            self._tell(told.ConnectionRemoved(name=connection.name))
            connection.queue.close()

    def _get_profile(self) -> StackProfile | None:
        return None if self._spy is None else self._spy.get_profile(self.name)
