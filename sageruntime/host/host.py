"""Host: the protocol between a task's handle and what runs its runner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sageruntime.metrics import MetricsSnapshot
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskStatus

Receive = Callable[["Host", told.Event], None]
"""Takes an event of a host, in the driver's loop."""


class Host(Protocol):
    """Runs a task's runner somewhere.

    ``start`` may wait and is called in any thread. All else is called in the driver's loop and does
    not wait.
    """

    def start(self) -> None:
        """Bring the task to its place and run it.

        Raises:
            TaskStartError: that is not possible.
        """

    def send(self, command: do.Command) -> None:
        """Send a command, after those before it. A host that has died takes no more."""

    def kill(self) -> None:
        """End the host at once, if it can be; ``HostLost`` follows."""

    def close(self) -> None:
        """Give back what the driver holds of the host; nothing is received after this."""

    def wait(self) -> None:
        """Wait until the host is gone, killing one that stays; not for the loop's thread."""

    def get_status(self) -> TaskStatus | None:
        """What the task counts, as far as it is known here."""

    def measure(self) -> MetricsSnapshot | None:
        """What was measured of the task last."""
