"""Connection: the way from a task to the input queue of another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sagequeue.errors import EncodeError, Full, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router.packet import Message, Packet, PacketBatch, StopSignal
from sageruntime.communication.router.partitioning import Reject
from sageruntime.errors import DownstreamClosed, TaskCancelled

# How soon a task that waits for room notices that it was cancelled.
_CANCEL_CHECK_SECONDS = 0.2


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

    def send(self, packets: list[Packet], reject: Reject, cancelled: Callable[[], bool]) -> None:
        """Take packets; put every full batch, waiting while the queue is full.

        ``reject`` gets each packet that the queue cannot carry.

        Raises:
            DownstreamClosed: the downstream task has ended.
            TaskCancelled: ``cancelled()`` became true while waiting.
        """
        gathered = self._gathered
        gathered.extend(packets)
        size = self.batch_size
        if len(gathered) < size:
            return
        whole = len(gathered) - len(gathered) % size
        self._gathered = gathered[whole:]
        for start in range(0, whole, size):
            self._put(gathered[start : start + size], reject, cancelled)

    def flush(self, reject: Reject, cancelled: Callable[[], bool]) -> None:
        """Put what has been gathered; raises what :meth:`send` raises."""
        if self._gathered:
            packets, self._gathered = self._gathered, []
            self._put(packets, reject, cancelled)

    def stop(self, signal: StopSignal, cancelled: Callable[[], bool]) -> None:
        """Put the signal behind all packets; raises what :meth:`send` raises."""
        self._wait_and_put(signal, cancelled)

    def _put(self, packets: list[Packet], reject: Reject, cancelled: Callable[[], bool]) -> None:
        try:
            self._wait_and_put(PacketBatch(packets, self.input_index, time.time_ns()), cancelled)
        except EncodeError as error:
            if len(packets) == 1:
                reject(packets[0], error)
                return
            # Only the packets at fault are rejected.
            for packet in packets:
                self._put([packet], reject, cancelled)

    def _wait_and_put(self, message: Message, cancelled: Callable[[], bool]) -> None:
        while True:
            try:
                self.queue.put(message, timeout=_CANCEL_CHECK_SECONDS)
                return
            except Full:
                if cancelled():
                    raise TaskCancelled(f"stopped while it waited to send to {self.name}") from None
            except ShutDown as error:
                raise DownstreamClosed(
                    f"{self.name} has ended and takes no more packets"
                ) from error


def _restore(
    name: str, queue: Queue[Message], group: str, input_index: int, batch_size: int
) -> Connection:
    return Connection(name, queue, group=group, input_index=input_index, batch_size=batch_size)
