"""Settings: everything that can be configured beside the stages themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from sageruntime.config.policies import RestartConfig, RetryConfig, merged_policies
from sageruntime.config.section import Section
from sageruntime.config.units import Bytes, Seconds
from sageruntime.recovery import CheckpointOptions, RestartPolicy, RetryPolicy
from sageruntime.task.error_policy import ErrorPolicy
from sageruntime.task.options import TaskOptions
from sageruntime.tracing import Tracing

ErrorPolicyName = Literal["fail", "skip", "retry", "dead_letter"]


class LocalTaskConfig(Section):
    """How every task works, whatever its host."""

    max_buffer_size: int = Field(TaskOptions.max_buffer_size, ge=1)
    """Most results a worker gathers before it routes them."""
    queue_maxsize: int = Field(TaskOptions.queue_maxsize, ge=1)
    """Most packets waiting in a task's input queue."""
    worker_threads: int = Field(TaskOptions.worker_threads, ge=1)
    """Threads of one task that call its operator; packets of one key stay in order."""


class RayTaskConfig(Section):
    """The actors of stages on Ray."""

    lifetime: Literal["detached"] | None = None
    """`detached`: actors outlive the process that started them."""
    resources: dict[str, float] = Field(default_factory=dict)
    """What each actor occupies, such as `{"CPU": 1}`; nothing, unless given."""
    memory: Bytes | None = None
    """Memory each actor occupies, such as `1GB`."""


class TaskConfig(Section):
    """The tasks: their hosts, and what they do about failures."""

    local: LocalTaskConfig = LocalTaskConfig()
    ray: RayTaskConfig = RayTaskConfig()
    error_policy: ErrorPolicyName = "fail"
    """What becomes of a packet the operator fails on."""
    retry: RetryConfig = RetryConfig()
    restart: RestartConfig = RestartConfig()

    def model_post_init(self, context: Any) -> None:
        """Check the values of the policies together."""
        merged_policies(TaskOptions(), self.retry, self.restart, ())


class PerformanceConfig(Section):
    """Batches, limits of time, and how often tasks report."""

    batch_processing: bool = TaskOptions.batch_processing
    """Whether packets travel in batches; `false` sends them one by one."""
    batch_size: int = Field(TaskOptions.batch_size, ge=1)
    """Most packets that travel as one item."""
    flush_interval: Seconds = TaskOptions.flush_interval
    """How long a batch that is not full may wait while its task is busy."""
    max_concurrency: int = Field(TaskOptions.max_concurrency, ge=1)
    """Packets that an `async` operator works on at a time."""
    processing_timeout: Seconds | None = TaskOptions.processing_timeout
    """Longest an operator may work on one packet; past it, the error policy decides."""
    monitoring_interval: Seconds = TaskOptions.monitoring_interval
    """Between two measurements, and between two status messages of a task elsewhere."""


class DeadLettersConfig(Section):
    """Where packets go that could not be processed."""

    file: str | None = None
    """A SQLite file that keeps dead letters for `sagert dlq`; without one they are in the result
    only. Relative to the working directory."""


class CheckpointConfig(Section):
    """The state of the job, kept while it runs."""

    store: str | None = None
    """A SQLite file, or `folder:` and a folder, that keeps checkpoints. Without one there are none.
    Relative to the working directory."""
    interval: Seconds = CheckpointOptions.interval
    """Time between two checkpoints."""
    keep: int = Field(CheckpointOptions.keep, ge=1)
    """How many checkpoints are kept, the latest included."""
    resume: bool = CheckpointOptions.resume
    """Go on where a run of this job that did not end had got to; `false` begins anew."""


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
        return TaskOptions(
            **self.task.local.model_dump(),
            **self.performance.model_dump(),
            error_policy=ErrorPolicy(self.task.error_policy),
            retry=RetryPolicy(**self.task.retry.model_dump()),
            restart=RestartPolicy(**self.task.restart.model_dump()),
        )

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
