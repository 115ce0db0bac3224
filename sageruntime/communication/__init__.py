"""How tasks talk: packets, connections, partitioning and routing."""

from sageruntime.communication.router import (
    BaseRouter,
    Connection,
    KeyHash,
    Packet,
    PacketBatch,
    Partitioner,
    RoundRobin,
    StopSignal,
)
from sageruntime.communication.stable_hash import stable_hash

__all__ = [
    "BaseRouter",
    "Connection",
    "KeyHash",
    "Packet",
    "PacketBatch",
    "Partitioner",
    "RoundRobin",
    "StopSignal",
    "stable_hash",
]
