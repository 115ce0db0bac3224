"""Backpressure: how deep the queues get when the sink is slow for a while."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.runtime.figure import Figure, Row
from bench.runtime.stages import Idle
from sageruntime import OperatorFactory, Packet, Pipeline, SinkOperator, SourceOperator, TaskOptions
from sageruntime.operator import BatchOperator
from sageruntime.operator.results import Results

QUEUE_MAXSIZE = 5000
BATCH_SIZE = 50
SLOW_FROM, SLOW_UNTIL, END = 1.0, 4.0, 6.0
SOURCE_PACKETS_PER_SECOND = 40_000
SLOW_PACKETS_PER_SECOND = 10_000
MOST_AHEAD = 1.1
_EVERY = 0.05
_RATE_OVER = 0.25


class Moment(NamedTuple):
    """What was seen at one time.

    Attributes:
        seconds: since the first packet arrived.
        depths: packets that wait before each stage but the source.
        read: packets that the source has read so far.
        written: packets that the sink has taken so far.
    """

    seconds: float
    depths: dict[str, int]
    read: int
    written: int


class Timed(SourceOperator):
    """Yields packets at its own pace for a time; what it could not yield in time it leaves out."""

    def __init__(self, begun: list[float]) -> None:
        self.begun = begun

    def read(self) -> Iterator[int]:
        """See :class:`SourceOperator`."""
        due = time.monotonic()
        while not self.begun or due < self.begun[0] + END:
            yield from range(BATCH_SIZE)
            now = time.monotonic()
            due = max(due + BATCH_SIZE / SOURCE_PACKETS_PER_SECOND, now)
            time.sleep(due - now)


class SlowForAWhile(SinkOperator, BatchOperator):
    """Takes packets at once, and from one time to another one after the other."""

    def __init__(self, begun: list[float]) -> None:
        self.begun = begun

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        now = time.monotonic()
        if not self.begun:
            self.begun.append(now)
        if SLOW_FROM <= now - self.begun[0] < SLOW_UNTIL:
            time.sleep(len(packets) / SLOW_PACKETS_PER_SECOND)
        return None


def figure(plot: Path | None = None) -> Figure:
    """Measure it, and draw it if asked."""
    moments = watch()
    if plot is not None:
        draw(moments, plot)
    rows = [
        Row(f"most that wait before {stage}", [max(m.depths[stage] for m in moments)], "packets",
            most=QUEUE_MAXSIZE)
        for stage in moments[0].depths
    ]  # fmt: skip
    slow = [m for m in moments if SLOW_FROM + 1 <= m.seconds < SLOW_UNTIL]
    read, written = ([pace for _, pace in _paces(slow, field)] for field in ("read", "written"))
    ahead = statistics.median(read) / statistics.median(written)
    rows += [
        Row("the sink's pace while it is slow", written, "packets/s"),
        Row("the source's pace meanwhile", read, "packets/s"),
        Row("that is so many times the sink's", [ahead], "", most=MOST_AHEAD),
    ]
    return Figure("Backpressure", rows, f"queue_maxsize={QUEUE_MAXSIZE}, batch_size={BATCH_SIZE}")


def watch() -> list[Moment]:
    """Run the job and look at it again and again."""
    begun: list[float] = []
    options = TaskOptions(
        queue_maxsize=QUEUE_MAXSIZE, batch_size=BATCH_SIZE, monitoring_interval=_EVERY
    )
    pipeline = Pipeline("backpressure", options=options).source(OperatorFactory(Timed, begun))
    pipeline.map(Idle, on="process", name="process").map(Idle, name="thread")
    pipeline.sink(OperatorFactory(SlowForAWhile, begun), name="sink")
    moments: list[Moment] = []
    with pipeline.start() as job:
        while not job.wait(_EVERY):
            metrics = job.measure()
            if begun:
                depths = {s.stage: s.queue_depth * BATCH_SIZE for s in metrics.stages[1:]}
                read, written = metrics.stages[0].processed, metrics.stages[-1].processed
                moments.append(Moment(time.monotonic() - begun[0], depths, read, written))
        job.result()
    return moments


def draw(moments: list[Moment], path: Path) -> None:
    """A picture of the depths and of both ends' paces."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5), dpi=72, height_ratios=(3, 2), layout="constrained"
    )
    seconds = [moment.seconds for moment in moments]
    for stage in moments[0].depths:
        above.plot(seconds, [m.depths[stage] for m in moments], label=f"before {stage}")
    above.axhline(QUEUE_MAXSIZE, color="grey", linestyle="--", label="queue_maxsize")
    above.set_ylabel("packets that wait")
    for field, label in (("read", "source"), ("written", "sink")):
        below.plot(*zip(*_paces(moments, field)), label=label)
    below.set_ylim(bottom=0)
    below.set_ylabel("packets a second")
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.axvspan(SLOW_FROM, SLOW_UNTIL, color="grey", alpha=0.12, label="the sink is slow")
        axes.legend(loc="upper left", fontsize="small", bbox_to_anchor=(1.01, 1))
        axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path)


def _paces(moments: list[Moment], field: str) -> list[tuple[float, float]]:
    """When, and packets a second."""
    apart = round(_RATE_OVER / _EVERY)
    return [
        (
            (earlier.seconds + later.seconds) / 2,
            (getattr(later, field) - getattr(earlier, field)) / (later.seconds - earlier.seconds),
        )
        for earlier, later in zip(moments, moments[apart:])
    ]
