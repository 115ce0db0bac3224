"""StackProfile: where threads were, and for how long."""

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
    """Seconds by stack; what several threads or tasks spent adds up.

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
        """The same with one more frame at the outside."""
        return StackProfile({(frame, *stack): spent for stack, spent in self.seconds.items()})

    def without_stem(self) -> StackProfile:
        """The same without the frames that begin every stack: how the thread was started."""
        # what the first and the last in order have in common, all have
        outermost = zip(min(self.seconds, default=())[:-1], max(self.seconds, default=())[:-1])
        stem = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], outermost))
        return StackProfile({stack[stem:]: spent for stack, spent in self.seconds.items()})

    @classmethod
    def merged(cls, profiles: Iterable[StackProfile]) -> StackProfile:
        """What several profiles saw together."""
        seconds: defaultdict[Stack, float] = defaultdict(float)
        for profile in profiles:
            for stack, spent in profile.seconds.items():
                seconds[stack] += spent
        return cls(seconds)
