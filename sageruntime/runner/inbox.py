"""Inboxes: how a runner takes messages from its task's input queue, and what comes again.

A message that was taken and is not acknowledged when an attempt fails is delivered again. Where it
comes back from depends on the queue: one of references keeps nothing, so its inbox does; the others
keep what is claimed until it is released, also for the next process when this one dies.
"""

from __future__ import annotations

import itertools
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from sagequeue.errors import DecodeError
from sagequeue.protocol import Queue
from sagequeue.ray_queue import RayQueue
from sageruntime.communication.router import Message, Packet, PacketBatch, StopSignal
from sageruntime.errors import InvalidOption

if TYPE_CHECKING:
    from sagequeue import SageQueue

# Messages taken from the input queue at once.
_TAKE = 8

# Most messages of a queue without leases, or on Ray, that are kept until they are acknowledged.
_MOST_KEPT = 4096

_numbers = itertools.count()


class Delivery:
    """A message that was taken, or the reason why it cannot be decoded.

    Attributes:
        message: the message; None when it cannot be decoded.
        error: why it cannot.
        deliveries: how often it was taken before and not acknowledged.
        lease: what the queue gave for it, if the queue keeps the message.
    """

    __slots__ = ("_keys", "_payloads", "deliveries", "error", "lease", "message", "number")

    def __init__(
        self,
        message: Message | None,
        error: DecodeError | None = None,
        lease: Any = None,
        deliveries: int = 0,
    ) -> None:
        self.message = message
        self.error = error
        self.lease = lease
        self.deliveries = deliveries
        self.number = next(_numbers)

    def keep_original(self) -> None:
        """Remember what an operator may change of the packets."""
        if type(self.message) is PacketBatch:
            self._payloads = [packet.payload for packet in self.message.packets]
            self._keys = [packet.key for packet in self.message.packets]

    def again(self) -> Delivery:
        """The same once more, with the packets as they came."""
        message = self.message
        if type(message) is PacketBatch:
            index = message.input_index
            packets = [
                Packet(payload, index, key, packet.timestamp, packet.id)
                for payload, key, packet in zip(self._payloads, self._keys, message.packets)
            ]
            message = PacketBatch(
                packets, index, message.sent_at, message.sender, message.attempt,
                message.traceparent,
            )  # fmt: skip
        return Delivery(message, self.error, self.lease, self.deliveries + 1)


class Inbox(ABC):
    """Takes messages from one input queue. It outlives the attempts of its task."""

    def __init__(self, queue: Queue[Message]) -> None:
        self.queue = queue

    @property
    def is_over_limit(self) -> bool:
        """Whether so much is unacknowledged that nothing more should be taken."""
        return False

    @abstractmethod
    def take(self, block: bool, timeout: float | None = None) -> list[Delivery]:
        """The next messages; raises what ``get_many`` raises."""

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:  # noqa: B027
        """These are processed and their results sent: they do not come again."""

    def unacknowledged(self) -> list[Delivery]:
        """What has been taken and not acknowledged, oldest first."""
        return []

    def rewind(self) -> None:  # noqa: B027
        """Have everything that is not acknowledged delivered again."""

    def abandon(self) -> None:  # noqa: B027
        """Leave what is unacknowledged; nothing refers to the queue's memory any more."""


class AtMostOnceInbox(Inbox):
    """Takes each message once; what is being processed when an attempt fails is gone."""

    def take(self, block: bool, timeout: float | None = None) -> list[Delivery]:
        try:
            return [Delivery(message) for message in self.queue.get_many(_TAKE, block, timeout)]
        except DecodeError as error:
            return [Delivery(None, error)]


