"""ConnectionGroup: the connections that share the packets of one task."""

from __future__ import annotations

from sageruntime.communication.router.connection import Connection
from sageruntime.communication.router.packet import Packet
from sageruntime.communication.router.partitioning import Partitioner, Reject, RoundRobin
from sageruntime.errors import PartitionError


class ConnectionGroup:
    """Connections and their partitioner. It has no lock: its router holds one."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._partitioner: Partitioner = RoundRobin()

    @property
    def partitioner(self) -> Partitioner:
        """Which connection gets which packet."""
        return self._partitioner

    @partitioner.setter
    def partitioner(self, partitioner: Partitioner) -> None:
        self._partitioner = partitioner
        self._update_targets()

    def add(self, connection: Connection) -> None:
        """Add a connection: in the place of a closed one of its name, if any, else as the last."""
        for index, old in enumerate(self.connections):
            if old.name == connection.name:
                self.connections[index] = connection
                break
        else:
            self.connections.append(connection)
        self._update_targets()

    def remove(self, connection: Connection) -> None:
        """Remove a connection, which waits for room as long as it takes from now on."""
        self.connections.remove(connection)
        connection.patience = None
        self._update_targets()

    def fail_over(self) -> bool:
        """Leave out closed connections, and return whether others take over from them."""
        self._update_targets()
        return self._partitioner.fails_over and any(c.closed is None for c in self.connections)

    def partition(self, packets: list[Packet], reject: Reject) -> list[Connection]:
        """Divide packets among the connections and return those with something to deliver.

        Raises:
            PartitionError: the partitioner breaks its contract.
        """
        connections = self.connections
        parts = self._partitioner.split(packets, connections, reject)
        if len(parts) != len(connections):
            raise PartitionError(
                f"{self._partitioner!r} split packets in {len(parts)} parts; expected one for each "
                f"of {len(connections)} targets"
            )
        pending = []
        for connection, part in zip(connections, parts):
            if part and connection.gather(part):
                pending.append(connection)
        return pending

    def _update_targets(self) -> None:
        if self._partitioner.fails_over:
            live = [connection for connection in self.connections if connection.closed is None]
            self.connections = live or self.connections
        alone = len(self.connections) == 1
        for connection in self.connections:
            connection.patience = None if alone else getattr(self._partitioner, "patience", None)
