"""Profiles of a job: a flame graph of each stage, and where the worker threads' time goes."""

from sageruntime.profiling.flame_graph import flame_graph
from sageruntime.profiling.stack_profile import Frame, StackProfile
from sageruntime.profiling.time_table import time_report, time_table

__all__ = ["Frame", "StackProfile", "flame_graph", "time_report", "time_table"]
