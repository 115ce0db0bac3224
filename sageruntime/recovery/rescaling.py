"""Rescaling: a checkpoint for a stage that has more instances now, or fewer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cloudpickle

from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint


@dataclass(frozen=True)
class FormerStates:
    """What an instance begins with instead of a state of its own.

    Attributes:
        states: the states of all former instances of its stage, pickled, in order of index.
    """

    states: list[bytes]


def assign_states(job: str, checkpoint: Checkpoint, tasks: Collection[str]) -> dict[str, bytes]:
    """What each task begins with, by ``stage/index``.

    Raises:
        CheckpointError: the checkpoint is of a job with other stages.
    """
    kept, wanted = _group_by_stage(checkpoint.states), _group_by_stage(tasks)
    if kept.keys() != wanted.keys():
        raise CheckpointError(
            f"checkpoint {checkpoint.number} of job {job} does not fit: it has the stages "
            f"{', '.join(kept)}; the job has {', '.join(wanted)}. Run it with the stages it had, "
            "or start from the beginning with resume=False"
        )
    states: dict[str, bytes] = {}
    for stage, keys in wanted.items():
        former = [checkpoint.states[key] for key in kept[stage]]
        if len(keys) == len(former):
            states |= zip(keys, former)
        else:
            states |= dict.fromkeys(keys, cloudpickle.dumps(FormerStates(former)))
    return states


def _group_by_stage(tasks: Collection[str]) -> dict[str, list[str]]:
    """The tasks of each stage, in order of index."""
    stages: dict[str, list[str]] = {}
    for key in sorted(tasks, key=lambda key: int(key.rpartition("/")[2])):
        stages.setdefault(key.rpartition("/")[0], []).append(key)
    return stages
