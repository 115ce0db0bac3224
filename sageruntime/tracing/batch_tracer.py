"""BatchTracer: a span for every batch a task reads or processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.trace import SpanKind, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sageruntime.communication.router import BaseRouter, Packet, PacketBatch
from sageruntime.context import TaskContext

_FLUSH_MILLISECONDS = 5000

_propagator = TraceContextTextMapPropagator()


class BatchTracer:
    """Makes the spans of one task.

    The span of a batch is a child of the span that sent it. Where results of several batches travel
    on as one, that is the last of them.

    Args:
        ctx: the task's identity.
        router: its router, whose batches carry the context of the span at work.
        provider: makes and exports spans.
    """

    def __init__(self, ctx: TaskContext, router: BaseRouter, provider: TracerProvider) -> None:
        self._ctx = ctx
        self._router = router
        self._provider = provider
        self._tracer = provider.get_tracer("sageruntime")
        self._attributes = {
            "sageruntime.job": ctx.job,
            "sageruntime.stage": ctx.stage,
            "sageruntime.task": ctx.name,
        }

    @contextmanager
    def reading(self, packets: Sequence[Packet]) -> Iterator[None]:
        """The span of packets that a source has read and now sends: a trace begins."""
        with self._tracer.start_as_current_span(
            f"read {self._ctx.stage}",
            kind=SpanKind.PRODUCER,
            attributes={**self._attributes, "sageruntime.packets": len(packets)},
            start_time=packets[0].timestamp,
        ):
            self._propagate()
            yield

    @contextmanager
    def processing(self, batch: PacketBatch) -> Iterator[None]:
        """The span of a batch that is being processed."""
        with self._tracer.start_as_current_span(
            f"process {self._ctx.stage}",
            context=_propagator.extract({"traceparent": batch.traceparent or ""}),
            kind=SpanKind.CONSUMER,
            attributes={
                **self._attributes,
                "sageruntime.packets": len(batch.packets),
                "sageruntime.queue_wait": (time.time_ns() - batch.sent_at) / 1e9,
            },
        ):
            self._propagate()
            yield

    def close(self) -> None:
        """Export what has not been exported; what cannot be in a few seconds is left."""
        flush = getattr(self._provider, "force_flush", None)  # only the SDK's providers have it
        if flush is not None:
            flush(_FLUSH_MILLISECONDS)

    def _propagate(self) -> None:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        self._router.traceparent = carrier.get("traceparent")
