"""What tasks do with packets: sources, transformations and sinks."""

from sageruntime.operator.async_functions import (
    AsyncFilterOperator,
    AsyncFlatMapOperator,
    AsyncFunctionSink,
    AsyncMapOperator,
)
from sageruntime.operator.base_operator import BaseOperator, BatchOperator
from sageruntime.operator.count import CountByKey
from sageruntime.operator.functions import (
    FilterOperator,
    FlatMapOperator,
    KeyByOperator,
    MapOperator,
)
from sageruntime.operator.sink import CollectSink, FunctionSink, SinkOperator
from sageruntime.operator.source import IDLE, IterableSource, SourceOperator
from sageruntime.operator.sqlite_sink import SqliteSink

__all__ = [
    "IDLE",
    "AsyncFilterOperator",
    "AsyncFlatMapOperator",
    "AsyncFunctionSink",
    "AsyncMapOperator",
    "BaseOperator",
    "BatchOperator",
    "CollectSink",
    "CountByKey",
    "FilterOperator",
    "FlatMapOperator",
    "FunctionSink",
    "IterableSource",
    "KeyByOperator",
    "MapOperator",
    "SinkOperator",
    "SourceOperator",
    "SqliteSink",
]
