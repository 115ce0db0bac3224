"""Factories: operators by recipe and name, tasks by host."""

from sageruntime.factory.operator_factory import OperatorFactory

__all__ = ["OperatorFactory"]
