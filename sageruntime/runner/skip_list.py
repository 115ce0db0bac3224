"""SkipList: packets that a host died or hung over, for when they come again."""

from __future__ import annotations

from collections import Counter

from sageruntime.communication.router import Packet

PacketName = int | str
"""What a packet is known by when it comes again."""


class SkipList:
    """Packets that the operator must not be given again.

    One that the operator hung on has met the error policy already, and is left out. One that its
    process died over could not: it meets the policy when it comes again.

    An attempt begins where the latest complete checkpoint is. From there, as many packets of a name
    are left out as were added since.

    Args:
        by_content: whether packets come again from their source, made again. They are known by key
            and payload then, and by their ids otherwise.
    """

    def __init__(self, by_content: bool) -> None:
        self.by_content = by_content
        # Why the process died over a packet, of those that have not met the error policy.
        self._fatal: dict[PacketName, list[str]] = {}
        self._added: Counter[PacketName] = Counter()
        self._pending: Counter[PacketName] = Counter()
        self._skipped: Counter[PacketName] = Counter()

    @property
    def is_pending(self) -> bool:
        """Whether any is still to come in this attempt."""
        return bool(self._pending)

    def __contains__(self, name: PacketName) -> bool:
        return name in self._added

    def name_of(self, packet: Packet) -> PacketName:
        """The name of a packet: the same in every process."""
        if not self.by_content:
            return packet.id
        from sageruntime.runner.content_hash import content_hash  # only where a host was lost

        try:
            return content_hash((packet.key, packet.payload))
        except Exception:  # it does not pickle here: then it is not known when it comes again
            return packet.id

    def add(self, name: PacketName, fatal: str | None = None) -> None:
        """Leave out one more packet of this name; ``fatal``: it has still to meet the policy."""
        self._added[name] += 1
        if fatal is not None:
            self._fatal.setdefault(name, []).append(fatal)

    def fatal_reason(self, name: PacketName) -> str | None:
        """Why the process died over a packet that has still to meet the error policy."""
        reasons = self._fatal.get(name)
        return reasons[0] if reasons else None

    def has_met_policy(self, name: PacketName) -> None:
        """A packet that the process died over has met the error policy."""
        reasons = self._fatal.get(name)
        if reasons:
            reasons.pop(0)

    def begin_attempt(self) -> None:
        """All that was added and is in no complete checkpoint comes again."""
        self._pending = self._added.copy()
        self._skipped = Counter()

    def take_out(self, packet: Packet) -> PacketName | None:
        """The name of a packet that is to be left out, which is counted; None of another one."""
        if not self._pending:
            return None
        name = self.name_of(packet)
        if name not in self._pending:
            return None
        one = Counter((name,))
        self._pending -= one
        self._skipped += one
        return name

    def skipped(self) -> dict[PacketName, int]:
        """What this attempt has left out so far: part of a snapshot taken now."""
        return dict(self._skipped)

    def settle(self, skipped: dict[PacketName, int]) -> None:
        """A snapshot is kept for good, and with it that these were left out."""
        self._added -= Counter(skipped)
        self._skipped -= Counter(skipped)
