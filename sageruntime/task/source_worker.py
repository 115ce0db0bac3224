"""SourceWorker: the loop of a task that reads a source."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.errors import TaskCancelled
from sageruntime.operator import IDLE, SourceOperator
from sageruntime.task.worker import Worker


class SourceWorker(Worker):
    """Reads a source and sends what it yields, in full batches or after a short while."""

    operator: SourceOperator

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stopping = False
        self._released = False
        self._checkpoint = 0
        self._read_ended = threading.Event()
        # One thread appends, two take away: only taking away and sending needs the lock.
        self._gathered: deque[Packet] = deque()
        self._sending = threading.Lock()

    def drain(self) -> None:
        """See :class:`Worker`."""
        with self._asked:
            self._stopping = True
            self._call_attention()

    def take_checkpoint(self, checkpoint: int) -> None:
        """See :class:`Worker`; it is taken when the source yields next."""
        with self._asked:
            self._checkpoint = checkpoint
            self._call_attention()

    def release(self) -> None:
        """The job's last checkpoint from the sources is complete: what follows can be finished."""
        with self._asked:
            self._released = True
            self._call_attention()

    def _work(self) -> None:
        self.total = self.operator.total()
        flusher = threading.Thread(target=self._flush_often, name=f"{self.name}-flush", daemon=True)
        flusher.start()
        try:
            self._read()
        finally:
            self._read_ended.set()
            flusher.join()

    def _read(self) -> None:
        gathered = self._gathered
        size = self.options.packets_per_batch
        for payload in self.operator.read():
            if payload is not IDLE:
                gathered.append(Packet(payload))
                if len(gathered) >= size:
                    self._send_gathered()
            if self._attention:
                self._attend()
            if self._stopping:
                break
        self._check()
        self._send_gathered()
        if self.coordinated:
            self.events.exhausted()
            self._wait_for(lambda: self._released)

    def _attend(self) -> None:
        super()._attend()
        if self._checkpoint:
            with self._sending:
                checkpoint, self._checkpoint = self._checkpoint, 0
                self._send()
                state = self._snapshot(checkpoint)
                self.router.pass_barrier(checkpoint)
            self.events.snapshot_taken(checkpoint, state)

    def _send_gathered(self) -> None:
        with self._sending:
            self._send()

    def _send(self) -> None:
        gathered = self._gathered
        packets = [gathered.popleft() for _ in range(len(gathered))]
        self.metrics.processed += len(packets)
        if self.tracer is None or not packets:
            self.router.route_batch(packets)
        else:
            with self.tracer.reading(packets):
                self.router.route_batch(packets)

    def _flush_often(self) -> None:
        try:
            while not self._read_ended.wait(self.options.flush_interval):
                self._send_gathered()
                self.router.flush()
        except TaskCancelled:
            return  # the reading thread has noticed, or will
        except Exception as error:
            self.events.failed_outside(error)
