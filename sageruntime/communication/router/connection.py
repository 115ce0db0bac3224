"""Connection: from a task to the input queue of another."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from sagequeue.errors import BackendUnavailable, EncodeError, Full, QueueClosed, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router.packet import (
    Barrier,
    Message,
    Packet,
    PacketBatch,
    StopSignal,
)
from sageruntime.errors import DownstreamClosed, TaskCancelled

if TYPE_CHECKING:
    from sageruntime.core.policies import RetryPolicy

# How often a task that waits for room checks whether it was cancelled.
_CANCEL_CHECK_SECONDS = 0.05

# Most batches and messages in one call to a queue on Ray.
_MAX_BATCHES_PER_CALL = 32

# For how long the depth of a queue on Ray is remembered: to ask for it is a call to an actor.
_DEPTH_SECONDS = 0.1

Rejected = tuple[Packet, Exception]
"""A packet that cannot be sent, and why."""


class Sender(Protocol):
    """What a connection has to know of its router.

    Attributes:
        name: the task whose results are sent.
        attempt: which attempt of the task this is.
        retry: how often a queue that cannot be reached is tried; None for once.
        cancelled: set when it gives up waiting.
        traceparent: the trace context that batches carry.
    """

    name: str
    attempt: int
    retry: RetryPolicy | None
    cancelled: threading.Event
    traceparent: str | None


class Connection:
    """Gathers packets into batches and puts them in the queue of one downstream task.

    Gathering never waits. The router lets one thread at a time gather; any number may deliver.

    Args:
        name: the downstream task.
        queue: its input queue.
        group: connections of one group share the packets; each group gets all of them.
        input_index: which input of the downstream task this is.
        batch_size: packets in a full batch.

    Attributes:
        closed: why nothing can be delivered any more; None as long as the task takes packets.
        patience: seconds to wait for room before it is stalled; None for as long as it takes.
        stalled: whether the last delivery stopped because there was no room.
    """

    def __init__(
        self,
        name: str,
        queue: Queue[Message],
        *,
        group: str = "",
        input_index: int = 0,
        batch_size: int = 100,
    ) -> None:
        self.name = name
        self.queue = queue
        self.group = group
        self.input_index = input_index
        self.batch_size = batch_size
        self.closed: DownstreamClosed | None = None
        self.patience: float | None = None
        self.stalled = False
        self._gathered: list[Packet] = []
        self._pending: deque[list[Packet] | StopSignal | Barrier] = deque()
        self._delivering = threading.Lock()
        # A call to a queue on Ray takes as long for many batches as for one.
        self._batches_per_call = 1
        if queue.backend == "ray":
            most = _MAX_BATCHES_PER_CALL
            self._batches_per_call = min(most, queue.maxsize or most)
        # For a queue on Ray: its depth when asked last, plus what was put since.
        self._known_depth = 0
        self._known_until = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.name, self.queue, self.group, self.input_index, self.batch_size)

    def depth(self) -> int:
        """How many packets wait for the task, about: a batch of its queue counts as a full one.

        A queue that other machines share is asked at most ten times a second.
        """
        batches = len(self._pending) + self._depth_of_queue()
        return batches * self.batch_size + len(self._gathered)

    def gather(self, packets: list[Packet]) -> bool:
        """Take packets and return whether there is something to deliver."""
        size = self.batch_size
        gathered = self._gathered
        room = size - len(gathered)
        if len(packets) < room:
            gathered += packets
            return self.closed is not None
        gathered += packets[:room]
        self._pending.append(gathered)
        while len(packets) - room >= size:
            self._pending.append(packets[room : room + size])
            room += size
        self._gathered = packets[room:]
        return len(self._pending) >= self._batches_per_call or self.closed is not None

    def seal_batch(self) -> bool:
        """End the batch that is being gathered; whether there is something to deliver."""
        if self._gathered:
            packets, self._gathered = self._gathered, []
            self._pending.append(packets)
        return bool(self._pending)

    def append(self, message: StopSignal | Barrier) -> None:
        """Add a message behind all packets."""
        self.seal_batch()
        self._pending.append(message)

    def withdraw(self) -> list[Packet]:
        """Remove all undelivered packets and return them; no thread may be delivering."""
        batches = [batch for batch in self._pending if isinstance(batch, list)]
        packets = [packet for batch in batches for packet in batch]
        packets += self._gathered
        self._pending.clear()
        self._gathered = []
        return packets

    def withdraw_stalled(self) -> list[Packet]:
        """Remove the packets that find no room and return them.

        There are none if another thread is delivering, or if a barrier or stop signal is pending:
        it would overtake them.
        """
        if not self._delivering.acquire(blocking=False):
            return []
        try:
            if all(isinstance(item, list) for item in self._pending):
                return self.withdraw()
            return []
        finally:
            self._delivering.release()

    def deliver(self, sender: Sender) -> list[Rejected]:
        """Put every batch and message that is pending, waiting while the queue is full.

        It stops early when it finds the connection closed or stalled: see :attr:`closed` and
        :attr:`stalled`.

        Returns:
            The packets that the queue cannot carry.

        Raises:
            TaskCancelled: the sender was cancelled while waiting.
        """
        rejected: list[Rejected] = []
        pending = self._pending
        with self._delivering:
            self.stalled = False
            one_by_one = (
                0  # how many batches are put singly, to find the one that cannot be encoded
            )
            while pending and self.closed is None and not self.stalled:
                count = min(len(pending), 1 if one_by_one else self._batches_per_call)
                try:
                    self._put([self._message(pending[i], sender) for i in range(count)], sender)
                except EncodeError as error:
                    # of several, the queue may have taken the first ones already
                    if count > 1:
                        one_by_one = count - self._confirm_put(error.accepted)
                        continue
                    first = pending.popleft()
                    assert isinstance(first, list)
                    if len(first) == 1:
                        rejected.append((first[0], error))
                    else:  # only the packets at fault are rejected
                        pending.extendleft([packet] for packet in reversed(first))
                        one_by_one += len(first)
                one_by_one = max(0, one_by_one - 1)
        return rejected

    def _message(self, item: list[Packet] | StopSignal | Barrier, sender: Sender) -> Message:
        if not isinstance(item, list):
            return item
        return PacketBatch(
            item, self.input_index, time.time_ns(), sender.name, sender.attempt, sender.traceparent
        )

    def _put(self, messages: list[Message], sender: Sender) -> None:
        """Put these, the first pending messages; stop when the connection is closed or stalled."""
        failures = 0
        patience = self.patience
        seconds = _CANCEL_CHECK_SECONDS
        if patience is not None:
            seconds = min(seconds, patience)
        waited = 0.0
        while True:
            try:
                if len(messages) == 1:
                    self.queue.put(messages[0], timeout=seconds)
                else:
                    self.queue.put_many(messages, timeout=seconds)
                self._confirm_put(len(messages))
                return
            except Full as error:
                messages = messages[self._confirm_put(error.accepted) :]
                waited = 0.0 if error.accepted else waited + seconds
                self.stalled = patience is not None and waited >= patience
            except (ShutDown, QueueClosed) as error:
                self._confirm_put(error.accepted if isinstance(error, ShutDown) else 0)
                self._close(f"{self.name} has ended and takes no more packets", error)
                return
            except BackendUnavailable as error:
                failures += 1
                retry = sender.retry
                if retry is None or failures >= retry.attempts:
                    self._close(f"the queue of {self.name} is gone: {error}", error)
                    return
                sender.cancelled.wait(retry.delay(failures))
            if sender.cancelled.is_set():
                raise TaskCancelled(f"stopped while it waited to send to {self.name}")
            if self.stalled:
                return

    def _confirm_put(self, count: int) -> int:
        """Drop the first ``count`` pending messages, which have been put; returns ``count``."""
        for _ in range(count):
            self._pending.popleft()
        self._known_depth += count
        return count

    def _close(self, why: str, cause: Exception) -> None:
        self.closed = DownstreamClosed(why)
        self.closed.__cause__ = cause

    def _depth_of_queue(self) -> int:
        try:
            if self.queue.backend != "ray":
                return self.queue.qsize()
            now = time.monotonic()
            if now >= self._known_until:
                self._known_depth = self.queue.qsize()
                self._known_until = now + _DEPTH_SECONDS
            return self._known_depth
        except (QueueClosed, BackendUnavailable):
            return 0  # the next delivery finds out


def _restore(
    name: str, queue: Queue[Message], group: str, input_index: int, batch_size: int
) -> Connection:
    return Connection(name, queue, group=group, input_index=input_index, batch_size=batch_size)
