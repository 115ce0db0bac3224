"""Commands: what a driver asks of a task's runner. They are carried out in the order of sending."""

from __future__ import annotations

import msgspec


class Command(msgspec.Struct, frozen=True, tag=True):
    """Base of all commands."""


class Pause(Command, frozen=True):
    """Process nothing more after the message in hand, until :class:`Resume`."""


class Resume(Command, frozen=True):
    """Go on."""


class Stop(Command, frozen=True):
    """End the task.

    Attributes:
        drain: process what waits first; otherwise end after the packet in hand.
    """

    drain: bool


class Halt(Command, frozen=True):
    """Leave off after the packet in hand and wait for :class:`Restore`."""


class Restore(Command, frozen=True):
    """Begin again with a new operator.

    Attributes:
        attempt: what earlier attempts have sent is ignored.
        state: the operator's pickled state, if there is one to begin with.
        is_final: everything was processed and sent already; only the end is missing.
    """

    attempt: int
    state: bytes | None = None
    is_final: bool = False


class TakeCheckpoint(Command, frozen=True):
    """Begin a checkpoint here."""

    checkpoint: int


class AbortCheckpoint(Command, frozen=True):
    """Give up a checkpoint: process what was held back for it."""

    checkpoint: int


class CheckpointCompleted(Command, frozen=True):
    """A checkpoint is complete, and this task's snapshot is part of it."""

    checkpoint: int


class Release(Command, frozen=True):
    """Let a source that has been read to its end finish."""


class SenderEnded(Command, frozen=True):
    """A task upstream was stopped without draining, and does not announce its end.

    Attributes:
        sender: its name.
    """

    sender: str


class Dismiss(Command, frozen=True):
    """Let a task that has completed end."""


class ChangeRouter(Command, frozen=True):
    """Make a change to the router.

    Attributes:
        method: the name of a method of the router.
        arguments: its pickled positional arguments.
    """

    method: str
    arguments: bytes


AnyCommand = (
    Pause
    | Resume
    | Stop
    | Halt
    | Restore
    | TakeCheckpoint
    | AbortCheckpoint
    | CheckpointCompleted
    | Release
    | Dismiss
    | SenderEnded
    | ChangeRouter
)
"""What travels to a runner."""
