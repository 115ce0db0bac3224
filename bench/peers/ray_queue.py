"""Ray's own queue; the driver produces here, since a Ray queue needs Ray in both processes."""

from __future__ import annotations

from typing import Any

from bench.peers.base import Channel


class RayUtilQueue(Channel):
    share = 0.005
    batches = True

    def __init__(self) -> None:
        import ray
        from ray.util.queue import Queue

        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        self.queue: Any = Queue(actor_options={"num_cpus": 0})

    def put(self, message: Any) -> None:
        self.queue.put(message)

    def get(self) -> Any:
        return self.queue.get()

    def put_many(self, messages: list[Any]) -> None:
        self.queue.put_nowait_batch(messages)

    def get_many(self) -> list[Any]:
        return list(self.queue.get_nowait_batch(self.queue.qsize() or 1))

    def close(self) -> None:
        self.queue.shutdown()
