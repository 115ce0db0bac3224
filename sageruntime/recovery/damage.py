"""Damaged checkpoints: a store falls back to the newest one that can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

K = TypeVar("K")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was saved: it is cut off, or its checksum is another."""


def newest_intact(
    job: str, stored: Iterable[K], read: Callable[[K], Checkpoint]
) -> tuple[Checkpoint | None, list[K]]:
    """The newest checkpoint that can be read, and those that are newer and damaged.

    Args:
        job: the job's name.
        stored: what stands for each of its checkpoints, the newest first.
        read: reads one; raises DamagedCheckpoint.

    Returns:
        No checkpoint if there is none.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    damaged: list[K] = []
    errors: list[DamagedCheckpoint] = []
    for key in stored:
        try:
            checkpoint = read(key)
        except DamagedCheckpoint as error:
            damaged.append(key)
            errors.append(error)
            continue
        for found in errors:
            logger.warning(
                "%s; job %s falls back to checkpoint %d: what its sinks have committed since then "
                "may be written again",
                found, job, checkpoint.number,
            )  # fmt: skip
        return checkpoint, damaged
    if errors:
        raise CheckpointError(
            f"no checkpoint of job {job} can be read: {'; '.join(map(str, errors))}. Restore the "
            "store from a copy, or begin from the start with resume=False"
        ) from errors[0]
    return None, []
