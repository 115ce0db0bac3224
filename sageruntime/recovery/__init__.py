"""Coming back after failures: policies, checkpoints and the stores that keep them."""

from sageruntime.recovery.policies import RestartPolicy, RetryPolicy

__all__ = ["RestartPolicy", "RetryPolicy"]
