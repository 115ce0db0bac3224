"""make_tracer: what makes the spans of a task, in the process where it runs."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from sageruntime.communication.router import BaseRouter
from sageruntime.context import TaskContext
from sageruntime.core.tracing import Setup
from sageruntime.errors import MonitoringError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from sageruntime.tracing.batch_tracer import BatchTracer


def make_tracer(ctx: TaskContext, router: BaseRouter) -> BatchTracer | None:
    """The tracer of a task that runs in this process; None where no traces are wanted.

    Raises:
        MonitoringError: OpenTelemetry is not installed, or ``setup`` leads nowhere.
    """
    if ctx.tracing is None:
        return None
    try:
        from opentelemetry.trace import get_tracer_provider

        from sageruntime.tracing.batch_tracer import BatchTracer
    except ImportError as error:
        raise MonitoringError("traces need OpenTelemetry: pip install 'sagequeue[otel]'") from error
    setup = ctx.tracing.setup
    provider = _set_up(setup) if setup is not None else None
    return BatchTracer(ctx, router, provider or get_tracer_provider())


@cache
def _set_up(setup: Setup | str) -> TracerProvider | None:
    provider: TracerProvider | None = (_import(setup) if isinstance(setup, str) else setup)()
    return provider


def _import(path: str) -> Setup:
    try:
        setup: Setup = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise MonitoringError(
            f"the setup of traces, {path!r}, cannot be imported: {error}; expected module:function"
        ) from error
    return setup
