"""Observer: listeners, Prometheus, profiles and traces of a job."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from sageruntime.errors import MonitoringError
from sageruntime.metrics import JobMetrics, Monitor
from sageruntime.profiling import StackProfile
from sageruntime.profiling.report import write_report
from sageruntime.profiling.spy import Spy
from sageruntime.tracing import Tracing

if TYPE_CHECKING:
    from sageruntime.metrics.prometheus import PrometheusExporter
    from sageruntime.task import BaseTask

logger = logging.getLogger(__name__)


class ObserveOptions(TypedDict, total=False):
    """What :meth:`Pipeline.start` and :meth:`Pipeline.run` take to have a job watched.

    Attributes:
        prometheus_port: serve metrics for Prometheus at this port; 0 is any that is free.
        prometheus_address: at this address of this machine; 127.0.0.1 by default, ``""`` is all.
        profile: a folder for flame graphs of the stages and a table of where their time goes.
        tracing: make OpenTelemetry spans of all batches.
    """

    prometheus_port: int | None
    prometheus_address: str
    profile: Path | str | None
    tracing: Tracing | None


@dataclass(frozen=True)
class Observation:
    """:class:`ObserveOptions` with the defaults filled in."""

    prometheus_port: int | None = None
    prometheus_address: str = "127.0.0.1"
    profile: Path | str | None = None
    tracing: Tracing | None = None


class Observer:
    """Watches one job as far as it was asked to.

    Args:
        job: its name.
        observation: what was asked for.
        measure: measures the job.
        interval: seconds between two measurements for listeners.
    """

    def __init__(
        self,
        job: str,
        observation: Observation,
        measure: Callable[[], JobMetrics],
        interval: float,
    ) -> None:
        self._job = job
        self._observation = observation
        self._measure = measure
        self._monitor = Monitor(f"{job}-monitor", measure, interval, logger)
        self._exporter: PrometheusExporter | None = None
        self._folder: Path | None = None
        self._spy: Spy | None = None

    @property
    def prometheus_port(self) -> int | None:
        """Where metrics are served, if they are."""
        return None if self._exporter is None else self._exporter.port

    def add_listener(self, listener: Callable[[JobMetrics], object]) -> None:
        """Call ``listener(metrics)`` at every interval, and a last time at the end."""
        self._monitor.add_listener(listener)

    def start(self, hosts: Container[str]) -> None:
        """Prepare what was asked for, of a job whose tasks have these hosts.

        Raises:
            MonitoringError: it cannot be had.
        """
        observation = self._observation
        if observation.profile is not None:
            self._folder = _make_folder(Path(observation.profile))
            self._spy = Spy() if "thread" in hosts else None
        if observation.prometheus_port is not None:
            self._exporter = self._export(observation.prometheus_port)

    def close(self, tasks: Iterable[BaseTask]) -> None:
        """Tell the listeners a last time, and write the profiles of tasks; may be repeated."""
        self._monitor.close()
        if self._exporter is not None:
            self._exporter.close()
            self._exporter = None
        folder, self._folder = self._folder, None
        if folder is not None:
            write_report(folder, self._measure(), self._profiles(tasks))

    def _profiles(self, tasks: Iterable[BaseTask]) -> dict[str, StackProfile]:
        """What was seen of each stage; nothing of a task whose process was killed."""
        seen: defaultdict[str, list[StackProfile]] = defaultdict(list)
        for task in tasks:
            profile = task.get_report().profile if task.state.ended else None
            if profile is None and self._spy is not None:
                profile = self._spy.get_profile(task.name)
            if profile is not None:
                seen[task.ctx.stage].append(profile)
        return {stage: StackProfile.merged(profiles) for stage, profiles in seen.items()}

    def _export(self, port: int) -> PrometheusExporter:
        try:
            from sageruntime.metrics.prometheus import PrometheusExporter
        except ImportError as error:
            raise MonitoringError(
                "serving metrics needs prometheus-client: pip install 'sagequeue[prometheus]'"
            ) from error
        address = self._observation.prometheus_address
        exporter = PrometheusExporter(self._measure, port, address)
        logger.info(
            "the metrics of %s are at http://%s:%d/metrics",
            self._job, address or "0.0.0.0", exporter.port,
        )  # fmt: skip
        return exporter


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MonitoringError(f"profiles cannot be kept: {error}; name another folder") from error
    return folder
