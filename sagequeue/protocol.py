"""The one interface every queue of this package has, whatever carries its items."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Queue(Protocol[T]):
    """A FIFO queue: the interface of ``queue.Queue`` (Python 3.13), batches, and close.

    ``timeout`` is in seconds, ``None`` waits for ever; with ``block=False`` it is ignored. A
    negative timeout raises :class:`~sagequeue.errors.InvalidOption` (a ``ValueError``).
    """

    @property
    def backend(self) -> str:
        """What carries the items: ``"sage"``, ``"object"``, ``"ray"`` or ``"local"``."""
        ...

    @property
    def name(self) -> str:
        """The name given to ``create_queue``, or one made up that is unique on this machine."""
        ...

    @property
    def maxsize(self) -> int:
        """The most items the queue holds; 0 means no limit was asked for."""
        ...

    logger: logging.Logger
    """Where the queue logs; tasks replace it with their own."""

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put one item; :class:`Full` when there is no room in time, :class:`ShutDown` after it."""
        ...

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``."""
        ...

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put all items in order and return how many.

        One ``timeout`` covers the whole call. When it runs out or the queue is shut down,
        :class:`Full` or :class:`ShutDown` says in ``accepted`` how many leading items went in.
        """
        ...

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item; :class:`Empty` when none comes in time, :class:`ShutDown` once
        the queue is shut down and drained."""
        ...

    def get_nowait(self) -> T:
        """``get(block=False)``."""
        ...

    def get_many(
        self, max_items: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[T]:
        """Take what is there, at most ``max_items``, waiting only for the first; never empty."""
        ...

    def wakeup(self) -> None:
        """End the wait of a take (``get``, ``get_many``, ``claim``, ``claim_many``) with
        :class:`Empty`, before its timeout; any thread of this process may call it.

        When none waits, the next take with ``block=True`` that finds no item raises it instead of
        waiting. One call or many before that end one wait. Items, puts and takes through other
        handles are not affected; a forked child begins without it; a closed handle ignores it.
        """
        ...

    def qsize(self) -> int:
        """How many items are waiting; other participants may change it at any time."""
        ...

    def empty(self) -> bool:
        """``qsize() == 0``."""
        ...

    def full(self) -> bool:
        """Whether ``maxsize`` items are waiting; ``False`` where there is no limit."""
        ...

    def task_done(self) -> None:
        """Say that one item got has been dealt with; ``ValueError`` when called too often."""
        ...

    def join(self) -> None:
        """Wait until every item put has been answered by ``task_done``."""
        ...

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse further puts, everywhere; ``immediate`` also drops what is waiting."""
        ...

    def close(self) -> None:
        """Give up this handle. The queue itself lives on while others hold it."""
        ...

    def __iter__(self) -> Iterator[T]:
        """Yield items until the queue is shut down and drained."""
        ...

    def __enter__(self) -> Queue[T]: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """``close()``."""
        ...
