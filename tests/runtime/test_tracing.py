"""Traces: spans of batches, and the way from the source to the sink in one trace."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sageruntime import Packet, Pipeline, SinkOperator, TaskOptions
from sageruntime.errors import JobFailed, MonitoringError
from sageruntime.tracing import Tracing

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Recorder:
    """Keeps the spans of this process."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def tracing(self) -> Tracing:
        return Tracing(lambda: self.provider)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def attribute(span: ReadableSpan, name: str) -> Any:
    assert span.attributes is not None
    return span.attributes[f"sageruntime.{name}"]


def ids(spans: list[ReadableSpan]) -> set[int]:
    return {span.context.span_id for span in spans if span.context}


def parents(spans: list[ReadableSpan]) -> set[int]:
    return {span.parent.span_id for span in spans if span.parent}


def test_a_span_for_every_batch() -> None:
    recorder = Recorder()
    pipeline = Pipeline("traced", options=TaskOptions(batch_size=10)).source(range(95), name="in")
    pipeline.map(lambda n: n, name="double").sink(name="out").run(tracing=recorder.tracing)
    read, double, out = map(recorder.spans, ("read in", "process double", "process out"))
    for spans in (read, double, out):
        assert sum(attribute(span, "packets") for span in spans) == 95
        assert {attribute(span, "job") for span in spans} == {"traced"}
    assert len(double) >= 10
    assert {attribute(span, "stage") for span in double} == {"double"}
    assert all(attribute(span, "task").endswith("-double-0") for span in double)
    assert all(0 <= attribute(span, "queue_wait") < 60 for span in double + out)
    assert [{span.kind for span in spans} for spans in (read, out)] == [
        {SpanKind.PRODUCER},
        {SpanKind.CONSUMER},
    ]
    assert parents(read) == set()
    assert parents(double) <= ids(read)
    assert parents(out) <= ids(double)
    assert all(span.parent for span in double + out)
    begun = {span.context.trace_id for span in read if span.context}
    assert {span.context.trace_id for span in out if span.context} <= begun


def test_spans_of_an_operator_lie_within_its_batch() -> None:
    recorder = Recorder()
    tracer = recorder.provider.get_tracer("test")

    def work(n: int) -> int:
        with tracer.start_as_current_span("inside"):
            return n

    pipeline = Pipeline("inside").source(range(10)).map(work, name="work").sink()
    pipeline.run(tracing=recorder.tracing)
    inside = recorder.spans("inside")
    assert len(inside) == 10
    assert parents(inside) == ids(recorder.spans("process work"))


def test_the_span_of_a_batch_that_fails() -> None:
    recorder = Recorder()

    def work(n: int) -> int:
        raise LookupError("no such thing")

    with pytest.raises(JobFailed):
        pipeline = Pipeline("failing").source(range(10)).map(work, name="work").sink()
        pipeline.run(tracing=recorder.tracing)
    (span,) = recorder.spans("process work")
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def to_files(folder: Path) -> TracerProvider:
    """The spans of each process as lines of JSON in a file of its own."""
    file = (folder / f"{os.getpid()}.jsonl").open("a")
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(
        out=file, formatter=lambda span: span.to_json(indent=None) + "\n"
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.mark.parametrize("host", ["process", "ray"])
def test_a_trace_goes_on_in_other_processes(host: Any, ray_cluster: None, tmp_path: Path) -> None:
    pipeline = Pipeline("far").source(range(200), name="in").map(lambda n: n, name="far", on=host)
    pipeline.sink(name="out").run(tracing=Tracing(partial(to_files, tmp_path)))
    files = {file.stem: file.read_text() for file in tmp_path.iterdir()}
    assert len(files) == 2
    here = files.pop(str(os.getpid()))
    (there,) = files.values()
    spans = {
        name: [span for line in text.splitlines() if (span := json.loads(line))["name"] == name]
        for name, text in (("read in", here), ("process far", there), ("process out", here))
    }
    for found in spans.values():
        assert sum(span["attributes"]["sageruntime.packets"] for span in found) == 200
    ids = {name: {span["context"]["span_id"] for span in found} for name, found in spans.items()}
    assert {span["parent_id"] for span in spans["process far"]} <= ids["read in"]
    assert {span["parent_id"] for span in spans["process out"]} <= ids["process far"]


def test_a_setup_by_its_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "spans_of_the_test.py").write_text(
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "exporter = InMemorySpanExporter()\n"
        "calls = []\n"
        "def set_up():\n"
        "    calls.append(1)\n"
        "    provider = TracerProvider()\n"
        "    provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
        "    return provider\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        pipeline = Pipeline("path").source(range(10)).sink(name="out")
        pipeline.run(tracing=Tracing("spans_of_the_test:set_up"))
    import spans_of_the_test  # type: ignore[import-not-found]

    assert spans_of_the_test.calls == [1]  # once in a process
    names = [span.name for span in spans_of_the_test.exporter.get_finished_spans()]
    assert names.count("process out") == 2


@pytest.mark.parametrize("path", ["no_such_module:set_up", "json:no_such_function"])
def test_a_setup_that_is_not_there(path: str) -> None:
    with pytest.raises(MonitoringError, match="expected module:function"):
        Pipeline("nowhere").source(range(10)).sink().run(tracing=Tracing(path))


def test_without_a_setup_it_is_the_global_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorder.provider)
    Pipeline("global").source(range(10)).sink(name="out").run(tracing=Tracing())
    assert recorder.spans("process out")


class TraceparentSink(SinkOperator):
    def process(self, packet: Packet) -> None:
        assert self.router.traceparent is None
        assert not trace.get_current_span().get_span_context().is_valid


def test_nothing_is_traced_unless_asked_for() -> None:
    result = Pipeline("untraced").source(range(100)).map(str).sink(TraceparentSink).run("process")
    assert result.stages[-1].packets == 100
