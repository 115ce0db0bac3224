"""HostedTask: a task in a process of its own, as seen from within; its handle is a RemoteTask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from sageruntime.communication.router import Packet
from sageruntime.errors import InvalidOption, TaskCancelled, TaskStateError
from sageruntime.profiling import StackProfile
from sageruntime.profiling.spy import Spy
from sageruntime.task.hung_packets import Name
from sageruntime.task.local_task import LocalTask
from sageruntime.task.packed_error import PackedError
from sageruntime.task.status import TaskStatus
from sageruntime.task.supervised_task import SupervisedTask

Send = Callable[[object], None]
"""Sends a message to the handle."""


@dataclass(frozen=True)
class Failed:
    """An attempt has failed; the task waits for ``restore``."""

    error: PackedError


@dataclass(frozen=True)
class Stuck:
    """The operator hangs on packets.

    Attributes:
        names: of the packets, as of :class:`~sageruntime.task.hung_packets.HungPackets`.
        error: the policy is that the task fails, with this.
        early: packets that it hung on before have not come again yet, so they may be these.
    """

    names: list[Name]
    error: PackedError | None
    early: bool


@dataclass(frozen=True)
class Exhausted:
    """The source has been read to its end."""


@dataclass(frozen=True)
class Snapshot:
    """The task's part of a checkpoint, and the packets that were left out before it."""

    checkpoint: int
    state: bytes
    left_out: Counter[Name]


@dataclass(frozen=True)
class CheckpointWanted:
    """The task waits for a checkpoint."""


@dataclass(frozen=True)
class Completed:
    """All is processed and sent; the task waits for ``dismiss``."""

    state: bytes


class HandleSupervisor:
    """Passes everything to the handle in the other process: see ``Supervisor``."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def failed(self, task: SupervisedTask, error: BaseException) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._send(Failed(PackedError.of(error)))

    def checkpoint_wanted(self, task: SupervisedTask) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._send(CheckpointWanted())

    def exhausted(self, task: SupervisedTask) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._send(Exhausted())

    def snapshot_taken(self, task: SupervisedTask, checkpoint: int, state: bytes) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._send(Snapshot(checkpoint, state, task.hung.left_out()))

    def completed(self, task: SupervisedTask, state: bytes) -> None:
        """See :class:`~sageruntime.task.supervisor.Supervisor`."""
        self._send(Completed(state))


class HostedTask(LocalTask):
    """The task that works where its handle is not.

    Args:
        send: sends messages to the handle.
        custom: ``custom_process`` of the handle's class, if it has its own.
        rest: as of :class:`~sageruntime.task.base_task.BaseTask`.
    """

    tells_plugins = False  # the handle does

    def __init__(
        self, *args: Any, send: Send, custom: Callable[..., Any] | None, **rest: Any
    ) -> None:
        self._send = send
        self._custom = custom
        # a thread of its own: to remove a connection may have to wait for room
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="router-changes")
        super().__init__(*args, supervisor=HandleSupervisor(send), **rest)
        self._spy = Spy() if self.ctx.profile else None
        self.add_listener(lambda task: None if task.state.ended else send(task.get_status()))

    def cleanup(self, grace: float = 1.0) -> None:
        """See :class:`BaseTask`; the queues downstream are opened by this process alone."""
        super().cleanup(grace)
        for connection in self.router.connections:
            connection.queue.close()

    def custom_process(self, packet: Any) -> Any:
        """See :class:`BaseTask`."""
        if self._custom is None:
            return self.operator.process(packet)
        return self._custom(self, packet)

    def get_status(self) -> TaskStatus:
        """See :class:`BaseTask`; with a measurement."""
        return replace(super().get_status(), metrics=self.measure())

    def obey(self, command: str, arguments: tuple[Any, ...]) -> None:
        """Do what the handle says, by the name of a method."""
        try:
            getattr(self, command)(*arguments)
        except TaskStateError:
            return  # the task has ended meanwhile; the handle is told so

    def change_router(self, method: str, arguments: bytes) -> None:
        """Make a change that was made to the handle's router, after those before it."""
        self._changes.submit(self._change_router, method, cloudpickle.loads(arguments))

    def _change_router(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            connection = getattr(self.router, method)(*arguments)
        except (InvalidOption, TaskCancelled):
            return  # the connection is lost here already, or the task is ending
        except Exception as error:
            self.failed_outside(error)
            return
        if method == "remove_connection":
            connection.queue.close()

    def _get_profile(self) -> StackProfile | None:
        return None if self._spy is None else self._spy.profile_of(self.name)

    def _has_custom_process(self) -> bool:
        return self._custom is not None

    def _is_restartable(self) -> bool:
        return super()._is_restartable() or self.options.processing_timeout is not None

    def _on_stuck(self, packets: list[Packet], error: BaseException | None) -> None:
        self._send(self.get_status())  # the last: this process will be killed
        names = [self.hung.name_of(packet) for packet in packets]
        packed = None if error is None else PackedError.of(error)
        self._send(Stuck(names, packed, self.hung.due))
