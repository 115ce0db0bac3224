"""Partitioners: how the tasks of one group share their packets."""

from sageruntime.communication.router.partitioning.broadcast import Broadcast
from sageruntime.communication.router.partitioning.key_hash import KeyHash
from sageruntime.communication.router.partitioning.least_loaded import LeastLoaded
from sageruntime.communication.router.partitioning.partition_function import PartitionFunction
from sageruntime.communication.router.partitioning.partitioner import Partitioner, Reject, Target
from sageruntime.communication.router.partitioning.round_robin import RoundRobin

__all__ = [
    "Broadcast",
    "KeyHash",
    "LeastLoaded",
    "PartitionFunction",
    "Partitioner",
    "Reject",
    "RoundRobin",
    "Target",
]
