"""What is measured of a task, a stage and a job: typed, frozen, JSON-able, picklable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sageruntime.metrics.latency import LatencyHistogram, LatencySummary


class TimeSpent(msgspec.Struct, frozen=True):
    """Seconds that a worker loop spent, by what it did.

    Attributes:
        waiting: for the next batch to come, to be resumed, or for the end of the job.
        decoding: taking batches from the queue and decoding them.
        operator: in the operator, and whatever else the loop does; for a source, reading it.
        routing: partitioning, encoding and putting the results, and waiting for room downstream.
    """

    waiting: float = 0.0
    decoding: float = 0.0
    operator: float = 0.0
    routing: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.waiting + self.decoding + self.operator + self.routing

    def __add__(self, other: TimeSpent) -> TimeSpent:
        return TimeSpent(
            self.waiting + other.waiting,
            self.decoding + other.decoding,
            self.operator + other.operator,
            self.routing + other.routing,
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured of a task, and in sum of several.

    Attributes:
        processed: packets processed without an error; for a source, packets read.
        emitted: packets routed downstream.
        errors: packets that met the error policy.
        retries: times a packet was given to the operator again.
        timeouts: packets that took longer than the processing timeout.
        restarts: times a task was started again after a failure.
        queue_depth: batches waiting in the input queue.
        packets_per_second: over the last ``monitoring_interval``, or since the last measurement if
            that is longer ago.
        mean_packets_per_second: over all the time its worker has been running.
        cpu_seconds: CPU time of the worker threads.
        cpu_percent: of one core, over the same time as ``packets_per_second``.
        time_spent: what the worker loop did with its time.
        latency: of each packet from being sent to the task to being done.
        end_to_end: of each packet from entering the pipeline to being done.
    """

    processed: int = 0
    emitted: int = 0
    errors: int = 0
    retries: int = 0
    timeouts: int = 0
    restarts: int = 0
    queue_depth: int = 0
    packets_per_second: float = 0.0
    mean_packets_per_second: float = 0.0
    cpu_seconds: float = 0.0
    cpu_percent: float = 0.0
    time_spent: TimeSpent = TimeSpent()
    latency: LatencySummary = LatencySummary()
    end_to_end: LatencySummary = LatencySummary()


class ThreadUsage(msgspec.Struct, frozen=True):
    """What one worker thread has done.

    Attributes:
        name: the thread's.
        processed: packets it has processed.
        cpu_seconds: its CPU time.
    """

    name: str
    processed: int
    cpu_seconds: float


class ProcessUsage(msgspec.Struct, frozen=True):
    """What a process that hosts tasks uses, with everything else that runs in it.

    Attributes:
        node: the machine's name.
        pid: the process.
        cpu_seconds: its CPU time, of all its threads.
        cpu_percent: of one core, over the same time as ``packets_per_second``.
        rss: bytes of memory it has in RAM.
    """

    node: str
    pid: int
    cpu_seconds: float
    cpu_percent: float
    rss: int


class MetricsSnapshot(Figures, frozen=True, kw_only=True):
    """One measurement of one task.

    Attributes:
        task: its name.
        stage: the stage it is an instance of.
        host: ``"thread"``, ``"process"`` or ``"ray"``.
        state: where it is in its life.
        at: when it was measured, in nanoseconds since the epoch.
        seconds: how long its worker has been running.
        threads: its worker threads.
        process: the process it is hosted by; None before the first word from another process.
    """

    task: str
    stage: str
    host: str
    state: str
    at: int
    seconds: float
    threads: tuple[ThreadUsage, ...] = ()
    process: ProcessUsage | None = None

    def after(self, earlier: MetricsSnapshot) -> MetricsSnapshot:
        """This snapshot plus the counts of an earlier host of the same task."""
        figures = _sum((earlier, self))
        seconds = earlier.seconds + self.seconds
        figures.update(
            queue_depth=self.queue_depth,
            packets_per_second=self.packets_per_second,
            mean_packets_per_second=figures["processed"] / (seconds or 1.0),
            cpu_percent=self.cpu_percent,
        )
        return msgspec.structs.replace(self, seconds=seconds, **figures)


class StageMetrics(Figures, frozen=True, kw_only=True):
    """The tasks of one stage together.

    Attributes:
        stage: its name.
        host: where its tasks run.
        tasks: each of them.
    """

    stage: str
    host: str
    tasks: tuple[MetricsSnapshot, ...]

    @classmethod
    def of(cls, stage: str, host: str, tasks: Sequence[MetricsSnapshot]) -> StageMetrics:
        """Add up the tasks of a stage."""
        return cls(stage=stage, host=host, tasks=tuple(tasks), **_sum(tasks))


class JobMetrics(Figures, frozen=True, kw_only=True):
    """All stages together. ``end_to_end`` is that of the last stage: from source to sink.

    Attributes:
        job: its name.
        at: when it was measured, in nanoseconds since the epoch.
        seconds: how long it has been running.
        stages: in the order of the pipeline.
        services: in the order of the pipeline; their packets are calls. Not included in the sums.
        processes: each process that hosts tasks, once.
    """

    job: str
    at: int
    seconds: float
    stages: tuple[StageMetrics, ...]
    services: tuple[StageMetrics, ...] = ()
    processes: tuple[ProcessUsage, ...]

    @classmethod
    def of(
        cls,
        job: str,
        at: int,
        seconds: float,
        stages: Sequence[StageMetrics],
        services: Sequence[StageMetrics] = (),
    ) -> JobMetrics:
        """Add up the stages of a job."""
        processes = {
            (task.process.node, task.process.pid): task.process
            for stage in (*stages, *services)
            for task in stage.tasks
            if task.process is not None
        }
        figures = _sum(stages)
        if stages:
            figures["end_to_end"] = stages[-1].end_to_end
        return cls(
            job=job,
            at=at,
            seconds=seconds,
            stages=tuple(stages),
            services=tuple(services),
            processes=tuple(processes.values()),
            **figures,
        )

    @property
    def rss(self) -> int:
        """Bytes that all processes have in RAM; what they share counts in each."""
        return sum(process.rss for process in self.processes)


_LATENCIES = ("latency", "end_to_end")


def _sum(parts: Sequence[Figures]) -> dict[str, Any]:
    if len(parts) == 1:
        return {name: getattr(parts[0], name) for name in Figures.__struct_fields__}
    sums: dict[str, Any] = {
        name: sum(getattr(part, name) for part in parts)
        for name in Figures.__struct_fields__
        if name not in (*_LATENCIES, "time_spent")
    }
    sums["time_spent"] = sum((part.time_spent for part in parts), TimeSpent())
    for name in _LATENCIES:
        sums[name] = LatencyHistogram.merged(getattr(part, name) for part in parts).summary()
    return sums
