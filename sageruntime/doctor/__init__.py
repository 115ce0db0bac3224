"""Whether this machine has what tasks need, and the remedy for what it has not."""

from sageruntime.doctor.check import Check, Outcome
from sageruntime.doctor.examination import can_share_memory, examine, require

__all__ = ["Check", "Outcome", "can_share_memory", "examine", "require"]
