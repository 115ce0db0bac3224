"""Coming back after failures: policies, checkpoints and the stores that keep them."""

from sageruntime.recovery.checkpoint import Checkpoint, CheckpointOptions, CheckpointStore
from sageruntime.core.policies import RestartPolicy, RetryPolicy

__all__ = [
    "Checkpoint",
    "CheckpointOptions",
    "CheckpointStore",
    "RestartPolicy",
    "RetryPolicy",
]
