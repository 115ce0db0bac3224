"""Summaries of a job: by stage while it runs, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sageruntime.errors import PipelineError
from sageruntime.metrics import JobMetrics, LatencySummary
from sageruntime.stage import Stage
from sageruntime.task import BaseTask, DeadLetter


@dataclass(frozen=True)
class StageSummary:
    """What the tasks of one stage did together.

    Attributes:
        name, host, parallelism: as of the stage.
        packets: packets processed without an error; for a source, packets read.
        emitted: packets sent on.
        errors: packets that met the error policy.
        total: packets a source will read in all, if it knows.
        p50, p99: seconds from being sent to this stage to being done, for half and for 99 % of
            the packets; None for a source, and while the job runs.
    """

    name: str
    host: str
    parallelism: int
    packets: int
    emitted: int
    errors: int
    total: int | None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class JobResult:
    """The result of a job that has ended.

    Attributes:
        name: the job.
        seconds: from its start to the end of its last task.
        stages: in the order of the pipeline.
        sink_results: one for each instance of the sink.
        dead_letters: packets that could not be processed, where the error policy keeps them and
            no file does.
        metrics: all that was measured, as of the end.
    """

    name: str
    seconds: float
    stages: list[StageSummary]
    sink_results: list[Any]
    dead_letters: list[DeadLetter]
    metrics: JobMetrics

    @property
    def packets(self) -> int:
        """Packets processed, over all stages."""
        return sum(stage.packets for stage in self.stages)

    @property
    def errors(self) -> int:
        """Errors, over all stages."""
        return sum(stage.errors for stage in self.stages)

    @property
    def packets_per_second(self) -> float:
        """Packets processed per second, over all stages."""
        return self.packets / self.seconds

    @property
    def sink_result(self) -> Any:
        """The result of a sink that has one instance.

        Raises:
            PipelineError: it has more; see :attr:`sink_results`.
        """
        if len(self.sink_results) != 1:
            raise PipelineError(
                f"the sink of {self.name} has {len(self.sink_results)} instances; "
                "take their results from sink_results"
            )
        return self.sink_results[0]


def summarize_progress(stage: Stage, tasks: Sequence[BaseTask]) -> StageSummary:
    """What the tasks of a stage have done so far."""
    statuses = [task.get_status() for task in tasks]
    totals = [status.total for status in statuses if status.total is not None]
    return StageSummary(
        name=stage.name,
        host=stage.host,
        parallelism=stage.parallelism,
        packets=sum(status.processed for status in statuses),
        emitted=sum(status.emitted for status in statuses),
        errors=sum(status.errors for status in statuses),
        total=sum(totals) if len(totals) == len(statuses) else None,
    )


def summarize_stage(
    stage: Stage, tasks: Sequence[BaseTask], latency: LatencySummary
) -> StageSummary:
    """What the tasks of a stage, which have ended, did."""
    return replace(summarize_progress(stage, tasks), p50=latency.p50, p99=latency.p99)
