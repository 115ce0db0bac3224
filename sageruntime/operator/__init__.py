"""What tasks do with packets: sources, transformations and sinks."""

from sageruntime.operator.base_operator import BaseOperator, BatchOperator
from sageruntime.operator.count import CountByKey
from sageruntime.operator.filter import FilterOperator
from sageruntime.operator.flat_map import FlatMapOperator
from sageruntime.operator.key_by import KeyByOperator
from sageruntime.operator.map import MapOperator
from sageruntime.operator.sink import CollectSink, FunctionSink, SinkOperator
from sageruntime.operator.source import IDLE, IterableSource, SourceOperator
from sageruntime.operator.sqlite_sink import SqliteSink

__all__ = [
    "IDLE",
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
