"""The standard library's ways between processes."""

from __future__ import annotations

import multiprocessing as mp
from typing import Any

from bench.peers.base import Channel

_context = mp.get_context("spawn")


class MpQueue(Channel):
    share = 0.1

    def __init__(self) -> None:
        self.queue: Any = _context.Queue()

    def put(self, message: Any) -> None:
        self.queue.put(message)

    def get(self) -> Any:
        return self.queue.get()

    def close(self) -> None:
        self.queue.close()


class MpSimpleQueue(MpQueue):
    def __init__(self) -> None:
        self.queue = _context.SimpleQueue()


class MpPipe(Channel):
    share = 0.1

    def __init__(self) -> None:
        self.receiver, self.sender = _context.Pipe(duplex=False)

    def put(self, message: Any) -> None:
        self.sender.send(message)

    def get(self) -> Any:
        return self.receiver.recv()

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()
