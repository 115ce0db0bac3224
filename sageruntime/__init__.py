"""sageruntime: a task runtime over SageQueue, the same for threads, processes and Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sageruntime.communication.router import BaseRouter, Connection, Packet, StopSignal
from sageruntime.context import TaskContext
from sageruntime.core.task_options import TaskOptions
from sageruntime.errors import (
    CheckpointError,
    ConfigError,
    DeadLetterStoreError,
    DependencyError,
    DownstreamClosed,
    HostReplaced,
    InvalidOption,
    JobFailed,
    MonitoringError,
    OperatorError,
    OperatorNotFound,
    PacketError,
    PartitionError,
    PipelineError,
    PluginError,
    ProcessingTimeout,
    RemoteError,
    RuntimeTaskError,
    ServiceError,
    ServiceLost,
    ServiceMethodNotFound,
    ServiceNotFound,
    ServiceTimeout,
    TaskCancelled,
    TaskHalted,
    TaskLost,
    TaskNotFound,
    TaskStartError,
    TaskStateError,
    UnstableKey,
)
from sageruntime.factory import OperatorFactory, register_operator
from sageruntime.factory.task_factory import register_task
from sageruntime.job import Job
from sageruntime.job_result import JobResult, StageSummary
from sageruntime.operator import (
    IDLE,
    AsyncFilterOperator,
    AsyncFlatMapOperator,
    AsyncFunctionSink,
    AsyncMapOperator,
    BaseOperator,
    BatchOperator,
    CollectSink,
    CountByKey,
    FilterOperator,
    FlatMapOperator,
    FunctionSink,
    IterableSource,
    KeyByOperator,
    MapOperator,
    SinkOperator,
    SourceOperator,
    SqliteSink,
)
from sageruntime.pipeline import Pipeline
from sageruntime.recovery import CheckpointOptions, RestartPolicy, RetryPolicy
from sageruntime.service import Service, ServiceClient, ServiceTask
from sageruntime.task import BaseTask, DeadLetter, ErrorPolicy, LocalTask, TaskState, TaskStatus

if TYPE_CHECKING:
    from sageruntime.task.process_task import ProcessTask
    from sageruntime.task.ray_task import RayTask

__all__ = [
    "IDLE",
    "AsyncFilterOperator",
    "AsyncFlatMapOperator",
    "AsyncFunctionSink",
    "AsyncMapOperator",
    "BaseOperator",
    "BaseRouter",
    "BaseTask",
    "BatchOperator",
    "CheckpointError",
    "CheckpointOptions",
    "CollectSink",
    "ConfigError",
    "Connection",
    "CountByKey",
    "DeadLetter",
    "DeadLetterStoreError",
    "DependencyError",
    "DownstreamClosed",
    "ErrorPolicy",
    "FilterOperator",
    "FlatMapOperator",
    "FunctionSink",
    "HostReplaced",
    "InvalidOption",
    "IterableSource",
    "Job",
    "JobFailed",
    "JobResult",
    "KeyByOperator",
    "LocalTask",
    "MapOperator",
    "MonitoringError",
    "OperatorError",
    "OperatorFactory",
    "OperatorNotFound",
    "Packet",
    "PacketError",
    "PartitionError",
    "Pipeline",
    "PipelineError",
    "PluginError",
    "ProcessTask",
    "ProcessingTimeout",
    "RayTask",
    "RemoteError",
    "RestartPolicy",
    "RetryPolicy",
    "RuntimeTaskError",
    "Service",
    "ServiceClient",
    "ServiceError",
    "ServiceLost",
    "ServiceMethodNotFound",
    "ServiceNotFound",
    "ServiceTask",
    "ServiceTimeout",
    "SinkOperator",
    "SourceOperator",
    "SqliteSink",
    "StageSummary",
    "StopSignal",
    "TaskCancelled",
    "TaskContext",
    "TaskHalted",
    "TaskLost",
    "TaskNotFound",
    "TaskOptions",
    "TaskStartError",
    "TaskState",
    "TaskStateError",
    "TaskStatus",
    "UnstableKey",
    "register_operator",
    "register_task",
]

# Imported when they are first asked for: the modules of processes and of Ray.
_LATER = {
    "ProcessTask": "sageruntime.task.process_task",
    "RayTask": "sageruntime.task.ray_task",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
