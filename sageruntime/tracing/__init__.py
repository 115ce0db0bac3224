"""OpenTelemetry traces of a job's batches."""

from sageruntime.core.tracing import Tracing

__all__ = ["Tracing"]
