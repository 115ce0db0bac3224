"""Partitioner: the protocol of partitioners, those of this package and those of users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from sageruntime.communication.router.packet import Packet

Reject = Callable[[Packet, Exception], None]
"""Takes a packet that cannot be sent, and why."""


class Target(Protocol):
    """One of the tasks that packets are divided among.

    Attributes:
        name: the task's name.
    """

    name: str

    def depth(self) -> int:
        """How many packets wait for the task, about: a batch of its queue counts as a full one."""
        ...


@runtime_checkable
class Partitioner(Protocol):
    """Divides packets among the tasks of one group.

    Each sending task has a partitioner of its own, called by one thread at a time. It is pickled to
    reach the task's host.

    Attributes:
        fails_over: whether any task will do for a packet. If so, a task that has ended is left out
            and its siblings get what it can no longer take; otherwise its packets go to the error
            policy, and all others stay where they are.
        patience: may be left out, or None: seconds to wait for room in one task's queue before its
            packets are partitioned again.
    """

    fails_over: bool

    def split(
        self, packets: list[Packet], targets: Sequence[Target], reject: Reject
    ) -> list[list[Packet]]:
        """Return a list of packets for each target, in the order given.

        A packet in several lists has to be a separate copy in each: tasks change packets in
        place. One that belongs to no target is given to ``reject``. An exception ends the task.

        Args:
            packets: at least one.
            targets: at least one, in the order in which they were connected.
            reject: takes a packet to the task's error policy.
        """
        ...
