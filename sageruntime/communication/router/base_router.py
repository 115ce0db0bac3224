"""BaseRouter: sends a task's results to the tasks downstream."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from sageruntime.communication.router.connection import Connection
from sageruntime.communication.router.packet import Barrier, Packet, StopSignal
from sageruntime.communication.router.partitioning import Partitioner, Reject, RoundRobin
from sageruntime.context import TaskContext
from sageruntime.errors import DownstreamClosed, InvalidOption


@dataclass
class _Group:
    partitioner: Partitioner
    connections: list[Connection] = field(default_factory=list)


def _refuse(packet: Packet, error: Exception) -> None:
    raise error


class BaseRouter:
    """Groups of connections: every group gets every packet, one task of the group each.

    Any thread may call it. It waits while a queue downstream is full: that is the backpressure.

    Args:
        runtime_context: the task whose results it sends.
    """

    def __init__(self, runtime_context: TaskContext) -> None:
        self.ctx = runtime_context
        self.name = runtime_context.name
        self.attempt = 0
        """Which attempt of the task sends; see :meth:`begin`."""
        self.on_reject: Reject = _refuse
        """Gets each packet that cannot be sent, and why; the task sets it to its error policy."""
        self.routed = 0
        """Packets taken by :meth:`route_batch` so far."""
        self.seconds = 0.0
        """Time spent in :meth:`route_batch` and :meth:`flush` so far, waiting for room included."""
        self.traceparent: str | None = None
        """The W3C trace context that batches carry, while traces are made."""
        self._groups: dict[str, _Group] = {}
        self._cancelled = False
        self._lock = threading.RLock()

    @property
    def connections(self) -> list[Connection]:
        """Every connection, group by group."""
        with self._lock:
            return [c for group in self._groups.values() for c in group.connections]

    @property
    def partitioners(self) -> dict[str, Partitioner]:
        """How each group deals out its packets."""
        with self._lock:
            return {name: group.partitioner for name, group in self._groups.items()}

    def add_connection(self, connection: Connection) -> None:
        """Send to one more task, which shares the packets with the others of its group.

        Raises:
            InvalidOption: there is a connection of that name already.
        """
        with self._lock:
            if any(c.name == connection.name for c in self.connections):
                raise InvalidOption(
                    f"{self.ctx.name} has a connection to {connection.name!r} already; "
                    "remove it first or give the new one another name"
                )
            group = self._groups.setdefault(connection.group, _Group(RoundRobin()))
            group.connections.append(connection)

    def set_partitioner(self, group: str, partitioner: Partitioner) -> None:
        """Say how a group deals out its packets; round robin is what it does by default.

        Raises:
            InvalidOption: no connection has that group.
        """
        with self._lock:
            if group not in self._groups:
                raise InvalidOption(
                    f"{self.ctx.name} has no group {group!r}; it has: {', '.join(self._groups)}"
                )
            self._groups[group].partitioner = partitioner

    def remove_connection(self, name: str) -> Connection:
        """Send what was gathered for the task ``name``, then nothing more.

        Raises:
            InvalidOption: there is no such connection.
        """
        with self._lock:
            for group_name, group in self._groups.items():
                for connection in group.connections:
                    if connection.name == name:
                        connection.flush(self)
                        group.connections.remove(connection)
                        if not group.connections:
                            del self._groups[group_name]
                        return connection
            known = ", ".join(c.name for c in self.connections) or "none"
        raise InvalidOption(f"{self.ctx.name} has no connection to {name!r}; it has: {known}")

    def route(self, packet: Packet) -> None:
        """Send one packet; see :meth:`route_batch`."""
        self.route_batch([packet])

    def route_batch(self, packets: list[Packet]) -> None:
        """Send packets, which belong to the router from now on.

        Batches that are not full stay here until :meth:`flush`.

        Raises:
            DownstreamClosed: a task downstream has ended.
            TaskCancelled: :meth:`cancel` was called.
        """
        begun = time.perf_counter()
        with self._lock:
            self.routed += len(packets)
            groups = list(self._groups.values())
            for group in groups[1:]:
                self._deal(group, [packet.copy() for packet in packets])
            if groups:
                self._deal(groups[0], packets)
            self.seconds += time.perf_counter() - begun

    def flush(self) -> None:
        """Send every batch as it is; raises what :meth:`route_batch` raises."""
        begun = time.perf_counter()
        with self._lock:
            for connection in self.connections:
                connection.flush(self)
            self.seconds += time.perf_counter() - begun

    def stop(self) -> None:
        """Flush, then tell every task downstream that nothing more comes from here."""
        with self._lock:
            for connection in self.connections:
                try:
                    connection.signal(StopSignal(self.name, self.attempt), self)
                except DownstreamClosed:
                    continue  # it has ended before us and waits for no signal

    def pass_barrier(self, checkpoint: int) -> None:
        """Flush, then put a barrier behind all packets; raises what :meth:`route_batch` raises."""
        with self._lock:
            for connection in self.connections:
                connection.signal(Barrier(checkpoint, self.name, self.attempt), self)

    def begin(self, attempt: int) -> None:
        """Send anew, as this attempt: what was gathered is forgotten, and a cancellation over."""
        with self._lock:
            self.attempt = attempt
            self._cancelled = False
            for connection in self.connections:
                connection.discard()

    def cancel(self) -> None:
        """Make a call that waits for room give up with ``TaskCancelled``."""
        self._cancelled = True

    def is_cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled

    def _deal(self, group: _Group, packets: list[Packet]) -> None:
        connections = group.connections
        parts = group.partitioner.split(packets, len(connections), self.on_reject)
        for connection, part in zip(connections, parts):
            if part:
                connection.send(part, self)
