"""Checks of the machine: what tasks need, and how to provide what is missing."""

from sageruntime.doctor.check import Check, Outcome
from sageruntime.doctor.examination import can_share_memory, examine, require

__all__ = ["Check", "Outcome", "can_share_memory", "examine", "require"]
