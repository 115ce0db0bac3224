"""Packets, and the connections and router that send them."""

from sageruntime.communication.router.base_router import BaseRouter
from sageruntime.communication.router.connection import Connection
from sageruntime.communication.router.packet import (
    Barrier,
    Message,
    Packet,
    PacketBatch,
    StopSignal,
)
from sageruntime.communication.router.partitioning import (
    Broadcast,
    KeyHash,
    LeastLoaded,
    Partitioner,
    PartitionFunction,
    RoundRobin,
)

__all__ = [
    "Barrier",
    "BaseRouter",
    "Broadcast",
    "Connection",
    "KeyHash",
    "LeastLoaded",
    "Message",
    "Packet",
    "PacketBatch",
    "PartitionFunction",
    "Partitioner",
    "RoundRobin",
    "StopSignal",
]
