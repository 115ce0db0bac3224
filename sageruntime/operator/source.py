"""Sources: where packets come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.errors import OperatorError
from sageruntime.operator.base_operator import BaseOperator, Results


class SourceOperator(BaseOperator):
    """Base of sources: :meth:`read` yields payloads until there are no more.

    With several instances, each reads its own share: see ``ctx.index`` and ``ctx.parallelism``.
    An error ends the task whatever its error policy: there is no packet to skip.
    """

    @abstractmethod
    def read(self) -> Iterator[Any]:
        """Yield payloads. Called once, after ``open``."""

    def total(self) -> int | None:
        """How many payloads this instance will yield, if known; called after ``open``."""
        return None

    def process(self, packet: Packet) -> Results:
        """Sources have no input."""
        raise OperatorError("a source takes no packets; connect them to the stage after it")


class IterableSource(SourceOperator):
    """Yields the items of an iterable; of several instances, each takes every n-th.

    Args:
        origin: the iterable, or a function that returns one. Only a function can go to another
            process when the iterable itself cannot (a file, a generator).
    """

    def __init__(self, origin: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self.origin = origin

    def read(self) -> Iterator[Any]:
        """See :class:`SourceOperator`."""
        items = self.origin() if callable(self.origin) else self.origin
        return islice(iter(items), self.ctx.index, None, self.ctx.parallelism)
