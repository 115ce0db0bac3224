"""Recovery from failures: policies, checkpoints and checkpoint stores."""

from sageruntime.core.policies import RestartPolicy, RetryPolicy
from sageruntime.recovery.checkpoint import Checkpoint, CheckpointOptions, CheckpointStore

__all__ = [
    "Checkpoint",
    "CheckpointOptions",
    "CheckpointStore",
    "RestartPolicy",
    "RetryPolicy",
]
