"""What is measured of one version, in a process of its own: ``python -m bench.against.cases CASE``.

Prints JSON: numbers by measure. Less is better in each. It uses only what both versions have.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.instructions import Counted, count
from bench.runtime.restart import ray_running, seconds_to_full_rate
from bench.runtime.stages import Idle, IdleBatch, Numbers, Stopwatch, rate
from sageruntime import (
    IDLE,
    BaseOperator,
    CheckpointOptions,
    OperatorFactory,
    Packet,
    Pipeline,
    SourceOperator,
)

Measures = dict[str, float]

HOPS: dict[str, type[BaseOperator] | None] = {
    "source and sink alone": None,
    "and a stage, packet by packet": Idle,
    "and a stage, batch by batch": IdleBatch,
}
COUNTED_PACKETS = 100_000
SLOWER = 50  # how many times as slow a program is under valgrind
PACKETS = 1_000_000
HOST_PACKETS = 1_000_000
FEW_TASKS, MANY_TASKS = 20, 120
_KIB, _MIB = 1024, 1024 * 1024


class TimedIdle(Idle):
    """Does nothing with each packet, and tells at the end what CPU time its process used."""

    def open(self) -> None:
        """Begin to count."""
        self.begun = time.process_time()

    def finish(self) -> Packet:
        """The seconds."""
        return Packet(time.process_time() - self.begun)


class SeparateStopwatch(Stopwatch):
    """A :class:`Stopwatch` of whose result the seconds of a :class:`TimedIdle` are a part."""

    seconds = 0.0

    def process_batch(self, packets: list[Packet]) -> None:
        """Note how many came, and the seconds."""
        if type(packets[-1].payload) is float:
            self.seconds = packets.pop().payload
        if packets:
            super().process_batch(packets)

    def result(self) -> Any:
        """The arrivals and the seconds."""
        return self.arrivals, self.seconds


class Positioned(Numbers):
    """Numbers with a position for checkpoints."""

    next = 0

    def read(self) -> Iterator[int]:
        """The numbers that have not been read."""
        for number in range(self.next, self.count):
            self.next = number + 1
            yield number

    def snapshot(self) -> int:
        """The position."""
        return self.next

    def restore(self, state: int) -> None:
        """Go on from a position."""
        self.next = state


class Silent(SourceOperator):
    """Has nothing to yield."""

    def read(self) -> Iterator[Any]:
        """Nothing, until the job is stopped."""
        while True:
            time.sleep(0.01)
            yield IDLE


def instructions() -> Measures:
    """Of a hop on threads."""
    return {
        f"threads: {name} (instructions a packet)": count(
            ["-m", "bench.against.cases", "counted", name]
        )[0] / COUNTED_PACKETS
        for name in HOPS
    }  # fmt: skip


def counted(hop: str) -> None:
    """Run a job so that the instructions are counted, after one that is not."""
    sys.setswitchinterval(sys.getswitchinterval() * SLOWER)
    _run(HOPS[hop], COUNTED_PACKETS)
    with Counted():
        _run(HOPS[hop], COUNTED_PACKETS)


def threads() -> Measures:
    """CPU time of a hop on threads."""
    measures = {}
    for name, operator in HOPS.items():
        _run(operator, PACKETS // 10)
        begun = time.process_time()
        _run(operator, PACKETS)
        seconds = time.process_time() - begun
        measures[f"threads: {name} (CPU us a packet)"] = seconds / PACKETS * 1e6
    return measures


def process() -> Measures:
    """Through a process and back."""
    return _through_host("process")


def actor() -> Measures:
    """Through a Ray actor and back."""
    with ray_running():
        return _through_host("ray")


def restart() -> Measures:
    """From SIGKILL to the full rate."""
    return {
        "SIGKILL to full rate, back to a checkpoint (s)": seconds_to_full_rate(checkpoints=True),
        "SIGKILL to full rate, unfinished claimed (s)": seconds_to_full_rate(checkpoints=False),
    }


def checkpoints() -> Measures:
    """On threads, with a checkpoint ten times a second."""
    _run(Idle, PACKETS // 10)
    pipeline = Pipeline("checkpoints").source(OperatorFactory(Positioned, PACKETS))
    pipeline.map(Idle).sink(Stopwatch)
    with tempfile.TemporaryDirectory() as folder:
        kept = CheckpointOptions(Path(folder) / "checkpoints.db", interval=0.1)
        begun = time.process_time()
        arrivals = pipeline.run(checkpoint=kept).sink_result
        seconds = time.process_time() - begun
    return {
        "checkpoints every 0.1 s (CPU us a packet)": seconds / PACKETS * 1e6,
        "checkpoints every 0.1 s (us a packet)": 1e6 / rate(arrivals, PACKETS),
    }


def memory() -> Measures:
    """What a task takes."""
    few = _resident_with(FEW_TASKS)
    many = _resident_with(MANY_TASKS)
    pipeline = Pipeline("memory").source(Silent)
    pipeline.map(Idle, on="process").sink(Stopwatch)
    with pipeline.start() as job:
        pid = None
        while pid in (None, os.getpid()):
            time.sleep(0.1)
            told = job.measure().stages[1].tasks[0].process
            pid = None if told is None else told.pid
        own = psutil.Process(pid).memory_full_info().uss
        job.stop()
        job.result()
    return {
        "memory of a task on a thread (KiB)": (many - few) / (MANY_TASKS - FEW_TASKS) / _KIB,
        "memory of a task in a process (MiB of its own)": own / _MIB,
    }


def _run(operator: type[BaseOperator] | None, packets: int) -> None:
    pipeline = Pipeline("hop").source(OperatorFactory(Numbers, packets))
    if operator is not None:
        pipeline.map(operator)
    rate(pipeline.sink(Stopwatch).run().sink_result, packets)  # all have come


def _through_host(host: Any) -> Measures:
    _run(Idle, PACKETS // 10)
    pipeline = Pipeline("hop").source(OperatorFactory(Numbers, HOST_PACKETS))
    pipeline.map(TimedIdle, on=host).sink(SeparateStopwatch)
    begun = time.process_time()
    arrivals, seconds = pipeline.run().sink_result
    seconds += time.process_time() - begun
    return {
        f"through {host} and back (CPU us a packet)": seconds / HOST_PACKETS * 1e6,
        f"through {host} and back (us a packet)": 1e6 / rate(arrivals, HOST_PACKETS),
    }


def _resident_with(tasks: int) -> int:
    pipeline = Pipeline(f"memory-{tasks}").source(Silent)
    for _ in range(tasks):
        pipeline.map(Idle)
    with pipeline.sink(Stopwatch).start() as job:
        time.sleep(1.0)  # until all have begun
        resident: int = psutil.Process().memory_info().rss
        job.stop()
        job.result()
    return resident


CASES: dict[str, Callable[[], Measures]] = {
    "instructions": instructions,
    "threads": threads,
    "process": process,
    "actor": actor,
    "restart": restart,
    "checkpoints": checkpoints,
    "memory": memory,
}

if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    if case == "counted":
        counted(*arguments)
    else:
        output = os.dup(1)
        os.dup2(2, 1)  # what is printed meanwhile is not the answer
        measures = CASES[case]()
        with open(output, "w") as answer:
            json.dump(measures, answer)
