"""DeadLetter: a packet that could not be processed, and why."""

from __future__ import annotations

import pickle
import time
from typing import Any

import cloudpickle
import msgspec

from sageruntime.communication.router import Packet


class DeadLetter(msgspec.Struct):
    """A packet that could not be processed, and why.

    Attributes:
        packet: the packet; None for one that cannot be decoded.
        task: the task that gave it up.
        stage: the stage the task belongs to.
        error: the error's type and message.
        traceback: where it was raised.
        is_result: whether the packet is a result of the task that could not be sent on, and not
            one that the operator failed on.
        is_repr: whether the payload could not be encoded and is its ``repr`` now.
        raw: the bytes of a packet that cannot be decoded, as they travelled.
        failed_at: when, in nanoseconds since the epoch.
    """

    packet: Packet | None
    task: str
    stage: str
    error: str
    traceback: str
    is_result: bool = False
    is_repr: bool = False
    raw: bytes | None = None
    failed_at: int = msgspec.field(default_factory=time.time_ns)

    def with_repr(self) -> DeadLetter:
        """This letter with the ``repr`` of a payload that cannot be encoded."""
        assert self.packet is not None
        packet = self.packet.copy()
        packet.payload, packet.key = repr(packet.payload), repr(packet.key)
        return msgspec.structs.replace(self, packet=packet, is_repr=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # The packet is pickled apart: where it cannot be rebuilt, the letter still arrives.
        fields = msgspec.structs.asdict(self)
        packet = fields.pop("packet")
        return _rebuild, (None if packet is None else cloudpickle.dumps(packet), fields)


def _rebuild(packet: bytes | None, fields: dict[str, Any]) -> DeadLetter:
    if packet is None:
        return DeadLetter(None, **fields)
    try:
        return DeadLetter(pickle.loads(packet), **fields)
    except Exception:  # of a class that is not here, or that cannot be rebuilt
        return DeadLetter(None, **{**fields, "raw": packet})
