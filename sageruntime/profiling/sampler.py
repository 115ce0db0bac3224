"""Sampler: looks at the stacks of worker threads while they run."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import takewhile

from sageruntime.errors import MonitoringError
from sageruntime.profiling.stack_profile import Frame, Stack, StackProfile

INTERVAL = 0.001
"""Seconds between two samples of a thread."""


class Sampler:
    """Samples threads from within, by pyinstrument.

    Equal stacks are added up as they come, so memory does not grow with time.

    Raises:
        MonitoringError: pyinstrument is not installed.
    """

    def __init__(self) -> None:
        try:
            from pyinstrument.stack_sampler import get_stack_sampler
        except ImportError as error:
            raise MonitoringError(
                "profiles need pyinstrument: pip install 'sagequeue[profile]'"
            ) from error
        self._sampler_of_this_thread = get_stack_sampler
        self._threads: list[tuple[str, dict[tuple[str, ...], float]]] = []

    def begin(self) -> None:
        """Sample the calling thread until it ends."""
        seconds: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._threads.append((threading.current_thread().name, seconds))

        def note(stack: list[str], since_last: float, async_state: object) -> None:
            seconds[tuple(stack)] += since_last

        self._sampler_of_this_thread().subscribe(
            note, desired_interval=INTERVAL, use_async_context=False
        )

    def profile(self) -> StackProfile:
        """What was seen so far, thread by thread."""
        return StackProfile.merged(
            StackProfile(_without_stem(seconds.copy())).under(Frame(name, "thread"))
            for name, seconds in self._threads
        )


def _without_stem(seconds: Mapping[tuple[str, ...], float]) -> dict[Stack, float]:
    """Leave out the frames that begin every stack: how the thread was started."""
    readable: defaultdict[Stack, float] = defaultdict(float)
    for stack, spent in seconds.items():
        readable[tuple(map(_frame, stack))] += spent
    # what the first and the last in order have in common, all have
    outermost = zip(min(readable, default=())[:-1], max(readable, default=())[:-1])
    stem = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], outermost))
    return {stack[stem:]: spent for stack, spent in readable.items()}


@cache
def _frame(info: str) -> Frame:
    from pyinstrument.frame_info import parse_frame_info

    identifier, attributes = parse_frame_info(info)
    function, file, line = identifier.split("\0")
    owner = "".join(attribute[1:] + "." for attribute in attributes if attribute[0] == "c")
    return Frame(owner + function, f"{file}:{line}" if line != "0" else file)
