"""Queues between the threads, processes and machines of a Python program.

>>> from sagequeue import create_queue
>>> queue = create_queue(maxsize=1000, scope="machine")
>>> queue.put({"any": "object"})
>>> queue.get()
{'any': 'object'}
>>> queue.close()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagequeue.adapter import create_queue
from sagequeue.codecs import register_codec
from sagequeue.errors import (
    BackendUnavailable,
    CorruptSegment,
    DecodeError,
    Empty,
    EncodeError,
    ForeignSegment,
    Full,
    IncompatibleSegment,
    InvalidOption,
    LeaseEnded,
    OutOfSharedMemory,
    QueueClosed,
    QueueError,
    QueueExists,
    QueueNotFound,
    RoleConflict,
    ShutDown,
    TooManyParticipants,
)
from sagequeue.local_queue import LocalQueue
from sagequeue.protocol import Queue
from sagequeue.ray_queue import RayQueue
from sagequeue.usage import Usage

if TYPE_CHECKING:
    from sagequeue._object import ObjectQueue
    from sagequeue._shared import Lease
    from sagequeue.inspection import (
        QueueInfo,
        inspect_queue,
        list_queues,
        prune_queues,
        remove_queue,
    )
    from sagequeue.leases import Leases
    from sagequeue.queue import SageQueue, SageQueueRef

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "CorruptSegment",
    "DecodeError",
    "Empty",
    "EncodeError",
    "ForeignSegment",
    "Full",
    "IncompatibleSegment",
    "InvalidOption",
    "Lease",
    "LeaseEnded",
    "Leases",
    "LocalQueue",
    "ObjectQueue",
    "OutOfSharedMemory",
    "Queue",
    "QueueClosed",
    "QueueError",
    "QueueExists",
    "QueueInfo",
    "QueueNotFound",
    "RayQueue",
    "RoleConflict",
    "SageQueue",
    "SageQueueRef",
    "ShutDown",
    "TooManyParticipants",
    "Usage",
    "__version__",
    "create_queue",
    "inspect_queue",
    "list_queues",
    "prune_queues",
    "register_codec",
    "remove_queue",
]

_COMPILED = {
    "QueueInfo": "sagequeue.inspection",
    "inspect_queue": "sagequeue.inspection",
    "list_queues": "sagequeue.inspection",
    "prune_queues": "sagequeue.inspection",
    "remove_queue": "sagequeue.inspection",
    "Lease": "sagequeue._shared",
    "Leases": "sagequeue.leases",
    "ObjectQueue": "sagequeue._object",
    "SageQueue": "sagequeue.queue",
    "SageQueueRef": "sagequeue.queue",
}


def __getattr__(name: str) -> Any:
    """The compiled queues on first use, so that the others work where nothing was compiled."""
    if name in _COMPILED:
        from importlib import import_module

        return getattr(import_module(_COMPILED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
