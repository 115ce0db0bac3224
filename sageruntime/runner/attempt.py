"""Attempt: one operator from open to close, in the runner's thread."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cloudpickle

from sagequeue.errors import Empty, ShutDown
from sageruntime.communication.router import (
    Barrier,
    BaseRouter,
    Packet,
    PacketBatch,
    StopSignal,
)
from sageruntime.context import TaskContext
from sageruntime.core.task_options import TaskOptions
from sageruntime.errors import CheckpointError, PacketError, TaskCancelled, TaskHalted
from sageruntime.errors import processing_timeout as overdue
from sageruntime.metrics import MetricsSnapshot, TaskMetrics
from sageruntime.operator import BaseOperator, SinkOperator
from sageruntime.operator.results import packets_of
from sageruntime.recovery.checkpoint import LAST_STATE
from sageruntime.recovery.rescaling import FormerStates
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.alignment import Alignment
from sageruntime.runner.error_handler import ErrorHandler
from sageruntime.runner.inbox import Delivery, Inbox
from sageruntime.runner.invoker import (
    ConcurrentInvoker,
    DirectInvoker,
    Pending,
    Retries,
    Work,
    call_plainly,
)
from sageruntime.runner.lanes import packets_in
from sageruntime.runner.mailbox import Mailbox
from sageruntime.runner.skip_list import SkipList
from sageruntime.runner.source_reader import EndOfStream, SnapshotMark, SourceReader
from sageruntime.runner.status import TaskStatus
from sageruntime.runner.undecodable import salvage

if TYPE_CHECKING:
    from sageruntime.plugins.plugins import Plugins
    from sageruntime.tracing.batch_tracer import BatchTracer

# Waits for messages of which one shows how long it takes to decode them.
_WAITS_A_MEASUREMENT = 8


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
        done: gets whether it went well.
    """

    packet: Packet
    done: Future[bool]


Mail = do.Command | Done | SourceReady | Raise | ProcessPacket


