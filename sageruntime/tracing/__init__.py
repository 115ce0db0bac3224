"""OpenTelemetry traces of a job's batches."""

from sageruntime.tracing.options import Tracing

__all__ = ["Tracing"]
