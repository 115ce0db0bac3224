"""Memory: what the driver and each process of a job have in RAM while packets flow."""

from __future__ import annotations

import os
import statistics
import time

import psutil

from bench.runtime.figure import Figure, Row
from bench.runtime.stages import Idle, Numbers
from sageruntime import BaseOperator, Job, OperatorFactory, Packet, Pipeline, SinkOperator
from sageruntime.operator import BatchOperator
from sageruntime.operator.results import Results

MOST_GROWTH = 8.0
_MIB = 1024 * 1024
_SAMPLES = 400
_SHORTEST = 0.02

Sample = tuple[float, dict[str, float]]
"""The share of the packets that had arrived, and MiB in RAM by process."""


class Counted(SinkOperator, BatchOperator):
    """Counts packets, and keeps nothing else."""

    def __init__(self) -> None:
        self.count = 0

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        self.count += len(packets)
        return None

    def result(self) -> int:
        """See :class:`SinkOperator`."""
        return self.count


def figure(packets: int) -> Figure:
    """Let so many packets flow and measure it."""
    begun = time.monotonic()
    samples = watch(packets)
    seconds = time.monotonic() - begun
    rows = []
    for process, growth in growths(samples).items():
        in_ram = [sizes[process] for share, sizes in samples if share >= 0.25]
        rows.append(Row(f"{process}: in RAM", in_ram, "MiB"))
        rows.append(Row(f"{process}: last quarter over second", [growth], "MiB", most=MOST_GROWTH))
    note = f"{len(samples)} samples in {seconds:.0f} s"
    return Figure(f"Memory while {packets:,} packets flow", rows, note)


def watch(packets: int, operator: type[BaseOperator] = Idle) -> list[Sample]:
    """Let packets flow through two processes, and look at all of them again and again."""
    pipeline = Pipeline("memory").source(OperatorFactory(Numbers, packets))
    pipeline.map(operator, on="process", name="first").map(Idle, on="process", name="second")
    samples: list[Sample] = []
    with pipeline.sink(Counted).start() as job:
        begun = time.monotonic()
        while not job.wait(max(_SHORTEST, (time.monotonic() - begun) / _SAMPLES)):
            sizes = _in_ram(job)
            if sizes and all(sizes.values()):  # else one of them has just ended
                samples.append((job.progress()[-1].packets / packets, sizes))
        arrived = job.result().sink_result
    if arrived != packets:
        raise AssertionError(f"{arrived} packets came of {packets}")
    return samples


def growths(samples: list[Sample]) -> dict[str, float]:
    """By how many MiB each process is larger in the last quarter than in the second, when it was
    warm: medians of the two."""
    second = [sizes for share, sizes in samples if 0.25 <= share < 0.5]
    last = [sizes for share, sizes in samples if share >= 0.75]
    return {
        process: statistics.median(sizes[process] for sizes in last)
        - statistics.median(sizes[process] for sizes in second)
        for process in last[0]
    }


def _in_ram(job: Job) -> dict[str, float]:
    """MiB by process; nothing until all have told their ids."""
    sizes = {"driver": psutil.Process().memory_info().rss / _MIB}
    for stage in job.measure().stages:
        process = stage.tasks[0].process
        if process is None:
            return {}
        if process.pid != os.getpid():
            try:
                sizes[stage.stage] = psutil.Process(process.pid).memory_info().rss / _MIB
            except psutil.NoSuchProcess:
                return {}  # the end has come
    return sizes