class AttemptOwner(Protocol):
    """What outlives the attempts of a task: its runner.

    Attributes:
        is_paused: whether nothing more is to be processed.
        is_draining: whether the input is to end with what waits in it.
        is_cautious: whether packets are to be processed one by one, because a process has died.
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
    is_cautious: bool

    def note(self, command: do.Command) -> None:
        """Remember what outlives the attempt."""

    def tell(self, event: type[told.Event], **fields: Any) -> None:
        """Send an event to the driver."""

    def get_status(self) -> TaskStatus: ...
    def measure(self) -> MetricsSnapshot: ...
    def fatal_error(self, packet: Packet, why: str) -> Exception: ...


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
        self.held = 0
        self._retries = retries
        self._retried = 0
        self._mailbox = runner.mailbox
        self._router = runner.router
        self._metrics = runner.metrics
        self._errors = runner.errors
        self._options = runner.options
        self._coordinated = runner.coordinated
        self._snapshot_number: int | None = None
        self._is_dismissed = False

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
                self._send_all(packets_of(self._call(operator.finish), operator))
                self._router.flush()
            self._take_mails(0.0)
            if isinstance(operator, SinkOperator):
                result = self._call(operator.result)
            self._router.stop()
            self._end_input()
            if self._coordinated:
                self._tell(told.Completed, state=self._snapshot(LAST_STATE))
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

    def _end_input(self) -> None:  # noqa: B027
        """Everything is processed and sent."""

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
            self._leave()
            self._count_retries()
            self._errors.summarise()
            if self.runner.tracer is not None:
                self.runner.tracer.close()

    def _leave(self) -> None:  # noqa: B027
        """End the threads that called the operator."""


class InboxAttempt(Attempt):
    """Processes what comes into an input queue, until each sender has ended.

    In a task that is in no job and keeps checkpoints, these begin here. What was taken since the
    last stays unacknowledged, and the state says which of it has its effect in it: so each packet
    has its effect on the state once, however often it comes.

    Args:
        inbox: where messages come from.
        invoker: how the operator is called.
    """

    def __init__(
        self,
        runner: AttemptOwner,
        operator: BaseOperator,
        retries: Retries,
        inbox: Inbox,
        invoker: DirectInvoker | ConcurrentInvoker,
    ) -> None:
        super().__init__(runner, operator, retries)
        self._inbox = inbox
        self._invoker = invoker
        self._upstreams = runner.ctx.upstreams
        self._alignment = Alignment(self._upstreams, self._options.queue_maxsize)
        self._senders_ended: set[str] = set()
        self._is_ended = False
        self._ready: deque[Delivery] = deque()
        self._window: deque[Pending] = deque()
        self._in_window = 0
        self._done: list[Delivery] = []
        self._flushed_at = 0.0
        self._skip_list = runner.skip_list
        self._skip_list.begin_attempt()
        self._skipped = self._skip_list.skipped()
        self._is_alone = self._coordinated and self._upstreams == 0
        # First packets of batches that may come again, and that the state has in it already.
        self._known: set[int] = set()
        self._marked: list[Delivery] = []
        # A queue of references decodes nothing.
        self._decodes = inbox.queue.backend not in ("object", "local")
        self._decoding_each = 0.0
        self._waits = 0
        timeout = self._options.processing_timeout
        self._tick = None if timeout is None else min(timeout / 4, 0.5)

    def carry_out(self, command: do.Command) -> None:
        if isinstance(command, do.Stop):
            self._inbox.queue.shutdown()  # what waits in it is processed
        elif isinstance(command, do.TakeCheckpoint):
            self._begin_checkpoint(command.checkpoint)
        elif isinstance(command, do.AbortCheckpoint):
            if command.checkpoint == self._alignment.checkpoint:
                self._release_held()
        else:
            super().carry_out(command)

    def process(self, packet: Packet) -> bool:
        """Process one packet and send the results; whether it went well."""
        errors = self._metrics.errors
        self._process(Delivery(PacketBatch([packet], packet.input_index)))
        self._await_window()
        self._router.flush()
        return self._metrics.errors == errors

    def _process_input(self) -> None:
        interval = self._options.flush_interval
        self._flushed_at = time.monotonic()
        if self.runner.is_draining:
            self._inbox.queue.shutdown()
        while not self._is_ended:
            if self._mailbox.has_mail:
                self._take_mails(0.0)
            if self.runner.is_paused or not self._has_room():
                if self._done:
                    self._flush()
                self._take_mails(self._tick if self._window else None)
                self._give_up_overdue()
                continue
            delivery = self._next()
            if delivery is None:
                self._give_up_overdue()
                continue
            self._take_in(delivery)
            if time.monotonic() - self._flushed_at >= interval or self._inbox.is_over_limit:
                self._flush()
                self._give_up_overdue()
            if self._is_alone and self._inbox.is_over_limit:
                self._make_room()
        self._await_window()
        self._flush()

    def _has_room(self) -> bool:
        """Whether one more message may be taken."""
        if not self._window:
            return True
        return self._in_window < self._options.max_buffer_size and not self._inbox.is_over_limit

    def _next(self) -> Delivery | None:
        """The next message; None when there was a mail or a tick before it came."""
        ready = self._ready
        if not ready:
            begun = time.perf_counter()
            try:
                ready.extend(self._inbox.take(block=False))
                self._metrics.decoding += time.perf_counter() - begun
            except Empty:
                self._flush()  # before it waits, everything gathered is sent
                self._wait()
            except ShutDown:
                self._is_ended = True
        return ready.popleft() if ready else None

    def _wait(self) -> None:
        """Wait for messages or a mail.

        The CPU time of waiting is what it takes to decode them. It is a system call to ask for it,
        so it is asked for now and then.
        """
        begun = time.perf_counter()
        measures = self._decodes and self._waits % _WAITS_A_MEASUREMENT == 0
        used = time.thread_time() if measures else 0.0
        tick = self._tick if self._window else None
        try:
            messages = self._mailbox.wait_for_data(
                self._inbox.queue, lambda: self._inbox.take(block=True, timeout=tick)
            )
        except Empty:
            messages = None
        except ShutDown:
            self._is_ended = True
            messages = None
        passed = time.perf_counter() - begun
        if messages is None:
            if not self._window:
                self._metrics.waiting += passed
            return
        if measures:
            self._decoding_each = (time.thread_time() - used) / len(messages)
        self._waits += 1
        decoding = min(passed, self._decoding_each * len(messages))
        self._metrics.decoding += decoding
        if not self._window:
            self._metrics.waiting += passed - decoding
        self._ready.extend(messages)

    def _is_idle(self) -> bool:
        return not self._window

    def _take_in(self, delivery: Delivery) -> None:
        """Act on a message."""
        message = delivery.message
        if message is None:
            self._take_in_undecodable(delivery)
            return
        if message.sender and message.attempt < self._router.attempt:
            self._done.append(delivery)  # from before the job went back to a checkpoint
            return
        if isinstance(message, Barrier):
            self._done.append(delivery)
            if self._coordinated:
                self._ready.extendleft(reversed(self._alignment.note(message)))
        elif self._alignment.holds_back(message.sender):
            self._hold_back(delivery)
            return
        elif type(message) is PacketBatch:
            self._process(delivery)
            return
        elif isinstance(message, StopSignal):
            self._done.append(delivery)
            self._senders_ended.add(message.sender)
            self._is_ended = len(self._senders_ended) >= self._upstreams
        if self._alignment.is_complete(self._senders_ended):
            self._pass_barrier()

    def _hold_back(self, delivery: Delivery) -> None:
        self._alignment.hold(delivery)
        self.held = self._alignment.held
        checkpoint = self._alignment.checkpoint
        if self._alignment.is_over_limit and checkpoint is not None:
            self._tell(told.CheckpointDeclined, checkpoint=checkpoint)
            self._release_held()

    def _release_held(self) -> None:
        self._ready.extendleft(reversed(self._alignment.release()))
        self.held = 0

    def _pass_barrier(self) -> None:
        """Take the snapshot, pass the barrier on, and go on with what was held back for it."""
        checkpoint = self._alignment.checkpoint
        assert checkpoint is not None
        self._await_window()
        state = self._snapshot(checkpoint)
        self._router.pass_barrier(checkpoint)
        self._tell_snapshot(checkpoint, state)
        self._release_held()

    def _tell_snapshot(self, checkpoint: int, state: bytes) -> None:
        self._tell(told.SnapshotTaken, checkpoint=checkpoint, state=state, skipped=self._skipped)

    def _begin_checkpoint(self, checkpoint: int) -> None:
        """Take a checkpoint that begins here."""
        self._await_window()
        self._flush()
        self._tell_snapshot(checkpoint, self._snapshot(checkpoint))

    def _make_room(self) -> None:
        """Wait until a checkpoint is complete, so that more may be taken."""
        self._tell(told.CheckpointWanted)
        while self._inbox.is_over_limit:
            self._take_mails(None)

    # What is processed.

    def _process(self, delivery: Delivery) -> None:
        batch = delivery.message
        assert isinstance(batch, PacketBatch)
        packets = batch.packets
        if self._known and packets and packets[0].id in self._known:
            self._known.remove(packets[0].id)
            packets = []
        if self._skip_list.is_pending:
            packets = [packet for packet in packets if not self._skip(packet)]
        if not packets:
            self._done.append(delivery)
            return
        if not self._decodes:  # references: packets are as the sender had them
            index = batch.input_index
            for packet in packets:
                if packet.input_index != index:
                    packet.input_index = index
        if delivery.deliveries > 0 or self.runner.is_cautious:
            self._process_carefully(delivery, packets)
        elif isinstance(self._invoker, DirectInvoker):
            self._process_directly(delivery, packets)
        else:
            self._submit(delivery, packets)

    def _process_directly(self, delivery: Delivery, packets: list[Packet]) -> None:
        batch = delivery.message
        assert isinstance(batch, PacketBatch)
        assert isinstance(self._invoker, DirectInvoker)
        count, entered_at, tracer = len(packets), packets[0].timestamp, self.runner.tracer
        if tracer is None:
            failed = self._invoker.invoke(packets)
        else:
            with tracer.processing(batch):
                failed = self._invoker.invoke(packets)
        self._metrics.batch_done(count, failed, batch.sent_at, entered_at)
        self._done.append(delivery)

    def _process_carefully(self, delivery: Delivery, packets: list[Packet]) -> None:
        """One packet after the other, each named before: a process may have died over one."""
        batch = delivery.message
        assert isinstance(batch, PacketBatch)
        self._await_window()
        for packet in packets:
            self._tell(told.Attempting, packet=self._skip_list.name_of(packet))
            one = Delivery(PacketBatch(
                [packet], batch.input_index, batch.sent_at, traceparent=batch.traceparent
            ))  # fmt: skip
            if isinstance(self._invoker, DirectInvoker):
                self._process_directly(one, [packet])
            else:
                self._submit(one, [packet])
                self._await_window()
            self._done.pop()
        self._done.append(delivery)

    def _skip(self, packet: Packet) -> bool:
        """Whether a packet is left out, because a host hung or died over it before."""
        if not self._skip_list.take_out(packet):
            return False
        why = self._skip_list.fatal.get(self._skip_list.name_of(packet))
        if why is not None:
            self._errors.handle(packet, self.runner.fatal_error(packet, why))
        return True

    def _take_in_undecodable(self, delivery: Delivery) -> None:
        """Deal with the packets of a message that cannot be decoded, and process the others."""
        assert delivery.error is not None
        saved = salvage(delivery.error)
        batch = saved.batch
        if batch is not None and batch.sender and batch.attempt < self._router.attempt:
            self._done.append(delivery)
            return
        if batch is not None and self._alignment.holds_back(batch.sender):
            self._hold_back(delivery)
            return
        for one in saved.undecodable:
            self._errors.handle(None, one.error, raw=one.raw)
        delivery.message = batch or PacketBatch([])
        delivery.error = None
        delivery.keep_original()
        self._process(delivery)

    # Concurrent processing.

    def _submit(self, delivery: Delivery, packets: list[Packet]) -> None:
        assert isinstance(self._invoker, ConcurrentInvoker)
        pending = Pending(delivery, packets)
        self._window.append(pending)
        self._in_window += len(packets)
        self._invoker.submit(pending)

    def _receive(self, mail: Mail) -> None:
        if isinstance(mail, Done):
            if not mail.work.is_given_up:
                self._settle(mail.work)
        elif isinstance(mail, ProcessPacket):
            try:
                mail.done.set_result(self.process(mail.packet))
            except BaseException as error:
                mail.done.set_exception(error)
        else:
            super()._receive(mail)

    def _settle(self, work: Work) -> None:
        """Send the results of what is done, in the order in which it came."""
        work.pending.settle(work)
        while self._window and self._window[0].left == 0:
            pending = self._window.popleft()
            self._in_window -= len(pending.packets)
            self._finish_pending(pending)

    def _finish_pending(self, pending: Pending) -> None:
        batch = pending.delivery.message
        assert isinstance(batch, PacketBatch)
        results: list[Packet] = []
        failed = 0
        for packet, outcome in zip(pending.packets, pending.outcomes):
            if isinstance(outcome, Exception):
                failed += 1
                if outcome is not _DEALT_WITH:
                    self._errors.handle(packet, outcome)
            elif outcome:
                results += outcome
        tracer = self.runner.tracer
        if tracer is None:
            self._router.route_batch(results)
        else:
            with tracer.processing(batch):
                self._router.route_batch(results)
        self._metrics.batch_done(len(pending.packets), failed, batch.sent_at, pending.entered_at)
        self._done.append(pending.delivery)

    def _await_window(self) -> None:
        """Wait until everything that is being processed is done."""
        while self._window:
            self._take_mails(self._tick)
            self._give_up_overdue()

    def _give_up_overdue(self) -> None:
        """Apply the error policy to packets that are processed for too long."""
        if self._tick is None or not isinstance(self._invoker, ConcurrentInvoker):
            return
        late = self._invoker.overdue()
        if not late:
            return
        failure: PacketError | None = None
        for packet in packets_in(late):
            self._metrics.timeouts += 1
            try:
                self._errors.handle(
                    packet, overdue(packet.id, self._options.processing_timeout or 0)
                )
            except PacketError as error:
                failure = error
        names = [self._skip_list.name_of(packet) for packet in packets_in(late)]
        self._tell(
            told.Stuck, packets=names, error=failure, early=self._skip_list.is_pending,
            status=self.runner.get_status().with_metrics(self.runner.measure()),
        )  # fmt: skip
        if failure is not None:
            raise failure
        for work in late:
            work.outcomes = [_DEALT_WITH] * len(work.packets)
            self._settle(work)

    def _call(self, function: Callable[[], Any]) -> Any:
        if isinstance(self._invoker, ConcurrentInvoker):
            return self._invoker.call(function)
        return call_plainly(self.operator, function)

    def _join(self) -> None:
        if isinstance(self._invoker, ConcurrentInvoker):
            self._invoker.drop_waiting()

    def _leave(self) -> None:
        if isinstance(self._invoker, ConcurrentInvoker):
            self._invoker.close()

    # What is acknowledged.

    def _flush(self) -> None:
        routed = self._router.seconds
        self._router.flush()
        self._metrics.flushing += self._router.seconds - routed
        self._metrics.settle()
        self._count_retries()
        done, self._done = self._done, []
        if not self._coordinated:
            self._inbox.acknowledge(done)
        self._flushed_at = time.monotonic()

    def _end_input(self) -> None:
        if not self._is_alone:
            self._inbox.acknowledge_all()

    def _on_checkpoint_completed(self) -> None:
        super()._on_checkpoint_completed()
        self._inbox.acknowledge(self._marked)
        self._marked = []
        self._skip_list.settle(self._skipped)
        self.runner.is_cautious = False

    def _get_state(self) -> Any:
        self._skipped = self._skip_list.skipped()
        state = super()._get_state()
        if not self._is_alone:
            return state
        taken = {delivery.number for delivery in self._ready}  # and not processed
        self._marked = [d for d in self._inbox.unacknowledged() if d.number not in taken]
        batches = [d.message for d in self._marked if isinstance(d.message, PacketBatch)]
        known = {batch.packets[0].id for batch in batches if batch.packets}
        return state, known | self._known

    def _set_state(self, state: Any) -> None:
        if self._is_alone:
            state, self._known = state
        super()._set_state(state)


_DEALT_WITH = Exception("the error policy was applied already")
"""The outcome of a packet that was given up."""


class SourceAttempt(Attempt):
    """Reads a source and sends what it yields, in full batches or after a short while.

    Args:
        reader: reads the source.
    """

    def __init__(
        self, runner: AttemptOwner, operator: BaseOperator, retries: Retries, reader: SourceReader
    ) -> None:
        super().__init__(runner, operator, retries)
        self._reader = reader
        self._is_released = False
        self._is_read = False
        # Whether something was read and may not have been sent, and when it has to be.
        self._is_unsent = False
        self._flush_at = 0.0

    def carry_out(self, command: do.Command) -> None:
        if isinstance(command, do.Pause):
            self._reader.pause()
        elif isinstance(command, do.Resume):
            self._reader.resume()
        elif isinstance(command, do.Stop):
            self._reader.stop()
        elif isinstance(command, do.TakeCheckpoint):
            self._reader.mark(command.checkpoint, self._pickled_state)
        elif isinstance(command, do.Release):
            self._is_released = True
        else:
            super().carry_out(command)

    def _process_input(self) -> None:
        self.total = self._call(self.operator.total)  # type: ignore[attr-defined]
        if self.runner.is_paused:
            self._reader.pause()
        if self.runner.is_draining:
            self._reader.stop()
        self._reader.start_reading()
        while not self._is_read:
            self._send_some()
        self._take_mails(0.0)
        self._router.flush()
        if self._coordinated:
            self._tell(told.Exhausted)
            while not self._is_released:
                self._send_some()

    def _send_some(self) -> None:
        """Send what the source has yielded, if it is enough or has waited long enough."""
        reader, size = self._reader, self._options.packets_per_batch
        if self._mailbox.has_mail:
            self._take_mails(0.0)
        if len(reader) < size:
            self._await(size)
        self._send(reader.take(size))
        if self._is_unsent and time.monotonic() >= self._flush_at:
            self._flush()

    def _await(self, count: int) -> None:
        """Wait until so much is there, or what there is has waited for long enough."""
        reader = self._reader
        while len(reader) < count and not reader.has_mark:
            if len(reader) and not self._is_unsent:
                self._expect_flush()
            left = max(0.0, self._flush_at - time.monotonic()) if self._is_unsent else None
            if left == 0.0:
                return
            # a first packet, so that its time begins; then as many as are asked for
            if reader.notify_at(count if self._is_unsent else 1):
                self._take_mails(left)
            if self._is_released:
                return

    def _expect_flush(self) -> None:
        self._is_unsent = True
        self._flush_at = time.monotonic() + self._options.flush_interval

    def _flush(self) -> None:
        self._router.flush()
        self._is_unsent = False

    def _send(self, items: list[Any]) -> None:
        if not items:
            return
        first = items[0]
        if isinstance(first, EndOfStream):
            if first.error is not None:
                raise first.error
            self._is_read = True
        elif isinstance(first, SnapshotMark):
            self._snapshot_number = first.checkpoint
            self._router.pass_barrier(first.checkpoint)
            self._tell(
                told.SnapshotTaken, checkpoint=first.checkpoint, state=first.state, skipped={}
            )
        else:
            self._metrics.processed += len(items)
            if not self._is_unsent:
                self._expect_flush()
            tracer = self.runner.tracer
            if tracer is None:
                self._router.route_batch(items)
            else:
                with tracer.reading(items):
                    self._router.route_batch(items)

    def _receive(self, mail: Mail) -> None:
        if not isinstance(mail, SourceReady):
            super()._receive(mail)

    def _is_idle(self) -> bool:
        return self._is_read  # otherwise it waits for the source

    def _call(self, function: Callable[[], Any]) -> Any:
        return self._reader.call(lambda: call_plainly(self.operator, function))

    def _join(self) -> None:
        self._reader.stop()

    def _leave(self) -> None:
        self._reader.close()
