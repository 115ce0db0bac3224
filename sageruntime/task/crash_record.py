"""CrashRecord: which packets a task's hosts have died over."""

from __future__ import annotations

from collections import Counter

from sageruntime.runner.skip_list import PacketName, SkipList

# A checkpoint may be completed before the packet comes that the host died over.
_CAUTIOUS_CHECKPOINTS = 3


class CrashRecord:
    """Which packets a task's hosts have died over.

    To name each packet before it is processed takes longer than to process it. So it is done when
    the task can go on without the packet, and otherwise only from the second death in a row on: so
    a task whose process was killed once from outside is at full speed at once.

    Args:
        skip_list: gets those that are not to be tried again.
        max_deliveries: how often a packet may be given to the operator.
        goes_on: whether the error policy lets the task go on without a packet.
    """

    def __init__(self, skip_list: SkipList, max_deliveries: int, goes_on: bool) -> None:
        self._goes_on = goes_on
        self._deaths_in_a_row = 0
        self._row_ends_in = 0
        self._skip_list = skip_list
        self._max_deliveries = max_deliveries
        self._attempting: PacketName | None = None
        self._deaths: Counter[PacketName] = Counter()

    @property
    def cautious_for(self) -> int:
        """How many checkpoints have to be completed before packets are processed without being
        named first, because a host has died."""
        return self._row_ends_in if self._goes_on or self._deaths_in_a_row > 1 else 0

    def attempt(self, packet: PacketName) -> None:
        """The operator is given a packet; it has returned from the one before."""
        if self._attempting is not None:
            self._deaths.pop(self._attempting, None)
        self._attempting = packet

    def checkpoint_completed(self) -> None:
        """What was processed before it does not come again."""
        self._row_ends_in = max(0, self._row_ends_in - 1)
        if self._row_ends_in == 0:
            self._deaths_in_a_row = 0

    def host_lost(self, error: Exception, was_killed_by_us: bool) -> None:
        """A host has died. What it was processing is not known before the second time."""
        packet, self._attempting = self._attempting, None
        if was_killed_by_us:
            return
        self._deaths_in_a_row += 1
        self._row_ends_in = _CAUTIOUS_CHECKPOINTS
        if packet is None:
            return
        self._deaths[packet] += 1
        deliveries = self._deaths[packet] + 1
        if deliveries >= self._max_deliveries:
            del self._deaths[packet]
            self._skip_list.add(packet, f"{error}, {deliveries} times while it processed it")
