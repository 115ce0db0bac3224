"""InboxAttempt: an attempt of a task that has an input queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from sagequeue.errors import Empty, ShutDown
from sageruntime.communication.router import (
    Barrier,
    Packet,
    PacketBatch,
    StopSignal,
)
from sageruntime.core.futures import settle
from sageruntime.errors import (
    PacketError,
    ProcessingTimeout,
    TaskCancelled,
    TaskHalted,
    TaskLost,
    TaskStateError,
)
from sageruntime.errors import processing_timeout as overdue
from sageruntime.operator import BaseOperator
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.alignment import Alignment
from sageruntime.runner.attempt import Attempt, AttemptOwner, Done, Mail, ProcessPacket
from sageruntime.runner.inbox import Delivery, Inbox
from sageruntime.runner.invoker import (
    ConcurrentInvoker,
    DirectInvoker,
    Pending,
    Retries,
    Work,
    call_plainly,
)
from sageruntime.runner.undecodable import salvage

# Waits for messages of which one shows how long it takes to decode them.
_WAITS_A_MEASUREMENT = 8


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
        self._alignment = Alignment(runner.ctx.upstreams, self._options.queue_maxsize)
        self._senders_ended = set(runner.senders_ended)
        self._is_ended = False
        self._ready: deque[Delivery] = deque()
        self._window: deque[Pending] = deque()
        self._in_window = 0
        self._done: list[Delivery] = []
        self._flushed_at = 0.0
        runner.skip_list.begin_attempt()
        self._skipped = runner.skip_list.skipped()
        self._is_alone = self.runner.coordinated and self.runner.ctx.upstreams == 0
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
            self._go_on_with(self._alignment.abort(command.checkpoint))
        elif isinstance(command, do.SenderEnded):
            self._senders_ended.add(command.sender)
            self._shut_down_when_all_have_ended()
        else:
            super().carry_out(command)

    @property
    def held(self) -> int:
        return self._alignment.held

    def process(self, packet: Packet) -> None:
        """Process one packet and send the results, in a task that does not run."""
        batch = PacketBatch([packet], packet.input_index)
        self._process(Delivery(batch), batch)
        self._await_window()
        self._router.flush()

    def _process_for(self, mail: ProcessPacket) -> None:
        """Process one packet for somebody who waits for it, and to whom its error is told."""
        packet = mail.packet
        batch = PacketBatch([packet], packet.input_index)
        if isinstance(self._invoker, ConcurrentInvoker):
            self._submit(self._invoker, Delivery(batch), [packet], mail.done)
            return
        invoker = self._invoker
        self._settle_for(mail.done, lambda: self._process_directly(invoker, batch, [packet]))

    def _settle_for(self, done: Future[None], work: Callable[[], None]) -> None:
        def send_too() -> None:
            work()
            self._router.flush()

        settle(done, send_too)
        if isinstance(error := done.exception(), (TaskCancelled, TaskHalted)):
            raise error

    def _process_input(self) -> None:
        interval = self._options.flush_interval
        ready, no_mail = self._ready, self._mailbox.is_empty
        self._flushed_at = time.monotonic()
        if self.runner.is_draining:
            self._inbox.queue.shutdown()
        self._shut_down_when_all_have_ended()
        while not self._is_ended:
            if not no_mail():
                self._take_mails(0.0)
            if self.runner.is_paused or (self._window and self._is_window_full()):
                if self._done:
                    self._flush()
                self._take_mails(self._tick if self._window else None)
                self._give_up_overdue()
            elif ready:
                self._take_in(ready.popleft())
                if time.monotonic() - self._flushed_at >= interval:
                    self._flush()
                    self._give_up_overdue()
            elif self._is_alone and self._inbox.is_over_limit:
                self._make_room()
            else:
                self._take()
        self._await_window()
        self._flush()

    def _shut_down_when_all_have_ended(self) -> None:
        """End the input with what waits in it, when it is known that no sender goes on."""
        if self._senders_ended and len(self._senders_ended) >= self.runner.ctx.upstreams:
            self._inbox.queue.shutdown()

    def _is_window_full(self) -> bool:
        """Whether nothing more may be taken, until some of what is being processed is done."""
        return self._in_window >= self._options.max_buffer_size or self._inbox.is_over_limit

    def _take(self) -> None:
        """Take the next messages, unless there is a mail or a tick before they come."""
        if self._inbox.is_over_limit:
            self._flush()  # which acknowledges
        begun = time.perf_counter()
        try:
            self._ready.extend(self._inbox.take(block=False))
        except Empty:
            pass
        except ShutDown:
            self._is_ended = True
            return
        if self._ready:
            self._metrics.decoding += time.perf_counter() - begun
            return
        self._flush()  # before it waits, everything gathered is sent
        self._wait()
        self._give_up_overdue()

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
        if type(message) is Barrier:
            if self._alignment.is_overtaken_by(message):
                self._go_on_with([*self._alignment.release(), delivery])
                return
            self._done.append(delivery)
            if self.runner.coordinated:
                self._alignment.note(message)
        elif self._alignment.checkpoint is not None and self._alignment.holds_back(message.sender):
            self._hold_back(delivery)
            return
        elif type(message) is PacketBatch:
            self._process(delivery, message)
            return
        elif type(message) is StopSignal:
            self._done.append(delivery)
            self._senders_ended.add(message.sender)
            self._is_ended = len(self._senders_ended) >= self.runner.ctx.upstreams
        if self._alignment.is_complete(self._senders_ended):
            self._pass_barrier()

    def _hold_back(self, delivery: Delivery) -> None:
        if not self._alignment.hold(delivery):
            self._tell(told.CheckpointDeclined, checkpoint=self._alignment.checkpoint)
            self._go_on_with(self._alignment.release())

    def _go_on_with(self, held: list[Delivery]) -> None:
        """Take in next what was held back."""
        self._ready.extendleft(reversed(held))

    def _pass_barrier(self) -> None:
        """Take the snapshot, pass the barrier on, and go on with what was held back for it."""
        checkpoint = self._alignment.checkpoint
        assert checkpoint is not None
        self._await_window()
        if self._alignment.checkpoint != checkpoint:
            return  # it was given up while the window emptied
        state = self._snapshot(checkpoint)
        self._router.pass_barrier(checkpoint)
        self._tell_snapshot(checkpoint, state)
        self._go_on_with(self._alignment.release())

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

    def _process(self, delivery: Delivery, batch: PacketBatch) -> None:
        packets = batch.packets
        if self._known and packets and packets[0].id in self._known:
            self._known.remove(packets[0].id)
            packets = []
        if self.runner.skip_list.is_pending:
            packets = [packet for packet in packets if not self._skip(packet)]
        if not packets:
            self._done.append(delivery)
            return
        if not self._decodes:  # references: packets are as the sender had them
            index = batch.input_index
            for packet in packets:
                if packet.input_index != index:
                    packet.input_index = index
        if delivery.deliveries > 0 or self.runner.cautious_for:
            self._process_carefully(batch, packets)
            self._done.append(delivery)
        elif isinstance(self._invoker, DirectInvoker):
            self._process_directly(self._invoker, batch, packets)
            self._done.append(delivery)
        else:
            self._submit(self._invoker, delivery, packets)

    def _process_directly(
        self, invoker: DirectInvoker, batch: PacketBatch, packets: list[Packet]
    ) -> None:
        count, entered_at, tracer = len(packets), packets[0].timestamp, self.runner.tracer
        if tracer is None:
            failed = invoker.invoke(packets)
        else:
            with tracer.processing(batch):
                failed = invoker.invoke(packets)
        self._metrics.batch_done(count, failed, batch.sent_at, entered_at)

    def _process_carefully(self, batch: PacketBatch, packets: list[Packet]) -> None:
        """One packet after the other, each named before: a process may have died over one."""
        self._await_window()
        for packet in packets:
            self._tell(told.Attempting, packet=self.runner.skip_list.name_of(packet))
            one = PacketBatch(
                [packet], batch.input_index, batch.sent_at, traceparent=batch.traceparent
            )
            if isinstance(self._invoker, DirectInvoker):
                self._process_directly(self._invoker, one, [packet])
            else:
                self._submit(self._invoker, Delivery(one), [packet])
                self._await_window()
                self._done.pop()

    def _skip(self, packet: Packet) -> bool:
        """Whether a packet is left out, because a host hung or died over it before."""
        name = self.runner.skip_list.take_out(packet)
        if name is None:
            return False
        why = self.runner.skip_list.fatal_reason(name)
        if why is not None:
            error = TaskLost(f"packet {packet.id} is not given to the operator again: {why}")
            self.runner.errors.handle(packet, error)
            self.runner.skip_list.has_met_policy(name)
            # with what was counted: the process may die over the next one
            self._tell(told.PolicyApplied, packet=name, status=self.runner.get_full_status())
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
            self.runner.errors.handle(None, one.error, raw=one.raw)
        batch = delivery.message = batch or PacketBatch([])
        delivery.error = None
        delivery.keep_original()
        self._process(delivery, batch)

    # Concurrent processing.

    def _submit(
        self,
        invoker: ConcurrentInvoker,
        delivery: Delivery,
        packets: list[Packet],
        waiter: Future[None] | None = None,
    ) -> None:
        pending = Pending(delivery, packets, waiter)
        self._window.append(pending)
        self._in_window += len(packets)
        invoker.submit(pending)

    def _receive(self, mail: Mail) -> None:
        if isinstance(mail, Done):
            if not mail.work.is_given_up:
                self._settle(mail.work)
        elif isinstance(mail, ProcessPacket):
            self._process_for(mail)
        else:
            super()._receive(mail)

    def _settle(self, work: Work) -> None:
        """Send the results of what is done, in the order in which it came."""
        work.pending.settle(work)
        while self._window and self._window[0].left == 0:
            pending = self._window.popleft()
            self._in_window -= len(pending.packets)
            if pending.waiter is None:
                self._finish_pending(pending)
            else:
                self._settle_for(pending.waiter, partial(self._finish_pending, pending))

    def _finish_pending(self, pending: Pending) -> None:
        batch = pending.delivery.message
        assert isinstance(batch, PacketBatch)
        results: list[Packet] = []
        failed = 0
        for packet, outcome in zip(pending.packets, pending.outcomes):
            if isinstance(outcome, Exception):
                failed += 1
                self._metrics.timeouts += isinstance(outcome, ProcessingTimeout)
                if outcome is not _DEALT_WITH:
                    self.runner.errors.handle(packet, outcome)
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
        packets = [packet for work in late for packet in work.packets]
        for packet in packets:
            self._metrics.timeouts += 1
            try:
                self.runner.errors.handle(
                    packet, overdue(packet.id, self._options.processing_timeout or 0)
                )
            except PacketError as error:
                failure = error
        names = [self.runner.skip_list.name_of(packet) for packet in packets]
        self._tell(
            told.Stuck, packets=names, error=failure, early=self.runner.skip_list.is_pending,
            status=self.runner.get_full_status(),
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

    def leave(self) -> None:
        if isinstance(self._invoker, ConcurrentInvoker):
            self._invoker.close()
        for pending in self._window:
            if pending.waiter is not None:
                pending.waiter.set_exception(
                    TaskStateError(f"{self.runner.name} left off before it had processed a packet")
                )

    # What is acknowledged.

    def _flush(self) -> None:
        self._router.flush()
        self._metrics.settle()
        self._count_retries()
        done, self._done = self._done, []
        if not self.runner.coordinated:
            self._inbox.acknowledge(done)
        self._flushed_at = time.monotonic()

    def _on_checkpoint_completed(self) -> None:
        if self._tick is not None:
            self._await_window()  # the operator may hang, and then its thread takes no call
        super()._on_checkpoint_completed()
        self._inbox.acknowledge(self._marked)
        self._marked = []
        self.runner.skip_list.settle(self._skipped)
        self.runner.cautious_for = max(0, self.runner.cautious_for - 1)

    def _get_state(self) -> Any:
        self._skipped = self.runner.skip_list.skipped()
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
