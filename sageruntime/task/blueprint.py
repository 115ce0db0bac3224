"""TaskBlueprint: all it takes to build a task in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from sagequeue.protocol import Queue
from sageruntime.communication.router import Connection, Message, Partitioner
from sageruntime.context import TaskContext
from sageruntime.errors import TaskStartError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.task.base_task import BaseTask
from sageruntime.task.error_policy import DeadLetter
from sageruntime.task.hosted_task import HostedTask, Send
from sageruntime.task.hung_packets import HungPackets
from sageruntime.task.options import OPTION_NAMES, TaskOptions


@dataclass
class TaskBlueprint:
    """What a host gets of a task; queues travel as handles."""

    ctx: TaskContext
    operator_factory: OperatorFactory
    custom_process: Callable[..., Any] | None
    options: TaskOptions
    input_buffer: Queue[Message]
    connections: list[Connection]
    partitioners: dict[str, Partitioner]
    dead_letters: Queue[DeadLetter] | None
    plugins: tuple[Any, ...]
    coordinated: bool
    attempt: int
    hung: HungPackets
    paused: bool
    state: bytes | None
    over: bool

    @classmethod
    def of(cls, task: BaseTask, state: bytes | None, over: bool) -> TaskBlueprint:
        """The blueprint of a task as it is now, to begin with a state: see ``restore``."""
        custom = type(task).custom_process
        return cls(
            task.ctx,
            task.operator_factory,
            None if custom is BaseTask.custom_process else custom,
            task.options,
            task.input_buffer,
            task.router.connections,
            task.router.partitioners,
            task.dead_letters,
            task.given_plugins,
            task.coordinated,
            task.router.attempt,
            task.hung,
            task.get_status().paused,
            state,
            over,
        )

    def dumps(self) -> bytes:
        """The blueprint as bytes; functions and classes of a script travel by value.

        Raises:
            TaskStartError: something in it cannot be pickled.
        """
        try:
            data: bytes = cloudpickle.dumps(self)
        except Exception as error:
            raise TaskStartError(
                f"{self.ctx.name} cannot be sent to its host: {self.operator_factory!r}, a plugin "
                f"or a key function does not pickle ({error}). Open files, connections and "
                "generators in the operator's open(), or pass a function that makes them"
            ) from error
        return data

    def build(self, send: Send) -> HostedTask:
        """The task, to be run in this process; raises what the operator's constructor raises."""
        task = HostedTask(
            self.ctx,
            self.operator_factory,
            send=send,
            custom=self.custom_process,
            input_buffer=self.input_buffer,
            dead_letters=self.dead_letters,
            plugins=self.plugins,
            coordinated=self.coordinated,
            attempt=self.attempt,
            **{name: getattr(self.options, name) for name in OPTION_NAMES},
        )
        task.hung.learn(self.hung)
        for connection in self.connections:
            task.router.add_connection(connection)
        for group, partitioner in self.partitioners.items():
            task.router.set_partitioner(group, partitioner)
        task.begin_with(self.state, self.over)
        if self.paused:
            task.pause()
        return task
