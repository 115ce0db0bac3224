"""Inboxes: how a worker takes messages from its task's input queue, and what it may take again.

A message that was taken and is not done when the task fails is *unfinished*. Where it comes back
from depends on what died: a worker that begins again in its process is given it by its inbox; a
new process gets what its predecessor had claimed from the queue.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from sagequeue.errors import DecodeError
from sagequeue.protocol import Queue
from sagequeue.ray_queue import RayLease, RayQueue
from sageruntime.communication.router import Message, StopSignal
from sageruntime.errors import InvalidOption

if TYPE_CHECKING:
    from sagequeue import SageQueue

# Batches taken from the input queue at once.
_TAKE = 8

# Messages that are kept in memory until they are done.
_MOST_KEPT = 4096


class Inbox(ABC):
    """Messages of one input queue. It outlives the workers that take them."""

    def __init__(self, queue: Queue[Message]) -> None:
        self.queue = queue

    @property
    def crowded(self) -> bool:
        """Whether so much is unfinished that it should be done before more is taken."""
        return False

    @abstractmethod
    def take(self, block: bool) -> list[Message]:
        """The next messages; raises what ``get_many`` raises."""

    def done(self) -> None:  # noqa: B027
        """Whatever was taken so far has been dealt with, and its results have been sent."""

    def mark(self) -> list[Message]:
        """What is unfinished now, which :meth:`done_to_mark` will be about."""
        return []

    def done_to_mark(self) -> None:  # noqa: B027
        """Whatever was unfinished at the last :meth:`mark` has been dealt with."""

    def end(self) -> None:  # noqa: B027
        """Nothing will be taken any more, and nothing is unfinished."""

    def rewind(self) -> None:  # noqa: B027
        """The next worker begins with what is unfinished."""

    def abandon(self) -> None:  # noqa: B027
        """Leave what is unfinished; nothing refers to the queue's memory any more."""


class ForgetfulInbox(Inbox):
    """Takes each message once; what is unfinished when the task fails is gone."""

    def take(self, block: bool) -> list[Message]:
        """See :class:`Inbox`."""
        return self.queue.get_many(_TAKE, block=block)


class KeepingInbox(Inbox):
    """Keeps what is unfinished in this process, which is where its queue is, too."""

    def __init__(self, queue: Queue[Message]) -> None:
        super().__init__(queue)
        self._unfinished: list[Message] = []
        self._again: deque[list[Message]] = deque()
        self._marked = 0

    @property
    def crowded(self) -> bool:
        """See :class:`Inbox`."""
        return len(self._unfinished) >= _MOST_KEPT

    def take(self, block: bool) -> list[Message]:
        """See :class:`Inbox`."""
        messages = self._again.popleft() if self._again else self.queue.get_many(_TAKE, block=block)
        self._unfinished += messages
        return messages

    def done(self) -> None:
        """See :class:`Inbox`."""
        # an end that was announced stays announced until the task ends
        self._unfinished = [m for m in self._unfinished if isinstance(m, StopSignal)]

    def mark(self) -> list[Message]:
        """See :class:`Inbox`."""
        self._marked = len(self._unfinished)
        return self._unfinished

    def done_to_mark(self) -> None:
        """See :class:`Inbox`."""
        self._unfinished = self._unfinished[self._marked :]
        self._marked = 0

    def end(self) -> None:
        """See :class:`Inbox`."""
        self._unfinished = []

    def rewind(self) -> None:
        """See :class:`Inbox`."""
        again = self._unfinished + [m for messages in self._again for m in messages]
        self._unfinished = []
        self._marked = 0
        self._again = deque([again] if again else [])


class ClaimingInbox(Inbox):
    """Claims messages of a shared-memory queue and releases them when they are done.

    Arrays in them are read-only views of the queue's memory.
    """

    queue: SageQueue[Message]

    def __init__(self, queue: SageQueue[Message]) -> None:
        super().__init__(queue)
        self._leases: list[Any] = []
        self._again: list[Message] = []
        self._marked = 0

    @property
    def crowded(self) -> bool:
        """See :class:`Inbox`; a queue has as many leases as it has slots."""
        return len(self._leases) * 2 >= self.queue.capacity

    def take(self, block: bool) -> list[Message]:
        """See :class:`Inbox`."""
        if self._again:
            messages, self._again = self._again, []
            return messages
        leases = self._claim(block)
        self._leases += leases
        return [lease.item for lease in leases]

    def _claim(self, block: bool) -> list[Any]:
        return self.queue.claim_many(_TAKE, block=block)

    def _release(self, leases: list[Any]) -> None:
        for lease in leases:
            lease.release()

    def done(self) -> None:
        """See :class:`Inbox`."""
        kept: list[Any] = []
        done: list[Any] = []
        for lease in self._leases:
            (kept if isinstance(lease.item, StopSignal) else done).append(lease)
        self._leases = kept
        self._release(done)

    def mark(self) -> list[Message]:
        """See :class:`Inbox`."""
        self._marked = len(self._leases)
        return [lease.item for lease in self._leases]

    def done_to_mark(self) -> None:
        """See :class:`Inbox`."""
        done, self._leases = self._leases[: self._marked], self._leases[self._marked :]
        self._marked = 0
        self._release(done)

    def end(self) -> None:
        """See :class:`Inbox`."""
        done, self._leases = self._leases, []
        self._release(done)

    def rewind(self) -> None:
        """See :class:`Inbox`."""
        self._again = [lease.item for lease in self._leases]
        self._marked = 0

    def abandon(self) -> None:
        """See :class:`Inbox`; a lease that is dropped is given back."""
        self._again = []
        self._leases = []


class RayClaimingInbox(ClaimingInbox):
    """Claims messages of a Ray queue's broker, for one task."""

    queue: RayQueue[Message]  # type: ignore[assignment]

    def __init__(self, queue: RayQueue[Message], task: str) -> None:
        super().__init__(queue)  # type: ignore[arg-type]
        self._claimant = f"{task}:{secrets.token_hex(4)}"
        self._claimed: deque[RayLease[Message]] = deque()  # not yet decoded

    @property
    def crowded(self) -> bool:
        """See :class:`Inbox`."""
        return len(self._leases) >= _MOST_KEPT

    def _claim(self, block: bool) -> list[Any]:
        if not self._claimed:
            self._claimed.extend(self.queue.claim_many(self._claimant, _TAKE, block))
        leases: list[RayLease[Message]] = []
        while self._claimed:
            try:
                _ = self._claimed[0].item
            except DecodeError:
                if leases:
                    break  # its error comes in its place: with the next call
                self._claimed.popleft().release()
                raise
            leases.append(self._claimed.popleft())
        return leases

    def _release(self, leases: list[Any]) -> None:
        if leases:
            self.queue.release_many(leases)


def inbox_of(queue: Queue[Message], task: str, keep: bool) -> Inbox:
    """A task's inbox for a queue; ``keep`` is whether unfinished messages have to come back.

    Raises:
        InvalidOption: they have to, and the queue is of a kind that cannot.
    """
    if not keep:
        return ForgetfulInbox(queue)
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


def give_back_unfinished(queue: Queue[Message], task: str) -> None:
    """Let the next taker have what one that has died had not done: a host of this task."""
    if queue.backend == "sage":
        cast("SageQueue[Message]", queue).recover()
    elif isinstance(queue, RayQueue):
        queue.give_back_claims(f"{task}:")
