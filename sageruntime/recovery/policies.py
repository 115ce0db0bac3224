"""How often, and how fast, something that failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from sageruntime.errors import InvalidOption


@dataclass(frozen=True)
class RetryPolicy:
    """How a packet is tried again under the error policy ``retry``.

    Args:
        attempts: how often the operator sees the packet at most, the first time included.
        backoff: seconds before the second attempt; doubled before each further one.
        max_backoff: most seconds between two attempts.
        then: the error policy for a packet that failed every time: ``"fail"``, ``"skip"`` or
            ``"dead_letter"``.
    """

    attempts: int = 3
    backoff: float = 0.1
    max_backoff: float = 10.0
    then: str = "fail"

    def __post_init__(self) -> None:
        _check_count("retry.attempts", self.attempts, 1)
        _check_backoff("retry", self.backoff, self.max_backoff)
        if self.then not in ("fail", "skip", "dead_letter"):
            raise InvalidOption(
                f"retry.then={self.then!r} is not allowed; expected fail, skip or dead_letter"
            )

    def delay(self, failures: int) -> float:
        """Seconds to wait before the next attempt, after so many that failed."""
        return min(self.backoff * 2.0 ** (failures - 1), self.max_backoff)


@dataclass(frozen=True)
class RestartPolicy:
    """How often a task that failed, or whose process died, is started again.

    Args:
        max_restarts: restarts within any ``window``; one more failure ends the task. 0 restarts
            nothing.
        window: seconds.
        backoff: seconds before the first restart of a series; doubled before each further one.
        max_backoff: most seconds before a restart.
    """

    max_restarts: int = 0
    window: float = 60.0
    backoff: float = 0.0
    max_backoff: float = 10.0

    def __post_init__(self) -> None:
        _check_count("restart.max_restarts", self.max_restarts, 0)
        _check_backoff("restart", self.backoff, self.max_backoff)
        if not self.window > 0:
            raise InvalidOption(
                f"restart.window={self.window!r} is not allowed; expected seconds above 0"
            )


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(f"{name}={value!r} is not allowed; expected an int from {least}")


def _check_backoff(name: str, backoff: float, most: float) -> None:
    if not 0 <= backoff <= most:
        raise InvalidOption(
            f"{name}.backoff={backoff!r} is not allowed; expected seconds from 0 to max_backoff, "
            f"which is {most!r}"
        )
