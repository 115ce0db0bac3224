"""StackProfile: how much time threads spent in each stack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import NamedTuple


class Frame(NamedTuple):
    """One function on a stack.

    Attributes:
        function: its name, with its class.
        place: its file and line.
    """

    function: str
    place: str


Stack = tuple[Frame, ...]
"""From the outermost function to the one that ran."""


class StackProfile:
    """Seconds by stack, in sum of several threads or tasks.

    Args:
        seconds: how long each stack was seen.
    """

    def __init__(self, seconds: Mapping[Stack, float] | None = None) -> None:
        self.seconds: Mapping[Stack, float] = dict(seconds or {})

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def under(self, frame: Frame) -> StackProfile:
        """The same with one more outermost frame."""
        return StackProfile({(frame, *stack): spent for stack, spent in self.seconds.items()})

    def without_common_callers(self) -> StackProfile:
        """The same without the outermost frames that all stacks share: the start of the thread."""
        # stacks in order: what the first and the last have in common, all have
        outermost = zip(min(self.seconds, default=())[:-1], max(self.seconds, default=())[:-1])
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], outermost))
        return StackProfile({stack[common:]: spent for stack, spent in self.seconds.items()})

    @classmethod
    def merged(cls, profiles: Iterable[StackProfile]) -> StackProfile:
        """What several profiles saw together."""
        seconds: defaultdict[Stack, float] = defaultdict(float)
        for profile in profiles:
            for stack, spent in profile.seconds.items():
                seconds[stack] += spent
        return cls(seconds)
