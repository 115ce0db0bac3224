"""How tasks talk: packets, connections, partitioning and routing."""

from sageruntime.communication.router import (
    BaseRouter,
    Broadcast,
    Connection,
    KeyHash,
    LeastLoaded,
    Packet,
    PacketBatch,
    Partitioner,
    PartitionFunction,
    RoundRobin,
    StopSignal,
)
from sageruntime.core.stable_hash import stable_hash

__all__ = [
    "BaseRouter",
    "Broadcast",
    "Connection",
    "KeyHash",
    "LeastLoaded",
    "Packet",
    "PacketBatch",
    "PartitionFunction",
    "Partitioner",
    "RoundRobin",
    "StopSignal",
    "stable_hash",
]