class KeepingInbox(Inbox):
    """Knows what is unacknowledged, and delivers it again to the next attempt."""

    def __init__(self, queue: Queue[Message]) -> None:
        super().__init__(queue)
        self._unacknowledged: dict[int, Delivery] = {}
        self._again: list[Delivery] = []

    @property
    def is_over_limit(self) -> bool:
        return len(self._unacknowledged) >= _MOST_KEPT

    def take(self, block: bool, timeout: float | None = None) -> list[Delivery]:
        deliveries, self._again = self._again, []
        if not deliveries:
            deliveries = self._take(block, timeout)
        for delivery in deliveries:
            delivery.keep_original()
            self._unacknowledged[delivery.number] = delivery
        return deliveries

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        # the end of a sender stays announced, for a next attempt waits for it
        done = [d for d in deliveries if type(d.message) is not StopSignal]
        # one that was not taken from here has no lease
        known = [d for d in done if self._unacknowledged.pop(d.number, None) is not None]
        self._release(known)

    def unacknowledged(self) -> list[Delivery]:
        return list(self._unacknowledged.values())

    def rewind(self) -> None:
        again = [delivery.again() for delivery in self._unacknowledged.values()]
        self._again = again + self._again
        self._unacknowledged.clear()

    def abandon(self) -> None:
        self._unacknowledged.clear()
        self._again = []

    def _take(self, block: bool, timeout: float | None) -> list[Delivery]:
        return [Delivery(message) for message in self.queue.get_many(_TAKE, block, timeout)]

    def _release(self, deliveries: list[Delivery]) -> None:
        """Tell the queue, if it keeps them, that these are done with."""


class ClaimingInbox(KeepingInbox):
    """Claims messages of a shared-memory queue and releases them when they are acknowledged.

    Arrays in them are read-only views of the queue's memory.
    """

    queue: SageQueue[Message]

    @property
    def is_over_limit(self) -> bool:
        return len(self._unacknowledged) * 2 >= self.queue.capacity  # it has as many leases

    def _take(self, block: bool, timeout: float | None) -> list[Delivery]:
        leases = self.queue.claim_many(_TAKE, block=block, timeout=timeout)
        return [_decode(lease) for lease in leases]

    def _release(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            delivery.lease.release()


class RayClaimingInbox(KeepingInbox):
    """Claims messages of a Ray queue's broker, for one task."""

    queue: RayQueue[Message]

    def __init__(self, queue: RayQueue[Message], task: str) -> None:
        super().__init__(queue)
        self._claimant = make_claimant(task)

    def _take(self, block: bool, timeout: float | None) -> list[Delivery]:
        leases = self.queue.claim_many(self._claimant, _TAKE, block, timeout)
        return [_decode(lease) for lease in leases]

    def _release(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            self.queue.release_many([delivery.lease for delivery in deliveries])


def open_inbox(queue: Queue[Message], task: str, keep: bool) -> Inbox:
    """A task's inbox for a queue; ``keep`` is whether unacknowledged messages have to come again.

    Raises:
        InvalidOption: they have to, and the queue is of a kind that cannot.
    """
    if not keep:
        return AtMostOnceInbox(queue)
    if queue.backend == "sage":
        return ClaimingInbox(cast("SageQueue[Message]", queue))
    if isinstance(queue, RayQueue):
        return RayClaimingInbox(queue, task)
    if queue.backend in ("object", "local"):
        return KeepingInbox(queue)
    raise InvalidOption(
        f"queue {queue.name!r} of backend {queue.backend!r} cannot give back what a task that "
        "failed had taken; use sage, ray, object or local, or no restarts"
    )


def make_claimant(task: str) -> str:
    """A name under which one host of a task claims messages of a Ray queue."""
    return f"{task}:{secrets.token_hex(4)}"


def give_back_unacknowledged(queue: Queue[Message], task: str) -> None:
    """Let the next taker have what a host of this task that has died had not acknowledged."""
    if queue.backend == "sage":
        cast("SageQueue[Message]", queue).recover()
    elif isinstance(queue, RayQueue):
        queue.give_back_claims(f"{task}:")


def _decode(lease: Any) -> Delivery:
    try:
        return Delivery(lease.item, None, lease, lease.deliveries)
    except DecodeError as error:
        return Delivery(None, error, lease, lease.deliveries)
