"""sageruntime: a task runtime over SageQueue, the same for threads, processes and Ray."""

from sageruntime.communication import BaseRouter, Connection, Packet, StopSignal
from sageruntime.context import TaskContext
from sageruntime.factory import OperatorFactory
from sageruntime.job import Job
from sageruntime.job_result import JobResult, StageSummary
from sageruntime.operator import (
    BaseOperator,
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
)
from sageruntime.pipeline import Pipeline
from sageruntime.task import BaseTask, DeadLetter, ErrorPolicy, LocalTask, TaskState, TaskStatus
from sageruntime.task.options import TaskOptions

__all__ = [
    "BaseOperator",
    "BaseRouter",
    "BaseTask",
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
    "SinkOperator",
    "SourceOperator",
    "StageSummary",
    "StopSignal",
    "TaskContext",
    "TaskOptions",
    "TaskState",
    "TaskStatus",
]
