"""Sources: where packets come from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.errors import OperatorError
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class Idle(Enum):
    """The type of :data:`IDLE`."""

    IDLE = "idle"


IDLE = Idle.IDLE
"""A source yields this while it has no data, so that its task can take checkpoints."""


class SourceOperator(BaseOperator):
    """Base of sources: :meth:`read` yields payloads until there are no more.

    With several instances, each reads its own share: see ``ctx.index`` and ``ctx.parallelism``.
    An error ends the task whatever its error policy: there is no packet to skip. For checkpoints,
    ``snapshot()`` returns the position behind the payload yielded last, and :meth:`read` begins
    where ``restore()`` says.
    """

    @abstractmethod
    def read(self) -> Iterator[Any]:
        """Yield payloads. Called once, after ``open`` and ``restore``.

        A source that waits for long yields :data:`IDLE` every now and then: between two yields
        its task can be paused, stopped, and take a checkpoint.
        """

    def total(self) -> int | None:
        """How many payloads this instance will yield, if known; called after ``open``."""
        return None

    def process(self, packet: Packet) -> Results:
        """Sources have no input."""
        raise OperatorError("a source takes no packets; connect them to the stage after it")


class ReadOnce:
    """An iterator that says so when it is to be read again, instead of being empty."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._was_read = False

    def __iter__(self) -> Iterator[Any]:
        if self._was_read:
            raise OperatorError(
                f"the source {self._iterator!r} was read before, by an earlier run or before a "
                "failure, and cannot be read again; pass a function that returns a new one, or a "
                "list"
            )
        self._was_read = True
        return self._iterator


class IterableSource(SourceOperator):
    """Yields the items of an iterable; of several instances, each takes every n-th.

    Args:
        origin: the iterable, or a function that returns one. Only a function can go to another
            process when the iterable itself cannot (a file, a generator). It may yield
            :data:`IDLE`, too.
    """

    def __init__(self, origin: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self.origin = origin
        # How many items of its share this instance has yielded; and the positions of former
        # instances, a list for each parallelism the stage had before.
        self._position = 0
        self._former: list[list[int]] = []

    def read(self) -> Iterator[Any]:
        items = self.origin() if callable(self.origin) else self.origin
        every = self.ctx.parallelism
        former = self._former
        others = self.ctx.index + self._position * every
        for item in items:
            if item is IDLE:  # not counted: the next time it may not come
                yield item
            elif others:
                others -= 1
            else:
                others = every - 1
                self._position += 1
                if not (former and self._was_read(self._position - 1)):
                    yield item

    def snapshot(self) -> tuple[int, list[list[int]]]:
        """What of the iterable has been yielded."""
        return self._position, self._former

    def restore(self, state: tuple[int, list[list[int]]]) -> None:
        """Skip the items that were yielded before; the iterable has to yield them again."""
        self._position, self._former = state

    def rescale(self, states: list[tuple[int, list[list[int]]]]) -> tuple[int, list[list[int]]]:
        """Distribute the items that no former instance has yielded."""
        return 0, [*states[0][1], [position for position, _ in states]]

    def _was_read(self, position: int) -> bool:
        number = self.ctx.index + position * self.ctx.parallelism
        return any(number // len(read) < read[number % len(read)] for read in self._former)
