"""Attempt: one operator from open to close, in the runner's thread."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cloudpickle

from sageruntime.communication.router import (
    BaseRouter,
    Packet,
)
from sageruntime.context import TaskContext
from sageruntime.core.task_options import TaskOptions
from sageruntime.errors import CheckpointError, TaskCancelled, TaskHalted
from sageruntime.metrics import TaskMetrics
from sageruntime.operator import BaseOperator, SinkOperator
from sageruntime.operator.results import iterate_results
from sageruntime.recovery.checkpoint import FINAL_CHECKPOINT
from sageruntime.recovery.rescaling import FormerStates
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.error_handler import ErrorHandler
from sageruntime.runner.invoker import (
    Retries,
    Work,
)
from sageruntime.runner.mailbox import Mailbox
from sageruntime.runner.skip_list import SkipList
from sageruntime.runner.status import TaskStatus

if TYPE_CHECKING:
    from sageruntime.plugins.plugins import Plugins
    from sageruntime.tracing.batch_tracer import BatchTracer


class Done(NamedTuple):
    """Mail: a concurrent invoker has done some work."""

    work: Work


class SourceReady(NamedTuple):
    """Mail: the source has yielded as much as the runner waits for."""


class Raise(NamedTuple):
    """Mail: fail with an error of another thread that works for the task."""

    error: BaseException


class ProcessPacket(NamedTuple):
    """Mail: process one packet for somebody who waits for it.

    Attributes:
        packet: the packet.
        done: is settled when it is processed and its results are sent.
    """

    packet: Packet
    done: Future[None]


Mail = do.Command | Done | SourceReady | Raise | ProcessPacket


class AttemptOwner(Protocol):
    """What outlives the attempts of a task: its runner.

    Attributes:
        is_paused: whether nothing more is to be processed.
        is_draining: whether the input is to end with what waits in it.
        senders_ended: tasks upstream that have ended and do not announce it.
        cautious_for: for how many checkpoints packets are processed one by one, because a process
            has died.
    """

    name: str
    ctx: TaskContext
    options: TaskOptions
    coordinated: bool
    mailbox: Mailbox[Mail]
    router: BaseRouter
    metrics: TaskMetrics
    errors: ErrorHandler
    skip_list: SkipList
    plugins: Plugins | None
    tracer: BatchTracer | None
    is_paused: bool
    is_draining: bool
    senders_ended: set[str]
    cautious_for: int

    def note(self, command: do.Command) -> None:
        """Remember what outlives the attempt."""

    def tell(self, event: type[told.Event], **fields: Any) -> None:
        """Send an event to the driver."""

    def get_full_status(self) -> TaskStatus: ...


class Attempt(ABC):
    """Runs one operator from open to close. Everything here is the runner's thread's.

    Args:
        runner: what outlives the attempt.
        operator: the operator of this attempt.
        retries: tries packets again.
    """

    def __init__(self, runner: AttemptOwner, operator: BaseOperator, retries: Retries) -> None:
        self.runner = runner
        self.operator = operator
        self.total: int | None = None
        self._retries = retries
        self._retried = 0
        self._mailbox = runner.mailbox
        self._router = runner.router
        self._metrics = runner.metrics
        self._options = runner.options
        self._snapshot_number: int | None = None
        self._is_dismissed = False

    @property
    def held(self) -> int:
        """Packets that are held back for a checkpoint."""
        return 0

    def run(self, state: bytes | None, is_final: bool) -> Any:
        """Work until the input ends, and return the sink's result.

        Args:
            state: what the operator begins with.
            is_final: everything has been processed and sent already; only the end is missing.

        Raises:
            TaskCancelled: the task was stopped without draining.
            TaskHalted: it was halted.
            Exception: the operator's own, or a :class:`~sageruntime.errors.RuntimeTaskError`.
        """
        operator, result = self.operator, None
        try:
            self._call(operator.open)
            if state is not None:
                self._call(lambda: self._restore(cloudpickle.loads(state)))
            if not is_final:
                self._process_input()
                self._tell(told.Draining)
                self._send_all(iterate_results(self._call(operator.finish), operator))
                self._router.flush()
            self._take_mails(0.0)
            self._tell(told.Finished, status=self.runner.get_full_status())
            if isinstance(operator, SinkOperator):
                result = self._call(operator.result)
            self._router.stop()
            if self.runner.coordinated:
                self._tell(told.Completed, state=self._snapshot(FINAL_CHECKPOINT))
                while not self._is_dismissed:
                    self._take_mails(None)
        finally:
            self._close()
        return result

    def carry_out(self, command: do.Command) -> None:
        """Carry out a command, between two messages."""
        if isinstance(command, do.CheckpointCompleted):
            if command.checkpoint == self._snapshot_number:
                self._on_checkpoint_completed()
        elif isinstance(command, do.Dismiss):
            self._is_dismissed = True

    @abstractmethod
    def _process_input(self) -> None:
        """Process the input to its end."""

    @abstractmethod
    def _call(self, function: Callable[[], Any]) -> Any:
        """Call another method of the operator than ``process``, in the thread it belongs to."""

    @abstractmethod
    def _join(self) -> None:
        """Wait until the operator is called by nobody."""

    def _receive(self, mail: Mail) -> None:
        """Act on a mail."""
        if isinstance(mail, Raise):
            raise mail.error
        assert isinstance(mail, do.Command)
        self.runner.note(mail)
        if isinstance(mail, do.Stop) and not mail.drain:
            raise TaskCancelled(f"{self.runner.name} was stopped without draining")
        if isinstance(mail, do.Halt):
            raise TaskHalted(f"{self.runner.name} was halted")
        self.carry_out(mail)

    def _take_mails(self, timeout: float | None) -> bool:
        """Act on all mails there are, waiting for the first; whether there was one."""
        begun = time.perf_counter() if timeout != 0.0 else 0.0
        mail = self._mailbox.take(timeout)
        if begun and self._is_idle():
            self._metrics.waiting += time.perf_counter() - begun
        if mail is None:
            return False
        while mail is not None:
            self._receive(mail)
            mail = self._mailbox.take()
        return True

    def _is_idle(self) -> bool:
        """Whether waiting for a mail is time in which nothing is processed."""
        return True

    def _on_checkpoint_completed(self) -> None:
        self._call(self.operator.checkpoint_completed)

    def _snapshot(self, checkpoint: int) -> bytes:
        self._snapshot_number = checkpoint
        return self._call(self._pickled_state)  # type: ignore[no-any-return]

    def _pickled_state(self) -> bytes:
        state = self._get_state()
        try:
            data: bytes = cloudpickle.dumps(state)
        except Exception as error:
            raise CheckpointError(
                f"{self.runner.name}: what snapshot() returned does not pickle: {error}; return "
                "plain data"
            ) from error
        return data

    def _restore(self, state: Any) -> None:
        if isinstance(state, FormerStates):
            states = [cloudpickle.loads(one) for one in state.states]
            known = any(one is not None for one in states)
            state = self.operator.rescale(states) if known else None
        self._set_state(state)

    def _get_state(self) -> Any:
        return self.operator.snapshot()

    def _set_state(self, state: Any) -> None:
        if state is not None:
            self.operator.restore(state)

    def _send_all(self, packets: Iterator[Packet]) -> None:
        while part := list(islice(packets, self._options.max_buffer_size)):
            self._take_mails(0.0)
            if self.runner.plugins is not None:
                part = self.runner.plugins.after([], part, self.operator)
            self._router.route_batch(part)

    def _count_retries(self) -> None:
        count = self._retries.count
        self._metrics.retries += count - self._retried
        self._retried = count

    def _tell(self, event: type[told.Event], **fields: Any) -> None:
        self.runner.tell(event, **fields)

    def _close(self) -> None:
        self._join()
        try:
            self._call(self.operator.close)
        finally:
            self.leave()
            self._count_retries()
            self.runner.errors.summarise()
            if self.runner.tracer is not None:
                self.runner.tracer.close()

    def leave(self) -> None:  # noqa: B027
        """End the threads that called the operator."""
