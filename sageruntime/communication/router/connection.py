"""Connection: the way from a task to the input queue of another."""

from __future__ import annotations

import time
from typing import Any, Protocol

from sagequeue.errors import EncodeError, Full, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router.packet import (
    Barrier,
    Message,
    Packet,
    PacketBatch,
    StopSignal,
)
from sageruntime.communication.router.partitioning import Reject
from sageruntime.errors import DownstreamClosed, TaskCancelled

# How soon a task that waits for room notices that it was cancelled.
_CANCEL_CHECK_SECONDS = 0.05


class Sender(Protocol):
    """Who sends along a connection: a router.

    Attributes:
        name: the task whose results are sent.
        attempt: which attempt of the task this is.
        on_reject: takes each packet that cannot be sent, and why.
        traceparent: the trace context that batches carry.
    """

    name: str
    attempt: int
    on_reject: Reject
    traceparent: str | None

    def is_cancelled(self) -> bool:
        """Whether to give up waiting for room."""
        ...


class Connection:
    """Gathers packets into batches and puts them in the queue of one downstream task.

    Args:
        name: the downstream task.
        queue: its input queue.
        group: connections of one group share the packets; each group gets all of them.
        input_index: which input of the downstream task this is.
        batch_size: packets at which a batch is put without waiting for :meth:`flush`.
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
        self._gathered: list[Packet] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.name, self.queue, self.group, self.input_index, self.batch_size)

    def send(self, packets: list[Packet], sender: Sender) -> None:
        """Take packets; put every full batch, waiting while the queue is full.

        Packets that the queue cannot carry go to the sender's ``on_reject``.

        Raises:
            DownstreamClosed: the downstream task has ended.
            TaskCancelled: the sender was cancelled while waiting.
        """
        gathered = self._gathered
        gathered.extend(packets)
        size = self.batch_size
        if len(gathered) < size:
            return
        whole = len(gathered) - len(gathered) % size
        self._gathered = gathered[whole:]
        for start in range(0, whole, size):
            self._put(gathered[start : start + size], sender)

    def flush(self, sender: Sender) -> None:
        """Put what has been gathered; raises what :meth:`send` raises."""
        if self._gathered:
            packets, self._gathered = self._gathered, []
            self._put(packets, sender)

    def signal(self, message: StopSignal | Barrier, sender: Sender) -> None:
        """Put a message behind all packets; raises what :meth:`send` raises."""
        self.flush(sender)
        self._wait_and_put(message, sender)

    def discard(self) -> None:
        """Forget what has been gathered."""
        self._gathered = []

    def _put(self, packets: list[Packet], sender: Sender) -> None:
        batch = PacketBatch(
            packets,
            self.input_index,
            time.time_ns(),
            sender.name,
            sender.attempt,
            sender.traceparent,
        )
        try:
            self._wait_and_put(batch, sender)
        except EncodeError as error:
            if len(packets) == 1:
                sender.on_reject(packets[0], error)
                return
            # Only the packets at fault are rejected.
            for packet in packets:
                self._put([packet], sender)

    def _wait_and_put(self, message: Message, sender: Sender) -> None:
        while True:
            try:
                self.queue.put(message, timeout=_CANCEL_CHECK_SECONDS)
                return
            except Full:
                if sender.is_cancelled():
                    raise TaskCancelled(f"stopped while it waited to send to {self.name}") from None
            except ShutDown as error:
                raise DownstreamClosed(
                    f"{self.name} has ended and takes no more packets"
                ) from error


def _restore(
    name: str, queue: Queue[Message], group: str, input_index: int, batch_size: int
) -> Connection:
    return Connection(name, queue, group=group, input_index=input_index, batch_size=batch_size)
