"""Factories: operators by recipe and name, tasks by the name of their type."""

from sageruntime.operator.operator_factory import OperatorFactory, find_operator, register_operator

__all__ = ["OperatorFactory", "find_operator", "register_operator"]
