"""Alignment: which senders have passed the barrier of a checkpoint, and what waits for the rest."""

from __future__ import annotations

from sageruntime.communication.router import Barrier, PacketBatch
from sageruntime.runner.inbox import Delivery


class Alignment:
    """Aligns the barriers of one task's senders.

    Checkpoints are Chandy and Lamport's, with barriers aligned as in Flink (Carbone et al.,
    "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015): what a sender sends
    behind its barrier is held back until the barriers of all senders have come. Then the state has
    the effects of everything before the barriers and of nothing behind them.

    Args:
        upstreams: how many senders there are.
        limit: most packets that are held back.
    """

    def __init__(self, upstreams: int, limit: int) -> None:
        self._upstreams = upstreams
        self._limit = limit
        self._passed: set[str] = set()
        self._held: list[Delivery] = []
        self._newest = 0
        self.checkpoint: int | None = None
        """The checkpoint whose barriers are being collected."""
        self.held = 0
        """Packets that are held back."""

    def is_overtaken_by(self, barrier: Barrier) -> bool:
        """Whether a barrier shows that the checkpoint being aligned was given up.

        A sender passes the barrier of the next checkpoint only then. What was held back came before
        this barrier: it is processed before the barrier is noted.
        """
        return self.checkpoint is not None and barrier.checkpoint > self.checkpoint

    def note(self, barrier: Barrier) -> None:
        """A barrier has come, and does not overtake an older checkpoint."""
        if barrier.checkpoint > self._newest:
            self._newest = self.checkpoint = barrier.checkpoint
        if barrier.checkpoint == self.checkpoint:
            self._passed.add(barrier.sender)

    def holds_back(self, sender: str) -> bool:
        """Whether a sender's messages have to wait."""
        return sender in self._passed

    def hold(self, delivery: Delivery) -> bool:
        """Keep a message until the barriers of all senders have come; whether there is room."""
        self._held.append(delivery)
        packets = 0
        if type(delivery.message) is PacketBatch:
            packets = len(delivery.message.packets)
        if self.held + packets > self._limit:
            return False
        self.held += packets
        return True

    def is_complete(self, ended: set[str]) -> bool:
        """Whether each sender has passed its barrier or ended."""
        return self.checkpoint is not None and len(self._passed | ended) >= self._upstreams

    def abort(self, checkpoint: int) -> list[Delivery]:
        """Give a checkpoint up, also if none of its barriers has come yet; returns what was held
        back for it, oldest first."""
        self._newest = max(self._newest, checkpoint)
        return self.release() if self.checkpoint == checkpoint else []

    def release(self) -> list[Delivery]:
        """Stop waiting for barriers; returns what was held back, oldest first."""
        held, self._held = self._held, []
        self._passed.clear()
        self.held = 0
        self.checkpoint = None
        return held
