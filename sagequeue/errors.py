"""Every error a queue raises, each a subclass of the standard exception a caller already handles.

``except queue.Empty`` and ``except queue.Full`` keep working; the names here add what was
wrong, what was expected and what to do.
"""

from __future__ import annotations

import pickle
import queue
import sys

if sys.version_info >= (3, 13):
    _StandardShutDown = queue.ShutDown
else:

    class _StandardShutDown(Exception):
        """Stands in for ``queue.ShutDown``, which the standard library has since Python 3.13."""


class QueueError(Exception):
    """Base class of every error raised by :mod:`sagequeue`."""

    accepted: int = 0
    """How many leading items a ``put_many`` did put before this error (0 for other calls)."""


class Empty(QueueError, queue.Empty):
    """Nothing to get within the time allowed."""


class Full(QueueError, queue.Full):
    """No room to put within the time allowed."""

    def __init__(self, message: str = "", accepted: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted


class ShutDown(QueueError, _StandardShutDown):
    """The queue was shut down: ``put`` is refused, and ``get`` once nothing is left."""

    def __init__(self, message: str = "", accepted: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted


class QueueClosed(QueueError, ValueError):
    """This handle was closed by ``close()``, or never opened; open another one to go on."""


class InvalidOption(QueueError, ValueError):
    """An argument is outside what is allowed; the message says what is."""


class QueueExists(QueueError, FileExistsError):
    """A live queue already has this name."""


class QueueNotFound(QueueError, FileNotFoundError):
    """No queue has this name on this machine."""


class IncompatibleSegment(QueueError):
    """The segment is no queue this build can use: wrong magic, layout version, size or codec."""


class CorruptSegment(QueueError):
    """Shared memory holds a value no correct participant writes; the queue must be recreated."""


class ForeignSegment(QueueError, PermissionError):
    """The segment belongs to another user, or others may write it; it is not trusted."""


class RoleConflict(QueueError):
    """A second producer or consumer came to a mode that allows one."""


class TooManyParticipants(QueueError):
    """The participant table is full: more handles are open than the queue was created for."""


class LeaseEnded(QueueError, ValueError):
    """The lease was released or rejected, or belongs to another process."""


class OutOfSharedMemory(QueueError, MemoryError):
    """The shared-memory file system has no room left for the queue or for a message."""


class EncodeError(QueueError, pickle.PicklingError):
    """The item cannot be encoded by the queue's codec; it was not put."""

    def __init__(self, message: str = "", accepted: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted


class DecodeError(QueueError, pickle.UnpicklingError):
    """A message arrived whole but its codec cannot turn it back into an object.

    ``get`` and ``get_many`` consume it; a lease keeps it until it is released or rejected.

    Attributes:
        data: the item's pickle as it travelled, without its out-of-band buffers; ``None`` when
            the item was no pickle.
        buffers: copies of those buffers, in order.
    """

    def __init__(
        self, message: str = "", data: bytes | None = None, buffers: tuple[bytes, ...] = ()
    ) -> None:
        super().__init__(message)
        self.data = data
        self.buffers = buffers


class BackendUnavailable(QueueError, RuntimeError):
    """The backend asked for cannot work here; the message says why and what to install or set."""
