"""TaskBlueprint: all it takes to build a task in another process."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cloudpickle

from sagequeue.protocol import Queue
from sageruntime.communication.router import Connection, Message, Partitioner
from sageruntime.context import TaskContext
from sageruntime.errors import TaskStartError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.task.base_task import BaseTask
from sageruntime.task.error_policy import DeadLetter
from sageruntime.task.local_task import LocalTask
from sageruntime.task.options import TaskOptions


@dataclass
class TaskBlueprint:
    """What a host gets of a task; queues travel as handles."""

    ctx: TaskContext
    operator_factory: OperatorFactory
    options: TaskOptions
    input_buffer: Queue[Message]
    connections: list[Connection]
    partitioners: dict[str, Partitioner]
    dead_letters: Queue[DeadLetter] | None

    @classmethod
    def of(cls, task: BaseTask) -> TaskBlueprint:
        """The blueprint of a task as it is now."""
        return cls(
            task.ctx,
            task.operator_factory,
            task.options,
            task.input_buffer,
            task.router.connections,
            task.router.partitioners,
            task.dead_letters,
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
                f"{self.ctx.name} cannot be sent to its host: {self.operator_factory!r} or a key "
                f"function does not pickle ({error}). Open files, connections and generators in "
                "the operator's open(), or pass a function that makes them"
            ) from error
        return data

    def build(self) -> LocalTask:
        """The task, to be run in this process; raises what the operator's constructor raises."""
        task = LocalTask(
            self.ctx,
            self.operator_factory,
            **asdict(self.options),
            input_buffer=self.input_buffer,
            dead_letters=self.dead_letters,
        )
        for connection in self.connections:
            task.router.add_connection(connection)
        for group, partitioner in self.partitioners.items():
            task.router.set_partitioner(group, partitioner)
        return task
