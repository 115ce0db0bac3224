"""Meter: measures a task that runs in this process."""

from __future__ import annotations

import os
import platform
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from sageruntime.context import TaskContext
from sageruntime.metrics.snapshot import MetricsSnapshot, ProcessUsage, ThreadUsage
from sageruntime.metrics.task_metrics import TaskMetrics

if TYPE_CHECKING:
    import psutil


class _Totals(NamedTuple):
    """What rates are taken of, and when (monotonic seconds)."""

    at: float
    processed: int
    cpu_seconds: float
    process_cpu_seconds: float


class _Rates(NamedTuple):
    packets_per_second: float = 0.0
    cpu_percent: float = 0.0
    process_cpu_percent: float = 0.0


class Meter:
    """Makes snapshots of a task's metrics. Any thread may ask for one, as often as it likes.

    Rates are taken over at least ``interval`` seconds: a measurement sooner after another repeats
    its rates.

    Args:
        ctx: the task's identity.
        host: its kind of host.
        metrics: its counts.
        interval: seconds.
    """

    def __init__(self, ctx: TaskContext, host: str, metrics: TaskMetrics, interval: float) -> None:
        self._ctx = ctx
        self._host = host
        self._metrics = metrics
        self._interval = interval
        self._lock = threading.Lock()
        self._base: _Totals | None = None
        self._rates = _Rates()

    def measure(
        self, state: str, emitted: int, queue_depth: int, routing: float
    ) -> MetricsSnapshot:
        """The task as it is now.

        Args:
            state, emitted, queue_depth: see :class:`MetricsSnapshot`.
            routing: seconds that it was in its router.
        """
        metrics = self._metrics
        with self._lock:
            threads = self._threads()
            cpu_seconds = sum(thread.cpu_seconds for thread in threads)
            now = _Totals(time.monotonic(), metrics.processed, cpu_seconds, time.process_time())
            rates = self._rates_at(now)
        seconds = metrics.seconds
        return MetricsSnapshot(
            task=self._ctx.name,
            stage=self._ctx.stage,
            host=self._host,
            state=state,
            at=time.time_ns(),
            seconds=seconds,
            processed=now.processed,
            emitted=emitted,
            errors=metrics.errors,
            retries=metrics.retries,
            timeouts=metrics.timeouts,
            queue_depth=queue_depth,
            packets_per_second=rates.packets_per_second,
            mean_packets_per_second=now.processed / (seconds or 1.0),
            cpu_seconds=cpu_seconds,
            cpu_percent=rates.cpu_percent,
            time_spent=metrics.time_spent(routing),
            latency=metrics.latency.summary(),
            end_to_end=metrics.end_to_end.summary(),
            threads=threads,
            process=ProcessUsage(
                platform.node(),
                os.getpid(),
                now.process_cpu_seconds,
                rates.process_cpu_percent,
                _resident_bytes(),
            ),
        )

    def _threads(self) -> tuple[ThreadUsage, ...]:
        """The loop's thread, and the lanes' where they call the operator in its place."""
        loop, lanes = self._metrics.loop, list(self._metrics.lanes.values())
        processed = 0 if lanes else self._metrics.processed
        return (
            ThreadUsage(loop.name, processed, loop.cpu_seconds()),
            *(ThreadUsage(lane.name, lane.processed, lane.cpu_seconds()) for lane in lanes),
        )

    def _rates_at(self, now: _Totals) -> _Rates:
        started = self._metrics.started
        if started is None:
            return _Rates()
        base = self._base or _Totals(started.at, 0, 0.0, started.process_cpu_seconds)
        seconds = now.at - base.at
        due = seconds >= self._interval
        if due or self._base is None:
            self._rates = _Rates(
                (now.processed - base.processed) / seconds,
                100 * (now.cpu_seconds - base.cpu_seconds) / seconds,
                100 * (now.process_cpu_seconds - base.process_cpu_seconds) / seconds,
            )
        if due:
            self._base = now
        return self._rates


def _resident_bytes() -> int:
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(pid: int) -> psutil.Process:
    import psutil  # imported late: every import of the runtime imports this module

    return psutil.Process(pid)
