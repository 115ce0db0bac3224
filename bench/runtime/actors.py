"""A hop to a Ray actor and back on one machine, beside what Ray offers for it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.util.queue import Queue

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.restart import ray_running
from bench.runtime.stages import Idle, Numbers, Stopwatch, rate
from sageruntime import OperatorFactory, Pipeline

PACKETS = 400_000
CALLED_PACKETS = 200_000
LOOP_ITEMS = 1_000
_LIST = 100
_UNDER_WAY = 16


def figure(rounds: int) -> Figure:
    """Measure it."""
    with ray_running():
        samples = in_turn({"ours": job_rate, "calls": calls_rate, "queues": queues_rate}, rounds)
    ours = samples["ours"]
    rows = [
        Row('a stage on="ray"', ours, "packets/s"),
        Row(
            f"calls of an actor, lists of {_LIST} tuples", samples["calls"], "items/s",
            ratio_of(ours, samples["calls"]), least=1.0,
        ),
        Row(
            "an actor with a loop over ray.util.queue", samples["queues"], "items/s",
            ratio_of(ours, samples["queues"]), least=1.0,
        ),
    ]  # fmt: skip
    return Figure(
        "Through a Ray actor and back, on one machine",
        rows,
        f"Rates from the first arrival to the last; up to {_UNDER_WAY} calls are under way.",
    )


def job_rate() -> float:
    """Packets a second through a stage in an actor."""
    pipeline = Pipeline("ray-hop").source(OperatorFactory(Numbers, PACKETS))
    return rate(pipeline.map(Idle, on="ray").sink(Stopwatch).run().sink_result, PACKETS)


def calls_rate() -> float:
    """Tuples a second through calls, as one would make them by hand."""

    class Actor:
        def work(self, items: list[Any]) -> list[Any]:
            return [self.idle(item) for item in items]

        def idle(self, item: Any) -> Any:
            return item

    actor = _start(Actor)
    number = itertools.count().__next__
    under_way: deque[Any] = deque()
    ray.get(actor.work.remote([]))
    begun = time.perf_counter()
    for begin in range(0, CALLED_PACKETS, _LIST):
        if len(under_way) == _UNDER_WAY:
            ray.get(under_way.popleft())
        items = [(i, None, time.time_ns(), number()) for i in range(begin, begin + _LIST)]
        under_way.append(actor.work.remote(items))
    ray.get(list(under_way))
    seconds = time.perf_counter() - begun
    ray.kill(actor)
    return CALLED_PACKETS / seconds


def queues_rate() -> float:
    """Numbers a second through two queues of Ray's."""

    class Actor:
        def work(self, there: Queue, back: Queue) -> None:
            while (item := there.get()) is not None:
                back.put(item)
            back.put(None)

    there, back = Queue(), Queue()
    actor = _start(Actor)
    there.put(0)
    done = actor.work.remote(there, back)
    back.get()
    begun = time.perf_counter()
    for item in range(LOOP_ITEMS):
        there.put(item)
    there.put(None)
    while back.get() is not None:
        pass
    seconds = time.perf_counter() - begun
    ray.get(done)
    ray.kill(actor)
    for queue in (there, back):
        queue.shutdown()
    return LOOP_ITEMS / seconds


def _start(actor_class: Callable[[], Any]) -> Any:
    remote: Any = ray.remote(num_cpus=0)(actor_class)
    return remote.remote()
