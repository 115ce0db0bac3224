"""One hop between threads: what a pipeline costs with a stage that does nothing, and without.

It is CPU time: threads of one interpreter take turns, so that it is the time there is to lose; and
on a machine that others use, the difference of two wall-clock times tells about them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.stages import Idle, IdleBatch, Numbers, Stopwatch, rate
from sageruntime import BaseOperator, OperatorFactory, Pipeline

PACKETS = 1_000_000
LOOP_ITEMS = 100_000
PACKET_MICROSECONDS = 2.0
BATCH_MICROSECONDS = 0.5

Clock = Callable[[], float]


def figure(rounds: int) -> Figure:
    """Measure it."""
    samples = in_turn(
        {
            "nothing": lambda: job_seconds(None, time.process_time) / PACKETS,
            "packets": lambda: job_seconds(Idle, time.process_time) / PACKETS,
            "batches": lambda: job_seconds(IdleBatch, time.process_time) / PACKETS,
            "no loop": lambda: loop_seconds(0, time.process_time) / LOOP_ITEMS,
            "loop": lambda: loop_seconds(1, time.process_time) / LOOP_ITEMS,
        },
        rounds,
    )
    packets = _added(samples["packets"], samples["nothing"])
    batches = _added(samples["batches"], samples["nothing"])
    loop = _added(samples["loop"], samples["no loop"])
    rows = [
        Row("a stage, packet by packet", packets, "us", most=PACKET_MICROSECONDS),
        Row("a stage, BatchOperator", batches, "us", most=BATCH_MICROSECONDS),
        Row("a thread with a loop over queue.Queue", loop, "us", ratio_of(loop, packets)),
        Row("source and sink alone", [one * 1e6 for one in samples["nothing"]], "us"),
    ]
    return Figure("One hop on threads, CPU time a packet", rows)


def job_seconds(operator: type[BaseOperator] | None, clock: Clock = time.perf_counter) -> float:
    """The seconds of a pipeline with one operator or none between its source and its sink."""
    pipeline = Pipeline("hop").source(OperatorFactory(Numbers, PACKETS))
    if operator is not None:
        pipeline.map(operator)
    begun = clock()
    arrivals = pipeline.sink(Stopwatch).run().sink_result
    seconds = clock() - begun
    rate(arrivals, PACKETS)  # all have come
    return seconds


def loop_seconds(hops: int, clock: Clock = time.perf_counter) -> float:
    """The seconds of a chain of threads with loops over queue.Queue, by hand."""
    queues: list[queue.Queue[Any]] = [queue.Queue(50_000) for _ in range(hops + 1)]
    begun = clock()
    threads = [threading.Thread(target=_feed, args=(queues[0],))]
    threads += [threading.Thread(target=_pass_on, args=pair) for pair in pairwise(queues)]
    for thread in threads:
        thread.start()
    arrived = 0
    while queues[-1].get() is not None:
        arrived += 1
    for thread in threads:
        thread.join()
    if arrived != LOOP_ITEMS:
        raise AssertionError(f"{arrived} items came of {LOOP_ITEMS}")
    return clock() - begun


def _feed(into: queue.Queue[Any]) -> None:
    for number in range(LOOP_ITEMS):
        into.put(number)
    into.put(None)


def _pass_on(taken: queue.Queue[Any], into: queue.Queue[Any]) -> None:
    while (item := taken.get()) is not None:
        into.put(item)
    into.put(None)


def _added(longer: list[float], shorter: list[float]) -> list[float]:
    """What the stage adds in each round, in microseconds."""
    return [(one - other) * 1e6 for one, other in zip(longer, shorter)]
