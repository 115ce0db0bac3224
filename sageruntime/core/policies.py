"""Policies for packets that fail, and for retries and restarts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NoReturn

from sageruntime.core.options import Count, CountFromZero, Delay, Options, Seconds, option
from sageruntime.errors import InvalidOption

# 2.0 ** 1024 overflows; long before that, max_backoff limits the delay.
_MOST_DOUBLINGS = 1000


class ErrorPolicy(str, Enum):
    """Where a packet goes when its operator raises."""

    FAIL = "fail"
    """The task fails, and with it the job."""
    SKIP = "skip"
    """The packet is left out."""
    RETRY = "retry"
    """The operator gets the packet again, a few times; see
    :class:`~sageruntime.core.policies.RetryPolicy`."""
    DEAD_LETTER = "dead_letter"
    """The packet goes to the dead-letter queue with the error."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        allowed = ", ".join(policy.value for policy in cls)
        raise InvalidOption(f"error_policy={value!r} is not allowed; expected one of {allowed}")


class Backoff(Options):
    """A policy that waits before it tries again, after each failure twice as long as before."""

    backoff: float
    max_backoff: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backoff > self.max_backoff:
            raise InvalidOption(
                f"{self._prefix}backoff={self.backoff!r} is not allowed; expected seconds from 0 "
                f"to max_backoff, which is {self.max_backoff!r}"
            )

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, of which there is at least one."""
        return min(self.backoff * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), self.max_backoff)


@dataclass(frozen=True)
class RetryPolicy(Backoff, prefix="retry."):
    """How a packet is tried again under the error policy `retry`; times are in seconds."""

    attempts: Count = option(
        3, "How often the operator sees the packet at most, the first time included."
    )
    backoff: Delay = option(0.1, "Time before the second attempt; doubled before each further one.")
    max_backoff: Delay = option(10.0, "Most time between two attempts.")
    then: Literal["fail", "skip", "dead_letter"] = option(
        "fail", "The error policy for a packet that failed every time."
    )


@dataclass(frozen=True)
class RestartPolicy(Backoff, prefix="restart."):
    """How often a task that failed, or whose process died, is started again; times are in seconds.

    With 0 restarts nothing is started again.
    """

    max_restarts: CountFromZero = option(
        0, "Restarts within any `window`; one more failure ends the job."
    )
    window: Seconds = option(60.0, "The time in which restarts are counted.")
    backoff: Delay = option(
        0.0, "Time before the first restart of a series; doubled before each further one."
    )
    max_backoff: Delay = option(10.0, "Most time before a restart.")
