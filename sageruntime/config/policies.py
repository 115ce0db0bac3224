"""The policies of tasks: what is tried again, and how often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from sageruntime.config.section import Section
from sageruntime.config.units import Delay, Seconds
from sageruntime.errors import InvalidOption
from sageruntime.recovery import RestartPolicy, RetryPolicy
from sageruntime.task.options import TaskOptions


class RetryConfig(Section):
    """How a packet is tried again under the error policy `retry`."""

    attempts: int = Field(RetryPolicy.attempts, ge=1)
    """How often the operator sees the packet at most, the first time included."""
    backoff: Delay = RetryPolicy.backoff
    """Time before the second attempt; doubled before each further one."""
    max_backoff: Delay = RetryPolicy.max_backoff
    """Most time between two attempts."""
    then: Literal["fail", "skip", "dead_letter"] = "fail"
    """What becomes of a packet that failed every time."""


class RestartConfig(Section):
    """How often a task that failed, or whose process died, is started again."""

    max_restarts: int = Field(RestartPolicy.max_restarts, ge=0)
    """Restarts within any `window`; one more failure ends the job."""
    window: Seconds = RestartPolicy.window
    """The time in which restarts are counted."""
    backoff: Delay = RestartPolicy.backoff
    """Time before the first restart of a series; doubled before each further one."""
    max_backoff: Delay = RestartPolicy.max_backoff
    """Most time before a restart."""


def merged_policies(
    options: TaskOptions,
    retry: RetryConfig | None,
    restart: RestartConfig | None,
    at: tuple[int | str, ...],
) -> dict[str, Any]:
    """The policies of ``options`` with what is given here in their place.

    Args:
        at: where that is, in what is being validated.

    Raises:
        PydanticCustomError: the values do not go together.
    """
    policies: dict[str, Any] = {}
    for name, given in (("retry", retry), ("restart", restart)):
        if given is not None:
            try:
                changes = given.model_dump(exclude_unset=True)
                policies[name] = replace(getattr(options, name), **changes)
            except InvalidOption as error:
                raise PydanticCustomError(
                    "policy", "{said}", {"said": str(error), "at": (*at, name)}
                ) from error
    return policies
