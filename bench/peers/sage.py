"""SageQueue in its modes; mpmc is the default."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.peers.base import Channel
from sagequeue.queue import Mode, SageQueue


class SageMpmc(Channel):
    mode: ClassVar[Mode] = "mpmc"
    batches = True

    def __init__(self) -> None:
        self.queue: SageQueue[Any] = SageQueue(mode=self.mode)
        self._bind()

    def _bind(self) -> None:
        self.put = self.queue.put  # type: ignore[method-assign]
        self.get = self.queue.get  # type: ignore[method-assign]
        self.put_many = self.queue.put_many  # type: ignore[assignment,method-assign]
        self.get_many = self.queue.get_many  # type: ignore[method-assign]

    def __getstate__(self) -> Any:
        return self.queue

    def __setstate__(self, queue: Any) -> None:
        self.queue = queue
        self._bind()

    def close(self) -> None:
        self.queue.close()


class SageMpsc(SageMpmc):
    mode = "mpsc"


class SageSpsc(SageMpmc):
    mode = "spsc"
