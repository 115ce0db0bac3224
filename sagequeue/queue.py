"""SageQueue: the shared-memory queue, with the interface of ``multiprocessing.Queue`` and more."""

from __future__ import annotations

import logging
import math
import numbers
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeVar

from sagequeue._shared import SharedQueue
from sagequeue.closing import Closing
from sagequeue.counts import count_of
from sagequeue.errors import InvalidOption, ShutDown
from sagequeue.leases import Leases

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

T = TypeVar("T")

Mode = Literal["spsc", "mpsc", "spmc", "mpmc"]

DEFAULT_CAPACITY = 16384
DEFAULT_SLOT_SIZE = 128
DEFAULT_POOL_BYTES = 64 << 20
DEFAULT_PARTICIPANTS = 128
DEFAULT_RECOVERY_SECONDS = 0.1

_MAX_CAPACITY = 1 << 24
_MAX_DIMENSIONS = 12
_NAME = re.compile(r"[A-Za-z0-9_-]{1,180}")


class SageQueue(SharedQueue[T], Closing, Generic[T]):
    """A FIFO queue between the processes of one machine, in shared memory.

    It passes to other processes by inheritance (fork), as an argument (spawn, forkserver, Ray on
    the same node), by :meth:`attach` with its name, and as the small :meth:`get_reference`.

    Args:
        maxsize: most items waiting, exactly; 0 bounds them by ``capacity`` only.
        name: letters, digits, ``_`` and ``-``; made up when not given.
        mode: how many producers and consumers may take part: ``"spsc"``, ``"mpsc"``, ``"spmc"``
            or ``"mpmc"``, the default. Where one is allowed, a second live one is refused with
            :class:`~sagequeue.errors.RoleConflict`.
        capacity: slots of the ring, rounded up to a power of two; by default enough for
            ``maxsize``.
        slot_size: bytes of a slot, a multiple of 64 up to 1024. A message of up to
            ``slot_size - 16`` bytes needs no chunk of the pool.
        pool_bytes: bytes of larger messages waiting, for each size class. Memory is taken as it is
            used. A message that finds no chunk gets a segment of its own.
        codec: ``"pickle"``, ``"cloudpickle"``, ``"raw"``, ``"msgpack"`` or a name given to
            :func:`~sagequeue.codecs.register_codec`.
        max_participants: most handles open at a time, in all processes.
        recovery_interval: seconds within which a waiting participant notices the death of another.

    Raises:
        InvalidOption: an option is out of range.
        QueueExists: a live queue has that name.
        OutOfSharedMemory: ``/dev/shm`` is full.
    """

    backend = "sage"

    def __init__(
        self,
        maxsize: SupportsIndex = 0,
        *,
        name: str | None = None,
        mode: Mode = "mpmc",
        capacity: SupportsIndex | None = None,
        slot_size: SupportsIndex = DEFAULT_SLOT_SIZE,
        pool_bytes: SupportsIndex = DEFAULT_POOL_BYTES,
        codec: str = "pickle",
        max_participants: SupportsIndex = DEFAULT_PARTICIPANTS,
        recovery_interval: float = DEFAULT_RECOVERY_SECONDS,
    ) -> None:
        self.logger = logging.getLogger("sagequeue")
        maxsize = max(0, count_of("maxsize", maxsize))
        slots = _slots_for(maxsize, None if capacity is None else count_of("capacity", capacity))
        slot_size = count_of("slot_size", slot_size)
        pool_bytes = count_of("pool_bytes", pool_bytes)
        max_participants = count_of("max_participants", max_participants)
        _check("mode", mode, mode in ("spsc", "mpsc", "spmc", "mpmc"), "spsc, mpsc, spmc or mpmc")
        _check(
            "slot_size",
            slot_size,
            64 <= slot_size <= 1024 and slot_size % 64 == 0,
            "a multiple of 64 from 64 to 1024",
        )
        _check("pool_bytes", pool_bytes, 64 << 10 <= pool_bytes <= 1 << 40, "64 KiB to 1 TiB")
        _check("max_participants", max_participants, 1 <= max_participants <= 4096, "1 to 4096")
        _check(
            "recovery_interval",
            recovery_interval,
            isinstance(recovery_interval, numbers.Real) and 0.001 <= recovery_interval <= 60,
            "0.001 to 60 seconds",
        )
        _check(
            "codec",
            codec,
            isinstance(codec, str) and codec.isascii() and 0 < len(codec) < 32,
            "1 to 31 ASCII characters",
        )
        self._create(
            checked_name(name) if name is not None else f"{os.getpid()}-{secrets.token_hex(6)}",
            maxsize,
            mode,
            slots,
            slot_size,
            pool_bytes,
            codec,
            max_participants,
            round(float(recovery_interval) * 1000),
        )

    @classmethod
    def attach(cls, name: str) -> SageQueue[T]:
        """A handle of the queue with this name, from any process of the same user.

        Raises:
            QueueNotFound: there is none.
            ForeignSegment, IncompatibleSegment, CorruptSegment: what is there is not used.
        """
        queue: SageQueue[T] = cls.__new__(cls)
        queue.logger = logging.getLogger("sagequeue")
        queue._attach(checked_name(name))
        return queue

    def claim_many(
        self, max_items: int | None = None, block: bool = True, timeout: float | None = None
    ) -> Leases[T]:
        """Lease what is there, at most ``max_items`` (256 without), waiting only for the first.

        Raises what :meth:`get_many` raises.
        """
        return Leases(self._claim_many(max_items, block, timeout))

    def loan(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: DTypeLike = "uint8",
        *,
        order: Literal["C", "F"] = "C",
        block: bool = True,
        timeout: float | None = None,
    ) -> AbstractContextManager[NDArray[Any]]:
        """An array in the queue's memory to write in place, which is put without another copy.

        It is not zeroed: it may hold parts of earlier messages.

        >>> with queue.loan((1080, 1920, 3), "u1") as frame:
        ...     camera.read_into(frame)

        The end of the block puts it; when the block raises, nothing is put. From then on the array
        is read-only, and its memory is not used again before it is gone. Where views of it, or
        other names for it, outlive the block, a copy is put instead. ``timeout`` covers the
        wait for memory and the wait for room.

        Raises:
            InvalidOption: the dtype is not plain data, the shape has more than 12 dimensions or
                is larger than any memory, or the codec carries no arrays.
            Full, ShutDown: at the end of the block, as :meth:`put` does.
        """
        import numpy

        extents = _extents_of(shape)
        _check("shape", shape, all(extent >= 0 for extent in extents), "extents of 0 or more")
        _check(
            "shape", shape, len(extents) <= _MAX_DIMENSIONS, f"at most {_MAX_DIMENSIONS} of them"
        )
        try:
            kind = numpy.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise InvalidOption(f"dtype={dtype!r} is not allowed: {error}") from error
        size = math.prod(extent for extent in extents if extent) * kind.itemsize
        _check("shape", shape, size <= sys.maxsize, f"at most {sys.maxsize} bytes")
        _check("order", order, order in ("C", "F"), "C or F")
        return self._loan(extents, kind, order == "F", block, timeout)

    def get_reference(self) -> SageQueueRef[T]:
        """A small picklable name of this queue, which holds nothing open."""
        return SageQueueRef(self.name)

    def join_thread(self) -> None:
        """There is no feeder thread: an item put is in the queue. For ``multiprocessing.Queue``."""

    def cancel_join_thread(self) -> None:
        """Likewise."""

    def __iter__(self) -> Iterator[T]:
        """Yield items until the queue is shut down and drained."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __reduce__(self) -> tuple[Any, ...]:
        process = get_spawning_popen()
        if process is None:
            return (type(self).attach, (self.name,), self._state_to_send())
        # The queue stays for the process that is being started, even if we close before it runs.
        invitation = DupFd(self._invite(process))
        return (_accept, (type(self), self.name, invitation), self._state_to_send())

    def _state_to_send(self) -> Any:
        """What a subclass has beside the queue, as pickle would ask for it; or None."""
        # objects have it since Python 3.11
        state = getattr(self, "__getstate__", lambda: self.__dict__)()
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != "logger"}
        return state or None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.qsize()} waiting"
        return f"<{type(self).__name__} {self.name!r} {self.mode}, {state}>"


def _accept(cls: type[SageQueue[T]], name: str, invitation: Any) -> SageQueue[T]:
    """A handle for a process that was started with one among its arguments."""
    queue = cls.__new__(cls)
    queue.logger = logging.getLogger("sagequeue")
    queue._attach(name, invitation.detach())
    return queue


@dataclass(frozen=True)
class SageQueueRef(Generic[T]):
    """The name of a queue, to be sent anywhere on this machine."""

    name: str

    def get_queue(self) -> SageQueue[T]:
        """Open a handle; raises what :meth:`SageQueue.attach` raises."""
        return SageQueue.attach(self.name)


def _check(option: str, value: object, allowed: bool, expected: str) -> None:
    if not allowed:
        raise InvalidOption(f"{option}={value!r} is not allowed; expected {expected}")


def checked_name(name: str) -> str:
    """The name, if a queue can have it; InvalidOption otherwise."""
    allowed = isinstance(name, str) and _NAME.fullmatch(name) is not None
    _check("name", name, allowed, "1 to 180 of A-Z a-z 0-9 _ -")
    return name


def _extents_of(shape: Any) -> tuple[int, ...]:
    try:
        extents = tuple(shape)
    except TypeError:
        extents = (shape,)
    return tuple(count_of("shape", extent) for extent in extents)


def _slots_for(maxsize: int, capacity: int | None) -> int:
    """A power of two with some slots to spare, which consumers still read while others are put."""
    if capacity is None:
        capacity = maxsize + maxsize // 4 + 64 if maxsize else DEFAULT_CAPACITY
    _check("capacity", capacity, max(2, maxsize) <= capacity, "at least maxsize, and 2")
    _check("maxsize or capacity", capacity, capacity <= _MAX_CAPACITY, f"at most {_MAX_CAPACITY}")
    return int(1 << (capacity - 1).bit_length())
