"""Packets, connections, and the router that sends the ones along the others."""

from sageruntime.communication.router.base_router import BaseRouter
from sageruntime.communication.router.connection import Connection
from sageruntime.communication.router.packet import Message, Packet, PacketBatch, StopSignal
from sageruntime.communication.router.partitioning import KeyHash, Partitioner, RoundRobin

__all__ = [
    "BaseRouter",
    "Connection",
    "KeyHash",
    "Message",
    "Packet",
    "PacketBatch",
    "Partitioner",
    "RoundRobin",
    "StopSignal",
]
