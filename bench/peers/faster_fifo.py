"""faster-fifo: a locked byte ring in shared memory."""

from __future__ import annotations

from typing import Any

import faster_fifo
import faster_fifo_reduction  # noqa: F401  (makes the queue picklable)

from bench.peers.base import Channel


class FasterFifo(Channel):
    share = 0.4
    batches = True

    def __init__(self) -> None:
        self.queue: Any = faster_fifo.Queue(64 << 20)

    def put(self, message: Any) -> None:
        self.queue.put(message, timeout=60)

    def get(self) -> Any:
        return self.queue.get(timeout=60)

    def put_many(self, messages: list[Any]) -> None:
        self.queue.put_many(messages, timeout=60)

    def get_many(self) -> list[Any]:
        return list(self.queue.get_many(timeout=60))

    def close(self) -> None:
        self.queue.close()
