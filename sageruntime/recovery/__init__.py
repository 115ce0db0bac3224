"""Coming back after failures: policies, checkpoints and the stores that keep them."""

from sageruntime.core.policies import RestartPolicy, RetryPolicy
from sageruntime.recovery.checkpoint import Checkpoint, CheckpointOptions, CheckpointStore

__all__ = [
    "Checkpoint",
    "CheckpointOptions",
    "CheckpointStore",
    "RestartPolicy",
    "RetryPolicy",
]
