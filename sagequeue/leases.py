"""Several leases at a time."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

from sagequeue._shared import Lease

T = TypeVar("T")


class Leases(list[Lease[T]]):
    """What :meth:`sagequeue.SageQueue.claim_many` claimed, in order.

    As a context manager it releases those that have not ended at the end of the block, and gives
    them back when the block raises.
    """

    def __enter__(self) -> Leases[T]:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for lease in self:
            lease.__exit__(exc_type, exc, traceback)
