"""sageruntime: a task runtime over SageQueue, the same for threads, processes and Ray."""

from sageruntime.communication import BaseRouter, Connection, Packet, StopSignal
from sageruntime.context import TaskContext
from sageruntime.core.task_options import TaskOptions
from sageruntime.factory import OperatorFactory, register_operator
from sageruntime.factory.task_factory import register_task
from sageruntime.job import Job
from sageruntime.job_result import JobResult, StageSummary
from sageruntime.operator import (
    IDLE,
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

__all__ = [
    "IDLE",
    "BaseOperator",
    "BaseRouter",
    "BaseTask",
    "BatchOperator",
    "CheckpointOptions",
    "CollectSink",
    "Connection",
    "CountByKey",
    "DeadLetter",
    "ErrorPolicy",
    "FilterOperator",
    "FlatMapOperator",
    "FunctionSink",
    "IterableSource",
    "Job",
    "JobResult",
    "KeyByOperator",
    "LocalTask",
    "MapOperator",
    "OperatorFactory",
    "Packet",
    "Pipeline",
    "RestartPolicy",
    "RetryPolicy",
    "Service",
    "ServiceClient",
    "ServiceTask",
    "SinkOperator",
    "SourceOperator",
    "SqliteSink",
    "StageSummary",
    "StopSignal",
    "TaskContext",
    "TaskOptions",
    "TaskState",
    "TaskStatus",
    "register_operator",
    "register_task",
]
