"""Prometheus: a job's metrics, served over HTTP in its text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sageruntime.core.state import TaskState
from sageruntime.errors import MonitoringError
from sageruntime.metrics.latency import LatencySummary
from sageruntime.metrics.snapshot import JobMetrics, MetricsSnapshot, TimeSpent

_TASK_LABELS = ("job", "stage", "task", "host")
_PROCESS_LABELS = ("job", "node", "pid")

_COUNTERS = {
    "processed": ("packets_processed", "Packets processed without an error."),
    "emitted": ("packets_emitted", "Packets routed downstream."),
    "errors": ("errors", "Packets that met the error policy."),
    "retries": ("retries", "Times a packet was given to the operator again."),
    "timeouts": ("timeouts", "Packets that took longer than the processing timeout."),
    "restarts": ("restarts", "Times the task was started again after a failure."),
    "cpu_seconds": ("task_cpu_seconds", "CPU time of the task's worker threads."),
}

_LATENCIES = {
    "latency": ("latency_seconds", "From being sent to the task to being done."),
    "end_to_end": ("end_to_end_latency_seconds", "From entering the pipeline to being done."),
}

_BOUNDS = [mantissa * 10.0**exponent for exponent in range(-4, 2) for mantissa in (1, 2.5, 5)] + [
    100.0
]  # seconds

_Tasks = list[tuple[tuple[str, ...], MetricsSnapshot]]
"""Each task with its labels."""


class PrometheusExporter:
    """Measures a job whenever Prometheus scrapes it, and at no other time.

    Args:
        measure: makes the measurement.
        port: to listen at; 0 is any that is free.
        address: to listen at; ``""`` is every address of this machine.

    Attributes:
        port: where it listens.

    Raises:
        MonitoringError: it cannot listen there.
    """

    def __init__(
        self, measure: Callable[[], JobMetrics], port: int, address: str = "127.0.0.1"
    ) -> None:
        registry = CollectorRegistry()
        registry.register(_JobCollector(measure))
        try:
            self._server, self._thread = start_http_server(port, address or "0.0.0.0", registry)
        except (OSError, OverflowError) as error:
            raise MonitoringError(
                f"metrics cannot be served at {address}:{port}: {error}; choose another port, or 0 "
                "for any that is free"
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _JobCollector(Collector):
    def __init__(self, measure: Callable[[], JobMetrics]) -> None:
        self._measure = measure

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        metrics = self._measure()
        tasks: _Tasks = [
            ((metrics.job, task.stage, task.task, task.host), task)
            for stage in (*metrics.stages, *metrics.services)
            for task in stage.tasks
        ]
        yield from _counters(tasks)
        yield from _gauges(tasks)
        yield from _histograms(tasks)
        yield from _threads(tasks)
        yield from _processes(metrics)

    def describe(self) -> list[Metric]:
        """Nothing: a registry asks for this first, and there may be no task yet."""
        return []


def _counters(tasks: _Tasks) -> Iterator[Metric]:
    for attribute, (name, meaning) in _COUNTERS.items():
        family = CounterMetricFamily(f"sageruntime_{name}", meaning, labels=_TASK_LABELS)
        for labels, task in tasks:
            family.add_metric(labels, getattr(task, attribute))
        yield family
    family = CounterMetricFamily(
        "sageruntime_time_seconds",
        "What the task's worker loop did with its time.",
        labels=(*_TASK_LABELS, "activity"),
    )
    for labels, task in tasks:
        for activity in TimeSpent.__struct_fields__:
            family.add_metric((*labels, activity), getattr(task.time_spent, activity))
    yield family


def _gauges(tasks: _Tasks) -> Iterator[Metric]:
    depth = GaugeMetricFamily(
        "sageruntime_queue_depth", "Batches waiting in the input queue.", labels=_TASK_LABELS
    )
    state = GaugeMetricFamily(
        "sageruntime_task_state",
        "1 for the state the task is in.",
        labels=(*_TASK_LABELS, "state"),
    )
    hosted = GaugeMetricFamily(
        "sageruntime_task_process",
        "1 for the process that hosts the task.",
        labels=(*_TASK_LABELS, "node", "pid"),
    )
    for labels, task in tasks:
        depth.add_metric(labels, task.queue_depth)
        for one in TaskState:
            state.add_metric((*labels, one.value), task.state == one.value)
        if task.process is not None:
            hosted.add_metric((*labels, task.process.node, str(task.process.pid)), 1)
    yield from (depth, state, hosted)


def _histograms(tasks: _Tasks) -> Iterator[Metric]:
    for attribute, (name, meaning) in _LATENCIES.items():
        family = HistogramMetricFamily(f"sageruntime_{name}", meaning, labels=_TASK_LABELS)
        for labels, task in tasks:
            summary: LatencySummary = getattr(task, attribute)
            counts = zip(map(str, _BOUNDS), summary.within(_BOUNDS))
            total = (summary.mean or 0.0) * summary.count
            family.add_metric(labels, [*counts, ("+Inf", summary.count)], total)
        yield family


def _threads(tasks: _Tasks) -> Iterator[Metric]:
    labels = (*_TASK_LABELS, "thread")
    processed = CounterMetricFamily(
        "sageruntime_thread_packets_processed",
        "Packets processed by one worker thread.",
        labels=labels,
    )
    cpu = CounterMetricFamily(
        "sageruntime_thread_cpu_seconds", "CPU time of one worker thread.", labels=labels
    )
    for task_labels, task in tasks:
        for thread in task.threads:
            processed.add_metric((*task_labels, thread.name), thread.processed)
            cpu.add_metric((*task_labels, thread.name), thread.cpu_seconds)
    yield from (processed, cpu)


def _processes(metrics: JobMetrics) -> Iterator[Metric]:
    cpu = CounterMetricFamily(
        "sageruntime_process_cpu_seconds",
        "CPU time of a process that hosts tasks.",
        labels=_PROCESS_LABELS,
    )
    rss = GaugeMetricFamily(
        "sageruntime_process_resident_memory_bytes",
        "Memory that a process that hosts tasks has in RAM.",
        labels=_PROCESS_LABELS,
    )
    for process in metrics.processes:
        labels = (metrics.job, process.node, str(process.pid))
        cpu.add_metric(labels, process.cpu_seconds)
        rss.add_metric(labels, process.rss)
    yield from (cpu, rss)
