"""BaseRouter: sends a task's results to the tasks downstream."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sageruntime.communication.router.connection import Connection, Rejected
from sageruntime.communication.router.connection_group import ConnectionGroup
from sageruntime.communication.router.packet import Barrier, Packet, StopSignal
from sageruntime.communication.router.partitioning import Partitioner, Reject
from sageruntime.context import TaskContext
from sageruntime.errors import DownstreamClosed, InvalidOption

if TYPE_CHECKING:
    from sageruntime.core.policies import RetryPolicy


def _refuse(packet: Packet, error: Exception) -> None:
    raise error


class BaseRouter:
    """Groups of connections: each packet goes to one task of every group.

    Any thread may call any method. It waits while a queue downstream is full: that is the
    backpressure. What a task that has ended did not take goes to its siblings where the group's
    partitioner allows it, else to :attr:`on_reject`.

    Args:
        runtime_context: the task whose results it sends.
    """

    def __init__(self, runtime_context: TaskContext) -> None:
        self.ctx = runtime_context
        self.name = runtime_context.name
        self.attempt = 0
        """Which attempt of the task sends; see :meth:`begin`."""
        self.retry: RetryPolicy | None = None
        """How often a queue that cannot be reached is tried before its task counts as ended; None
        for once. One that was shut down is not tried again."""
        self.on_reject: Reject = _refuse
        """Gets each packet that cannot be sent, and why; the task sets it to its error policy."""
        self.routed = 0
        """Packets taken by :meth:`route_batch` so far."""
        self.seconds = 0.0
        """Time spent in :meth:`route_batch` and :meth:`flush` so far, waiting for room included."""
        self.traceparent: str | None = None
        """The W3C trace context that batches carry, while traces are made."""
        self.failed_over = 0
        """Packets that siblings got because the task they were for had ended."""
        self.cancelled = threading.Event()
        """Set by :meth:`cancel`."""
        self._groups: dict[str, ConnectionGroup] = {}
        self._lost: dict[str, DownstreamClosed] = {}
        # Removed ones whose last packets are being delivered.
        self._leaving: list[Connection] = []
        # Held to partition packets, never to wait for room, so that connections can be added and
        # removed under backpressure.
        self._lock = threading.Lock()

    @property
    def connections(self) -> list[Connection]:
        """Every connection, group by group."""
        with self._lock:
            return self._all()

    @property
    def lost(self) -> dict[str, str]:
        """The tasks that have ended while they were connected, and why nothing reaches them."""
        with self._lock:
            return {name: str(error) for name, error in self._lost.items()}

    @property
    def partitioners(self) -> dict[str, Partitioner]:
        """How each group divides its packets."""
        with self._lock:
            return {name: group.partitioner for name, group in self._groups.items()}

    def add_connection(self, connection: Connection) -> None:
        """Send to one more task, which shares the packets with the others of its group.

        One of the name of a task that has ended takes its place.

        Raises:
            InvalidOption: there is a connection of that name already.
        """
        with self._lock:
            old = next((c for c in self._all() if c.name == connection.name), None)
            if old is not None and (old.closed is None or old.group != connection.group):
                raise InvalidOption(
                    f"{self.name} has a connection to {connection.name!r} already; "
                    "remove it first or give the new one another name"
                )
            self._lost.pop(connection.name, None)
            self._groups.setdefault(connection.group, ConnectionGroup()).add(connection)

    def set_partitioner(self, group: str, partitioner: Partitioner) -> None:
        """Set how a group divides its packets. The default is round robin.

        Raises:
            InvalidOption: no connection has that group.
        """
        with self._lock:
            if group not in self._groups:
                raise InvalidOption(
                    f"{self.name} has no group {group!r}; it has: {', '.join(self._groups)}"
                )
            self._groups[group].partitioner = partitioner

    def remove_connection(self, name: str, stop: bool = False) -> Connection:
        """Send what was gathered for the task ``name``, then nothing more.

        Args:
            name: the downstream task.
            stop: tell it that nothing more comes from here, as :meth:`stop` does. A task that is
                not told waits for this one's end before it ends itself.

        Raises:
            InvalidOption: there is no such connection.
            TaskCancelled: :meth:`cancel` was called while it waited for room.
        """
        with self._lock:
            connection = self._detach(name)
            connection.seal_batch()
            if stop:
                connection.append(StopSignal(self.name, self.attempt))
            self._leaving.append(connection)
        try:
            self._deliver([connection])
        finally:
            with self._lock:
                self._leaving.remove(connection)
        return connection

    def route(self, packet: Packet) -> None:
        """Send one packet; see :meth:`route_batch`."""
        self.route_batch([packet])

    def route_batch(self, packets: list[Packet]) -> None:
        """Send packets, which belong to the router from now on.

        Batches that are not full stay here until :meth:`flush`.

        Raises:
            TaskCancelled: :meth:`cancel` was called while it waited for room.
            Exception: what :attr:`on_reject` raises for a packet that cannot be sent.
        """
        if not packets:
            return
        begun = time.perf_counter()
        rejected: list[Rejected] = []

        def reject(packet: Packet, error: Exception) -> None:
            rejected.append((packet, error))

        with self._lock:
            self.routed += len(packets)
            groups = list(self._groups.values())
            pending: list[Connection] = []
            for group in groups[1:]:
                pending += group.partition([packet.copy() for packet in packets], reject)
            if groups:
                pending += groups[0].partition(packets, reject)
        if rejected:
            self._reject(rejected)
        self._deliver(pending)
        spent = time.perf_counter() - begun
        self.seconds += spent  # after the call, which may switch threads

    def flush(self) -> None:
        """Send every batch as it is; raises what :meth:`route_batch` raises."""
        begun = time.perf_counter()
        repartitioned = True
        while repartitioned:
            with self._lock:
                # also what another thread is about to deliver: all of it is delivered after this
                pending = [c for c in [*self._all(), *self._leaving] if c.seal_batch()]
            repartitioned = self._deliver(pending)
        spent = time.perf_counter() - begun
        self.seconds += spent  # after the call, which may switch threads

    def stop(self) -> None:
        """Flush, then tell every task downstream that nothing more comes from here."""
        self._signal(StopSignal(self.name, self.attempt))

    def pass_barrier(self, checkpoint: int) -> None:
        """Flush, then put a barrier behind all packets; raises what :meth:`route_batch` raises."""
        self._signal(Barrier(checkpoint, self.name, self.attempt))

    def begin(self, attempt: int) -> None:
        """Begin an attempt: undelivered packets are dropped and a cancellation is undone."""
        with self._lock:
            self.attempt = attempt
            self.cancelled.clear()
            for connection in self._all():
                connection.withdraw()

    def cancel(self) -> None:
        """Make a call that waits for room give up with ``TaskCancelled``."""
        self.cancelled.set()

    def _all(self) -> list[Connection]:
        return [c for group in self._groups.values() for c in group.connections]

    def _detach(self, name: str) -> Connection:
        for group_name, group in self._groups.items():
            for connection in group.connections:
                if connection.name == name:
                    group.remove(connection)
                    if not group.connections:
                        del self._groups[group_name]
                    return connection
        known = ", ".join(connection.name for connection in self._all()) or "none"
        raise InvalidOption(f"{self.name} has no connection to {name!r}; it has: {known}")

    def _signal(self, message: StopSignal | Barrier) -> None:
        self.flush()
        with self._lock:
            connections = self._all()
            # under one lock: no packet may come before it on one connection, after it on another
            for connection in connections:
                connection.append(message)
        if self._deliver(connections):
            self.flush()

    def _deliver(self, pending: list[Connection]) -> bool:
        """Deliver what is pending, and return whether packets were given to other connections."""
        repartitioned = False
        for connection in pending:  # the list may grow on the way
            if rejected := connection.deliver(self):
                self._reject(rejected)
            if connection.closed is not None:
                others = self._fail_over(connection, connection.closed)
            elif connection.stalled:
                others = self._repartition(connection)
            else:
                continue
            repartitioned = True
            pending += others
        return repartitioned

    def _fail_over(self, connection: Connection, closed: DownstreamClosed) -> list[Connection]:
        """Give the packets of a task that has ended to its siblings, or reject them.

        Returns:
            The connections that have something to deliver.
        """
        rejected: list[Rejected] = []
        pending: list[Connection] = []
        with self._lock:
            packets = connection.withdraw()
            group = self._groups.get(connection.group)
            known = connection.name in self._lost
            self._lost[connection.name] = closed
            siblings = group is not None and group.fail_over()
            if group is None or not siblings:
                rejected = [(packet, closed) for packet in packets]
            elif packets:
                self.failed_over += len(packets)
                pending = group.partition(packets, lambda *reason: rejected.append(reason))
        if siblings and not known:
            self.ctx.logger.warning("%s: %s; its siblings take over", self.name, closed)
        self._reject(rejected)
        return pending

    def _repartition(self, connection: Connection) -> list[Connection]:
        """Partition again what a task has no room for, unless the partitioner waits for room.

        Returns:
            The connections that have something to deliver.
        """
        rejected: list[Rejected] = []
        with self._lock:
            packets = connection.withdraw_stalled() if connection.patience is not None else []
            if not packets:
                return [connection]
            group = self._groups[connection.group]
            pending = group.partition(packets, lambda *reason: rejected.append(reason))
        self._reject(rejected)
        return pending

    def _reject(self, rejected: list[Rejected]) -> None:
        for packet, error in rejected:
            self.on_reject(packet, error)
