"""The options every service has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sageruntime.core.options import Count, Options, list_options, option
from sageruntime.core.policies import RestartPolicy


@dataclass(frozen=True)
class ServiceOptions(Options):
    """How a service works, whatever hosts it."""

    instances: Count = option(1, "How many hosts, each with a service of its own.")
    worker_threads: Count = option(1, "How many requests each instance answers side by side.")
    max_concurrency: Count = option(
        100, "How many coroutine methods each instance runs side by side."
    )
    idempotent: bool = option(
        False, "Whether a call may be executed again if the process that executes it dies."
    )
    queue_maxsize: Count = option(10_000, "Most requests waiting; callers wait for room.")
    restart: RestartPolicy = option(
        RestartPolicy(),
        "How often an instance that fails is started again; in a job, by default as its tasks.",
        section="task",
    )


class ServiceKeywords(TypedDict, total=False):
    """The options of a service as keyword arguments, spelled out for type checkers.

    See :class:`ServiceOptions` for what they mean.
    """

    instances: int
    worker_threads: int
    max_concurrency: int
    idempotent: bool
    queue_maxsize: int
    restart: RestartPolicy


OPTION_NAMES = [each.name for each in list_options(ServiceOptions)]
"""The names of a service's options."""


def service_options(given: Mapping[str, Any]) -> ServiceOptions:
    """The options of a service among what is given by name; the others are of its tasks.

    Raises:
        InvalidOption: an option is out of range.
    """
    return ServiceOptions(**{name: given[name] for name in OPTION_NAMES if name in given})
