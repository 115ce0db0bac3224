"""MailboxWorker: the loop of a task with an input queue."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from sagequeue.errors import DecodeError, Empty, Full, ShutDown
from sageruntime.communication.router import (
    Barrier,
    Message,
    Nudge,
    PacketBatch,
    StopSignal,
)
from sageruntime.task.hung_packets import HungPackets
from sageruntime.task.inbox import Inbox
from sageruntime.task.worker import Worker

# Waits for messages of which one shows how long it takes to decode them.
_WAITS_A_MEASUREMENT = 8


class MailboxWorker(Worker):
    """Works on what comes into an input queue, until ``upstreams`` StopSignals have come.

    Checkpoints are Chandy and Lamport's, with barriers aligned as in Flink (Carbone et al.,
    "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015): what a sender sends
    behind its barrier waits here until the barriers of all senders have come. Then the state
    holds the effects of everything before the barriers and of nothing behind them.

    In a task that is in no job and keeps checkpoints, these begin here. What was taken since the
    last stays unfinished, and the state says which of it belongs to it: so each packet has its
    effect on the state once, however often it comes.
    """

    def __init__(
        self, *args: Any, inbox: Inbox, upstreams: int, hung: HungPackets, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._inbox = inbox
        self._upstreams = upstreams
        self._hung = hung
        hung.begin()
        self._left_out = hung.left_out()
        self._ended: set[str] = set()
        self._barrier: Barrier | None = None
        self._passed: set[str] = set()
        self._held: list[Message] = []
        self._flushed_at = 0.0
        self._checkpoint = 0
        self._is_alone = self.coordinated and upstreams == 0
        # First packets of batches that may come again, and that the state has in it.
        self._known: set[int] = set()
        # A queue of references decodes nothing.
        self._decodes = inbox.queue.backend not in ("object", "local")
        self._decoding_each = 0.0
        self._waits = 0

    def drain(self) -> None:
        """See :class:`Worker`."""
        self._inbox.queue.shutdown()

    def take_checkpoint(self, checkpoint: int) -> None:
        """See :class:`Worker`; it is taken between two messages."""
        with self._asked:
            self._checkpoint = checkpoint
            self._call_attention()

    def _end_input(self) -> None:
        if not self._is_alone:
            self._inbox.end()

    def _on_checkpoint_completed(self) -> None:
        super()._on_checkpoint_completed()
        self._inbox.done_to_mark()
        self._hung.settle(self._left_out)

    def _get_state(self) -> Any:
        self._left_out = self._hung.left_out()
        state = super()._get_state()
        if not self._is_alone:
            return state
        unfinished = self._inbox.mark()
        known = {m.packets[0].id for m in unfinished if isinstance(m, PacketBatch)}
        return state, known | self._known

    def _set_state(self, state: Any) -> None:
        if self._is_alone:
            state, self._known = state
        super()._set_state(state)

    def _call_attention(self) -> None:
        super()._call_attention()
        with suppress(Full, ShutDown):  # full: then the worker does not wait for a message
            self._inbox.queue.put(Nudge(), block=False)

    def _work(self) -> None:
        interval = self.options.flush_interval
        self._flushed_at = time.monotonic()
        while True:
            try:
                messages = self._take()
            except ShutDown:
                self._check()
                break
            except DecodeError as error:
                self.errors.handle(None, error)
                continue
            if any(self._receive(message) for message in messages):
                break
            if time.monotonic() - self._flushed_at >= interval or self._inbox.crowded:
                self._flush()
            if self._checkpoint:
                self._begin_checkpoint()
            if self._is_alone and self._inbox.crowded:
                self._make_room()
        self._flush()

    def _begin_checkpoint(self) -> None:
        checkpoint, self._checkpoint = self._checkpoint, 0
        self._flush()
        self.events.snapshot_taken(checkpoint, self._snapshot(checkpoint))

    def _make_room(self) -> None:
        """Wait until a checkpoint is complete, so that more may be taken."""
        self.events.checkpoint_wanted()
        while self._inbox.crowded:
            self._wait_for(lambda: self._checkpoint > 0 or not self._inbox.crowded)
            if self._checkpoint:
                self._begin_checkpoint()

    def _take(self) -> list[Message]:
        """Messages from the queue; before waiting for them, everything gathered is sent."""
        begun = time.perf_counter()
        try:
            messages = self._inbox.take(block=False)
        except Empty:
            self._flush()
            return self._wait()
        self.metrics.decoding += time.perf_counter() - begun
        return messages

    def _wait(self) -> list[Message]:
        """Messages from the queue, once they come.

        The CPU time is what it takes to decode them. It is a system call to ask for it, so it is
        asked for now and then.
        """
        begun = time.perf_counter()
        if self._decodes and self._waits % _WAITS_A_MEASUREMENT == 0:
            used = time.thread_time()
            messages = self._inbox.take(block=True)
            self._decoding_each = (time.thread_time() - used) / len(messages)
        else:
            messages = self._inbox.take(block=True)
        self._waits += 1
        passed = time.perf_counter() - begun
        decoding = min(passed, self._decoding_each * len(messages))
        self.metrics.decoding += decoding
        self.metrics.waiting += passed - decoding
        return messages

    def _flush(self) -> None:
        routed = self.router.seconds
        self.router.flush()
        self.metrics.flushing += self.router.seconds - routed
        self.metrics.settle()
        if not self.coordinated:
            self._inbox.done()
        self._flushed_at = time.monotonic()

    def _receive(self, message: Message) -> bool:
        """Act on a message; whether it was the last."""
        self._check()
        if isinstance(message, Nudge) or (isinstance(message, Barrier) and not self.coordinated):
            return False
        if message.sender and message.attempt < self.router.attempt:
            return False  # from before the job went back to a checkpoint
        if message.sender in self._passed and not isinstance(message, Barrier):
            self._held.append(message)
            return False
        if type(message) is PacketBatch:
            self._handle(message)
            return False
        if isinstance(message, StopSignal):
            self._ended.add(message.sender)
        elif isinstance(message, Barrier):
            self._note(message)
        last = isinstance(message, StopSignal) and len(self._ended) >= self._upstreams
        if self._barrier is not None and len(self._passed | self._ended) >= self._upstreams:
            return self._pass(self._barrier) or last
        return last

    def _note(self, barrier: Barrier) -> None:
        if self._barrier is None or barrier.checkpoint > self._barrier.checkpoint:
            self._barrier = barrier
            self._passed = set()
        if barrier.checkpoint == self._barrier.checkpoint:
            self._passed.add(barrier.sender)

    def _pass(self, barrier: Barrier) -> bool:
        """Take the snapshot, pass the barrier on, and receive what had to wait for it."""
        state = self._snapshot(barrier.checkpoint)
        self.router.pass_barrier(barrier.checkpoint)
        self.events.snapshot_taken(barrier.checkpoint, state)
        self._barrier = None
        self._passed = set()
        held, self._held = self._held, []
        return any(self._receive(message) for message in held)

    def _handle(self, batch: PacketBatch) -> None:
        packets = batch.packets
        if self._known and packets[0].id in self._known:
            self._known.remove(packets[0].id)
            return
        if self._hung.due:
            packets = self._hung.rest_of(packets)
        if not packets:
            return
        if not self._decodes:  # references: packets are as the sender had them
            index = batch.input_index
            for packet in packets:
                if packet.input_index != index:
                    packet.input_index = index
        count, entered_at = len(packets), packets[0].timestamp
        if self.tracer is None:
            failed = self.calls.work_on(packets)
        else:
            with self.tracer.processing(batch):
                failed = self.calls.work_on(packets)
        self.metrics.batch_done(count, failed, batch.sent_at, entered_at)
