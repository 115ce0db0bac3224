"""OperatorFactory: makes a task's operator in the place where the task runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sageruntime.context import TaskContext
from sageruntime.errors import OperatorError
from sageruntime.operator import BaseOperator


class OperatorFactory:
    """A recipe for operators. It travels to the task's host; what it makes stays there.

    Args:
        make: an operator class, or a function that returns an operator.
        args, kwargs: what to call it with.
    """

    def __init__(self, make: Callable[..., BaseOperator], *args: Any, **kwargs: Any) -> None:
        self.make = make
        self.args = args
        self.kwargs = kwargs

    def create_operator(self, ctx: TaskContext) -> BaseOperator:
        """Make the operator of one task instance.

        Raises:
            OperatorError: what was made is no operator.
            Exception: whatever the operator's constructor raises.
        """
        operator = self.make(*self.args, **self.kwargs)
        if not isinstance(operator, BaseOperator):
            raise OperatorError(
                f"{self!r} made a {type(operator).__qualname__}; expected a BaseOperator"
            )
        operator.ctx = ctx
        return operator

    def __repr__(self) -> str:
        return f"OperatorFactory({getattr(self.make, '__qualname__', self.make)!s})"
