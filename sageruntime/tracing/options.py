"""Tracing: asks for traces, and says where their spans go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sageruntime.errors import MonitoringError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from sageruntime.communication.router import BaseRouter
    from sageruntime.context import TaskContext
    from sageruntime.tracing.batch_tracer import BatchTracer

Setup = Callable[[], Any]
"""Makes the provider of a process; None leaves it with OpenTelemetry's global one."""


@dataclass(frozen=True)
class Tracing:
    """Spans for every batch of a job; needs the extra ``otel``.

    Args:
        setup: called once in every process that hosts tasks: a function, or its import path
            ``"module:function"``. It returns the process's ``TracerProvider``, or sets
            OpenTelemetry's global one and returns None. By default the global one is used, which
            in a new process records nothing.
    """

    setup: Setup | str | None = None

    def tracer_for(self, ctx: TaskContext, router: BaseRouter) -> BatchTracer:
        """What makes the spans of a task that runs in this process.

        Raises:
            MonitoringError: OpenTelemetry is not installed, or ``setup`` leads nowhere.
        """
        try:
            from opentelemetry.trace import get_tracer_provider

            from sageruntime.tracing.batch_tracer import BatchTracer
        except ImportError as error:
            raise MonitoringError(
                "traces need OpenTelemetry: pip install 'sagequeue[otel]'"
            ) from error
        provider = _set_up(self.setup) if self.setup is not None else None
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
