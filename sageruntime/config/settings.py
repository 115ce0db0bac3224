"""Settings: everything that can be configured beside the stages themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from sageruntime.config.options import OptionsSection, given_options, with_options
from sageruntime.config.section import Section
from sageruntime.config.units import Bytes
from sageruntime.core.options import Option, list_options
from sageruntime.core.task_options import TaskOptions
from sageruntime.recovery import CheckpointOptions
from sageruntime.tracing import Tracing


def _in(section: str) -> list[Option]:
    return [each for each in list_options(TaskOptions) if each.section == section]


@with_options(_in("task.local"))
class LocalTaskConfig(OptionsSection):
    """How every task works, whatever its host."""


class RayTaskConfig(Section):
    """The actors of stages on Ray."""

    lifetime: Literal["detached"] | None = None
    """`detached`: actors outlive the process that started them."""
    resources: dict[str, float] = Field(default_factory=dict)
    """What each actor occupies, such as `{"CPU": 1}`; nothing, unless given."""
    memory: Bytes | None = None
    """Memory each actor occupies, such as `1GB`."""


@with_options(_in("task"))
class TaskConfig(OptionsSection):
    """The tasks: their hosts, and what they do about failures."""

    local: LocalTaskConfig = LocalTaskConfig()
    ray: RayTaskConfig = RayTaskConfig()

    def model_post_init(self, context: Any) -> None:
        """Check the values of the policies together."""
        given_options(self, TaskOptions())


@with_options(_in("performance"))
class PerformanceConfig(OptionsSection):
    """Batches, limits of time, and how often tasks report."""


class DeadLettersConfig(Section):
    """Where packets go that could not be processed."""

    file: str | None = None
    """A SQLite file that keeps dead letters for `sagert dlq`; without one they are in the result
    only. Relative to the working directory."""


@with_options(list_options(CheckpointOptions))
class CheckpointConfig(OptionsSection):
    """The state of the job, kept while it runs."""

    store: str | None = None
    """A SQLite file, or `folder:` and a folder, that keeps checkpoints. Without one there are none.
    Relative to the working directory."""


class MetricsConfig(Section):
    """What is measured of the job, and who is told."""

    prometheus_port: int | None = Field(None, ge=0, le=65535)
    """Serve metrics for Prometheus at this port; 0 is any that is free. Needs
    `sagequeue[prometheus]`."""
    prometheus_address: str = "127.0.0.1"
    """The address of this machine to serve them at; an empty one is all."""


class TracingConfig(Section):
    """OpenTelemetry spans of all batches."""

    setup: str | None = None
    """Import path `module:function` of what makes the `TracerProvider` of each process; without
    one there are no traces. Needs `sagequeue[otel]`."""


class Settings(Section):
    """Everything but the stages."""

    task: TaskConfig = TaskConfig()
    performance: PerformanceConfig = PerformanceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig = TracingConfig()

    def model_post_init(self, context: Any) -> None:
        """Check what concerns more than one section."""
        size, most = self.performance.batch_size, self.task.local.queue_maxsize
        if size > most:
            raise PydanticCustomError(
                "too_large_a_batch",
                "{size} is more than task.local.queue_maxsize, which is {most}; "
                "the queue has to hold at least one batch",
                {"size": size, "most": most, "at": ("performance", "batch_size")},
            )

    def task_options(self) -> TaskOptions:
        """The options of a task, as of these settings."""
        given: dict[str, Any] = {}
        for section in (self.task.local, self.task, self.performance):
            given |= given_options(section, TaskOptions())
        return TaskOptions(**given)

    def start_options(self) -> dict[str, Any]:
        """What :meth:`~sageruntime.Pipeline.start` takes of these settings."""
        checkpoint = self.checkpoint
        return {
            "checkpoint": CheckpointOptions(**checkpoint.model_dump())
            if checkpoint.store
            else None,
            "dead_letters": self.dead_letters.file,
            "tracing": Tracing(self.tracing.setup) if self.tracing.setup else None,
            **self.metrics.model_dump(),
        }

    def ray_options(self) -> dict[str, Any]:
        """What a task on Ray takes beside them."""
        return self.task.ray.model_dump()
