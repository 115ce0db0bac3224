"""Events: what a task's runner tells its driver, in the order in which it happened."""

from __future__ import annotations

from typing import Any

import msgspec

from sageruntime.runner.skip_list import PacketName
from sageruntime.runner.status import TaskReport, TaskStatus


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events.

    Attributes:
        attempt: the attempt of the task in which it happened.
    """

    attempt: int = 0


class Running(Event, frozen=True):
    """An attempt has begun."""


class Draining(Event, frozen=True):
    """The input has ended; the last results are being sent."""


class Halted(Event, frozen=True):
    """The runner has left off and waits for ``Restore``."""


class Failed(Event, frozen=True):
    """An attempt has failed; the runner waits for ``Restore``."""

    error: BaseException


class Stuck(Event, frozen=True):
    """The operator works on some packets for longer than ``processing_timeout``.

    Attributes:
        packets: their names.
        error: the policy is that the task fails, with this.
        early: packets that it hung on before have not come again yet, so they may be these.
        status: what was counted until now.
    """

    packets: list[PacketName]
    error: BaseException | None
    early: bool
    status: TaskStatus


class Attempting(Event, frozen=True):
    """The operator is given a packet that a process may have died over before."""

    packet: PacketName


class PolicyApplied(Event, frozen=True):
    """A packet that a process died over has met the error policy.

    Attributes:
        packet: its name.
        status: what was counted until now.
    """

    packet: PacketName
    status: TaskStatus


class StartFailed(Event, frozen=True):
    """The task cannot be made where it was to run; the host ends."""

    error: BaseException


class Exhausted(Event, frozen=True):
    """The source has been read to its end, and waits for ``Release``."""


class SnapshotTaken(Event, frozen=True):
    """The task's part of a checkpoint.

    Attributes:
        checkpoint: its number.
        state: what ``snapshot()`` returned, pickled.
        skipped: how often each packet was left out before it.
    """

    checkpoint: int
    state: bytes
    skipped: dict[PacketName, int]


class CheckpointWanted(Event, frozen=True):
    """The task waits for a checkpoint, because much is unacknowledged until then."""


class CheckpointDeclined(Event, frozen=True):
    """The task has given up a checkpoint, because too much would wait for its barriers."""

    checkpoint: int


class Finished(Event, frozen=True):
    """Everything is processed and sent; only the end is missing, also for a next attempt.

    Attributes:
        status: what was counted.
    """

    status: TaskStatus


class Completed(Event, frozen=True):
    """The end was sent, too; the runner waits for ``Dismiss``."""

    state: bytes


class ConnectionRemoved(Event, frozen=True):
    """All that was gathered for a removed connection is delivered.

    Attributes:
        name: the connection's.
    """

    name: str


class StatusReported(Event, frozen=True):
    """How the task is doing; told every so often by one in another process."""

    status: TaskStatus


class LogEmitted(Event, frozen=True):
    """A log record of another process; it is a ``logging.LogRecord`` without an exception."""

    record: Any


class Ended(Event, frozen=True):
    """The last event: what the task leaves."""

    report: TaskReport


class HostLost(Event, frozen=True):
    """The host has died without a report; told by the driver's end of it."""

    error: Exception
