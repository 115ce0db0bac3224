"""Metrics of tasks and jobs: counts, throughput, latencies, resources."""

from sageruntime.metrics.latency import LatencyHistogram, LatencySummary
from sageruntime.metrics.meter import Meter
from sageruntime.metrics.monitor import Monitor
from sageruntime.metrics.snapshot import (
    JobMetrics,
    MetricsSnapshot,
    ProcessUsage,
    StageMetrics,
    ThreadUsage,
    TimeSpent,
)
from sageruntime.metrics.task_metrics import TaskMetrics, ThreadCounts

__all__ = [
    "JobMetrics",
    "LatencyHistogram",
    "LatencySummary",
    "Meter",
    "MetricsSnapshot",
    "Monitor",
    "ProcessUsage",
    "StageMetrics",
    "TaskMetrics",
    "ThreadCounts",
    "ThreadUsage",
    "TimeSpent",
]
