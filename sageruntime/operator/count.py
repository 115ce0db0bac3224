"""CountByKey: how many packets each key had."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator.base_operator import BaseOperator
from sageruntime.operator.results import Results


class CountByKey(BaseOperator):
    """Counts packets by key and, at the end of the input, sends ``(key, count)`` for each key."""

    def __init__(self) -> None:
        self.counts: defaultdict[Any, int] = defaultdict(int)

    def process(self, packet: Packet) -> Results:
        self.counts[packet.key] += 1
        return None

    def finish(self) -> Results:
        return (Packet(item, key=item[0]) for item in self.counts.items())

    def snapshot(self) -> defaultdict[Any, int]:
        """The counts so far."""
        return self.counts

    def restore(self, state: defaultdict[Any, int]) -> None:
        """Go on from them."""
        self.counts = state

    def rescale(self, states: list[defaultdict[Any, int]]) -> defaultdict[Any, int]:
        """The counts of the keys that come here now."""
        owned: defaultdict[Any, int] = defaultdict(int)
        for state in states:
            owned.update({key: count for key, count in state.items() if self.ctx.owns(key)})
        return owned
