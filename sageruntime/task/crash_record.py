"""CrashRecord: which packets a task's hosts have died over."""

from __future__ import annotations

from collections import Counter

from sageruntime.runner.skip_list import PacketName, SkipList


class CrashRecord:
    """Which packets a task's hosts have died over.

    Args:
        skip_list: gets those that are not to be tried again.
        max_deliveries: how often a packet may be given to the operator.

    Attributes:
        has_lost_hosts: whether a host has died since the latest checkpoint.
    """

    def __init__(self, skip_list: SkipList, max_deliveries: int) -> None:
        self.has_lost_hosts = False
        self._skip_list = skip_list
        self._max_deliveries = max_deliveries
        self._attempting: PacketName | None = None
        self._deaths: Counter[PacketName] = Counter()

    def attempt(self, packet: PacketName) -> None:
        """The operator is given a packet; it has returned from the one before."""
        if self._attempting is not None:
            self._deaths.pop(self._attempting, None)
        self._attempting = packet

    def host_lost(self, error: Exception, was_killed_by_us: bool) -> None:
        """A host has died. What it was processing is not known before the second time."""
        packet, self._attempting = self._attempting, None
        self.has_lost_hosts = True
        if packet is None or was_killed_by_us:
            return
        self._deaths[packet] += 1
        deliveries = self._deaths[packet] + 1
        if deliveries >= self._max_deliveries:
            del self._deaths[packet]
            self._skip_list.add(packet, f"{error}, {deliveries} times while it processed it")
