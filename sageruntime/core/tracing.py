"""Tracing: asks for traces, and says where their spans go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
