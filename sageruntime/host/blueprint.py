"""Blueprint: all that it takes to make a task in another process."""

from __future__ import annotations

from dataclasses import dataclass

import cloudpickle

from sageruntime.communication.router import Connection, Partitioner
from sageruntime.errors import TaskStartError, describe_error
from sageruntime.host.hosted_task import HostedTask
from sageruntime.runner.task_runner import TaskSpec, Tell


@dataclass
class Blueprint:
    """What a host gets of a task; queues travel as handles.

    Attributes:
        spec: the task.
        connections: where its results go.
        partitioners: how each group of connections shares them.
        host: the kind of host.
        keeps: whether what is unacknowledged comes again after a failure.
    """

    spec: TaskSpec
    connections: list[Connection]
    partitioners: dict[str, Partitioner]
    host: str
    keeps: bool

    def dumps(self) -> bytes:
        """The blueprint as bytes; functions and classes of a script travel by value.

        Raises:
            TaskStartError: something in it cannot be pickled.
        """
        try:
            data: bytes = cloudpickle.dumps(self)
        except Exception as error:
            raise TaskStartError(
                f"{self.spec.ctx.name} cannot be sent to its host: {self.spec.operator_factory!r}, "
                f"a plugin or a key function does not pickle ({describe_error(error)}). Open "
                "files, connections and generators in the operator's open(), or pass a function "
                "that makes them"
            ) from error
        return data

    def build(self, tell: Tell) -> HostedTask:
        """The task, to be run in this process; raises what the operator's constructor raises."""
        return HostedTask(
            self.spec, self.connections, self.partitioners, self.host, self.keeps, tell
        )
