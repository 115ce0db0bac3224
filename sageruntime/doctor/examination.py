"""Everything at once for ``sagert doctor``, and what matters to a job before it starts."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sageruntime.doctor import limits, machine, packages
from sageruntime.doctor.check import Check, Outcome
from sageruntime.errors import DependencyError

# What the ends of a pipe, a queue and its neighbours' queues take of this process.
_DESCRIPTORS_PER_TASK = 8

ALL: tuple[Callable[[], Check], ...] = (
    machine.system,
    packages.extension,
    packages.packages,
    machine.futex,
    machine.shared_memory,
    machine.process_list,
    limits.file_descriptors,
    limits.processes,
    packages.ray,
)


def examine() -> list[Check]:
    """Look at everything; it may take a second or two, for Ray is imported."""
    return [check() for check in ALL]


def can_share_memory() -> bool:
    """Whether queues of shared memory work here."""
    return all(check.outcome is not Outcome.FAILED for check in _check_shared_queues())


def require(hosts: Collection[str], tasks: int) -> None:
    """Look at what a job on these hosts cannot do without; it takes a few milliseconds at most.

    Args:
        hosts: where its tasks run.
        tasks: how many there are outside this process.

    Raises:
        DependencyError: something is missing; the message says what, and the remedy.
    """
    checks: list[Check] = []
    if "process" in hosts:
        checks += _check_shared_queues()
        checks.append(limits.file_descriptors(_DESCRIPTORS_PER_TASK * tasks))
    if "ray" in hosts:
        checks.append(packages.ray_installed())
    wrong = [check for check in checks if check.outcome is Outcome.FAILED]
    if wrong:
        raise DependencyError(
            "; ".join(f"{check.name}: {check.found}. Remedy: {check.remedy}" for check in wrong)
        )


def _check_shared_queues() -> list[Check]:
    return [
        packages.extension(),
        machine.futex(),
        machine.shared_memory(),
        machine.process_list(),
    ]
