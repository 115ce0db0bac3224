"""Connection: the way from a task to the input queue of another."""

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

# How soon a task that waits for room notices that it was cancelled.
_CANCEL_CHECK_SECONDS = 0.05

# Batches and messages that go in one call to a queue of Ray's.
_PARCEL = 32

# How old the depth of a queue may be that takes a call to an actor to ask.
_DEPTH_SECONDS = 0.1

Rejected = tuple[Packet, Exception]
"""A packet that cannot be sent, and why."""


class Sender(Protocol):
    """Who sends along a connection: a router.

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

    Gathering never waits and is done by one thread at a time, which the router sees to; any number
    of threads may deliver.

    Args:
        name: the downstream task.
        queue: its input queue.
        group: connections of one group share the packets; each group gets all of them.
        input_index: which input of the downstream task this is.
        batch_size: packets in a full batch.

    Attributes:
        closed: why nothing can be delivered any more; None as long as the task takes packets.
        patience: seconds to wait for room before it is stalled; None for as long as it takes.
        stalled: whether the last delivery left off for want of room.
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
        self._due: deque[list[Packet] | StopSignal | Barrier] = deque()
        self._delivering = threading.Lock()
        # A queue of Ray's takes as long for several as for one; flush() does not wait for more.
        self._parcel = min(_PARCEL, queue.maxsize or _PARCEL) if queue.backend == "ray" else 1
        # Of a queue that is asked seldom: its depth when asked last, and what was put since.
        self._known_depth = 0
        self._known_until = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.name, self.queue, self.group, self.input_index, self.batch_size)

    def depth(self) -> int:
        """How many packets wait for the task, about: a batch of its queue counts as a full one.

        A queue that other machines share is asked at most ten times a second.
        """
        batches = len(self._due) + self._depth_of_queue()
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
        self._due.append(gathered)
        while len(packets) - room >= size:
            self._due.append(packets[room : room + size])
            room += size
        self._gathered = packets[room:]
        return len(self._due) >= self._parcel or self.closed is not None

    def cut(self) -> bool:
        """Make a batch of what is gathered and return whether there is something to deliver."""
        if self._gathered:
            packets, self._gathered = self._gathered, []
            self._due.append(packets)
        return bool(self._due)

    def append(self, message: StopSignal | Barrier) -> None:
        """Place a message behind all packets."""
        self.cut()
        self._due.append(message)

    def take_back(self) -> list[Packet]:
        """Give up all that was gathered and not delivered, where nobody delivers any more."""
        packets = [packet for due in self._due if isinstance(due, list) for packet in due]
        packets += self._gathered
        self._due.clear()
        self._gathered = []
        return packets

    def take_back_stalled(self) -> list[Packet]:
        """Give up what finds no room: nothing if another thread is at it, or if it lies before a
        message, which would come too early then."""
        if not self._delivering.acquire(blocking=False):
            return []
        try:
            if all(isinstance(due, list) for due in self._due):
                return self.take_back()
            return []
        finally:
            self._delivering.release()

    def deliver(self, sender: Sender) -> list[Rejected]:
        """Put every batch and message that is due, waiting while the queue is full.

        It leaves off when the connection is found closed or stalled: see :attr:`closed` and
        :attr:`stalled`.

        Returns:
            The packets that the queue cannot carry.

        Raises:
            TaskCancelled: the sender was cancelled while waiting.
        """
        rejected: list[Rejected] = []
        due = self._due
        with self._delivering:
            self.stalled = False
            alone = 0  # how many of the next go one by one, because one of them is at fault
            while due and self.closed is None and not self.stalled:
                count = min(len(due), 1 if alone else self._parcel)
                try:
                    self._put([self._message(due[i], sender) for i in range(count)], sender)
                except EncodeError as error:
                    # of several, the queue may have taken the first ones already
                    if count > 1:
                        alone = count - self._have_put(error.accepted)
                        continue
                    first = due.popleft()
                    assert isinstance(first, list)
                    if len(first) == 1:
                        rejected.append((first[0], error))
                    else:  # only the packets at fault are rejected
                        due.extendleft([packet] for packet in reversed(first))
                        alone += len(first)
                alone = max(0, alone - 1)
        return rejected

    def _message(self, due: list[Packet] | StopSignal | Barrier, sender: Sender) -> Message:
        if not isinstance(due, list):
            return due
        return PacketBatch(
            due, self.input_index, time.time_ns(), sender.name, sender.attempt, sender.traceparent
        )

    def _put(self, messages: list[Message], sender: Sender) -> None:
        """Put the first messages that are due; all, unless the connection is closed or stalled."""
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
                self._have_put(len(messages))
                return
            except Full as error:
                messages = messages[self._have_put(error.accepted) :]
                waited = 0.0 if error.accepted else waited + seconds
                self.stalled = patience is not None and waited >= patience
            except (ShutDown, QueueClosed) as error:
                self._have_put(error.accepted if isinstance(error, ShutDown) else 0)
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

    def _have_put(self, count: int) -> int:
        """The first ones that were due have been put; returns how many."""
        for _ in range(count):
            self._due.popleft()
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
            return 0  # whoever sends there next finds out


def _restore(
    name: str, queue: Queue[Message], group: str, input_index: int, batch_size: int
) -> Connection:
    return Connection(name, queue, group=group, input_index=input_index, batch_size=batch_size)
