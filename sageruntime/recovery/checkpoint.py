"""Checkpoints: the state of a whole job between two packets of each of its sources."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sageruntime.core.options import Count, Options, Seconds, option

FINAL_CHECKPOINT = 0
"""Used as the number of the checkpoint of the last states, when all tasks have finished."""


@dataclass(frozen=True)
class Checkpoint:
    """The states of all tasks of a job as of one moment of the data.

    Attributes:
        number: from 1, in the order they were taken.
        taken_at: when it was complete, in seconds since the epoch.
        states: by task, as ``stage/index``: what ``snapshot()`` returned, pickled.
        is_final: whether the job ends with it: everything has been processed and sent.
    """

    number: int
    taken_at: float
    states: dict[str, bytes] = field(repr=False)
    is_final: bool = False

    def __str__(self) -> str:
        """Its number and when it was taken, in local time, for messages."""
        taken = time.strftime("%F %T", time.localtime(self.taken_at))
        return f"checkpoint {self.number} of {taken}"


class CheckpointStore(Protocol):
    """Keeps the checkpoints of jobs, which it knows by name.

    Raises:
        CheckpointError: from any method, when the store cannot be read or written.
    """

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint for good: all of it or, should this process die, nothing.

        How many earlier ones are kept beside it is up to the store.
        """

    def latest(self, job: str) -> Checkpoint | None:
        """The checkpoint of the highest number that can be read, if there is any."""

    def clear(self, job: str) -> None:
        """Forget the checkpoints of a job."""

    def close(self) -> None:
        """Give back what the store holds."""


@dataclass(frozen=True)
class CheckpointOptions(Options, prefix="checkpoint."):
    """Whether and where a job keeps checkpoints; times are in seconds.

    Args:
        store: a :class:`CheckpointStore`; or the path of an SQLite file, which may be written
            ``sqlite:path``, or of a folder, written ``folder:path``.
    """

    store: CheckpointStore | Path | str
    interval: Seconds = option(10.0, "Time between two checkpoints.")
    keep: Count = option(2, "How many checkpoints are kept, the latest included.")
    resume: bool = option(
        True,
        "Go on where a run of this job that did not end had got to; `false` begins from the start.",
    )
    timeout: Seconds = option(
        60.0,
        "A checkpoint that is not complete after this time is given up, and the next one is taken.",
    )
