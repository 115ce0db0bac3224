"""OperatorFactory: makes a task's operator in the place where the task runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sageruntime.context import TaskContext
from sageruntime.core.registry import Registry
from sageruntime.errors import OperatorError, OperatorNotFound
from sageruntime.operator import BaseOperator

_operators = Registry(
    "operator",
    "sageruntime.operators",
    {
        "collect": "sageruntime.operator:CollectSink",
        "count_by_key": "sageruntime.operator:CountByKey",
    },
    OperatorNotFound,
)


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

    @classmethod
    def named(cls, name: str, *args: Any, **kwargs: Any) -> OperatorFactory:
        """A recipe for the operator of this name; see :func:`find_operator`.

        Raises:
            OperatorNotFound: the name means nothing.
            OperatorError: what it means cannot be called.
        """
        make = find_operator(name)
        if not callable(make):
            raise OperatorError(
                f"operator {name!r} is {make!r}; expected an operator class, or a function that "
                "returns an operator"
            )
        return cls(make, *args, **kwargs)

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


def register_operator(name: str, operator: Any) -> None:
    """Let job files and :meth:`OperatorFactory.named` know an operator by name, in this process.

    A job file may name a function, too, for a stage that takes one.
    """
    _operators.register(name, operator)


def find_operator(name: str, folder: Path | None = None) -> Any:
    """What ``name`` means: a registered operator, a built-in one, one that an installed package
    has as an entry point of ``sageruntime.operators``, or an import path ``module:attribute``.

    Args:
        name: the name or import path.
        folder: where to look for modules, too; those found there travel by value.

    Raises:
        OperatorNotFound: it means nothing; the message says what is known.
    """
    return _operators.find(name, folder)
