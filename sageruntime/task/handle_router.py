"""HandleRouter: the router of a handle whose task routes in another process."""

from __future__ import annotations

from collections.abc import Callable

from sageruntime.communication.router import BaseRouter, Connection, Partitioner, StopSignal
from sageruntime.context import TaskContext

Change = Callable[..., bool]
"""Has the host's router make a change, by the name of its method; whether there is a host."""


class HandleRouter(BaseRouter):
    """Changes made here are made in the host, too, in their order and in its own time.

    A host that is yet to come begins with all of them.

    Args:
        runtime_context: the task.
        change: makes a change in the host.
    """

    def __init__(self, runtime_context: TaskContext, change: Change) -> None:
        super().__init__(runtime_context)
        self._change = change
        self._removals: dict[str, tuple[Connection, bool]] = {}

    def add_connection(self, connection: Connection) -> None:
        """See :class:`BaseRouter`.

        Raises:
            TypeError: the connection's queue cannot go to another process.
        """
        super().add_connection(connection)
        try:
            self._change("add_connection", connection)
        except Exception:
            super().remove_connection(connection.name)
            raise

    def set_partitioner(self, group: str, partitioner: Partitioner) -> None:
        """See :class:`BaseRouter`."""
        super().set_partitioner(group, partitioner)
        self._change("set_partitioner", group, partitioner)

    def remove_connection(self, name: str, stop: bool = False) -> Connection:
        """See :class:`BaseRouter`; it does not wait until the last has been sent."""
        connection = super().remove_connection(name)
        with self._lock:
            self._removals[name] = connection, stop
        if not self._change("remove_connection", name, stop):
            self.confirm_removal(name)
            if stop:
                connection.append(StopSignal(self.name, self.attempt))
                self._deliver([connection])
        return connection

    def confirm_removal(self, name: str) -> None:
        """The host has sent all that was gathered for a removed connection."""
        with self._lock:
            self._removals.pop(name, None)

    def unconfirmed_removals(self) -> dict[str, tuple[Connection, bool]]:
        """What a next host has to remove again: by name, the connection and whether to stop it."""
        with self._lock:
            connected = {connection.name for connection in self._all()}
            return {
                name: removal for name, removal in self._removals.items() if name not in connected
            }
