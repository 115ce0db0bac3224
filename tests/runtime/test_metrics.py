"""What is measured: histograms, snapshots, sums, listeners, and what Prometheus scrapes."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sageruntime import TaskContext
from sageruntime.errors import MonitoringError
from sageruntime.metrics import (
    JobMetrics,
    LatencyHistogram,
    LatencySummary,
    Meter,
    MetricsSnapshot,
    Monitor,
    ProcessUsage,
    StageMetrics,
    TaskMetrics,
    TimeSpent,
)
from sageruntime.metrics.prometheus import PrometheusExporter

DURATIONS = st.lists(
    st.tuples(st.integers(1000, 3_600_000_000_000), st.integers(1, 200)), min_size=1, max_size=50
)


@given(DURATIONS)
def test_percentiles_are_those_of_an_hdr_histogram(durations: list[tuple[int, int]]) -> None:
    ours, theirs = LatencyHistogram(), HdrHistogram(1, 3_600_000_000, 2)
    for nanoseconds, count in durations:
        ours.record(nanoseconds, count)
        theirs.record_value(nanoseconds // 1000, count)
    for percent in (1, 50, 90, 99, 99.9, 100):
        assert ours.percentile(percent) == theirs.get_value_at_percentile(percent) / 1e6
    summary = ours.summary()
    assert summary.count == len(ours) == theirs.get_total_count()
    assert summary.mean is not None
    assert summary.mean * summary.count == pytest.approx(
        sum(nanoseconds * count for nanoseconds, count in durations) / 1e9
    )


@given(DURATIONS, DURATIONS)
def test_histograms_add_up(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    parts, whole = (LatencyHistogram(), LatencyHistogram()), LatencyHistogram()
    for part, durations in zip(parts, (one, two)):
        for nanoseconds, count in durations:
            part.record(nanoseconds, count)
            whole.record(nanoseconds, count)
    merged = LatencyHistogram.merged(part.summary() for part in parts).summary()
    parts[0].add(parts[1])
    expected = whole.summary()
    assert parts[0].summary() == expected
    assert merged.buckets == expected.buckets
    assert merged.mean == pytest.approx(expected.mean)
    assert pickle.loads(pickle.dumps(whole)).summary() == expected


def test_a_histogram_without_packets() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentile(99) is None
    assert histogram.summary() == LatencySummary()
    assert histogram.summary().within([1.0]) == [0]


def test_a_clock_that_lags_behind_counts_as_no_time() -> None:
    histogram = LatencyHistogram()
    histogram.record(-5_000_000)
    assert histogram.summary().max == 0.0


def test_packets_within_bounds() -> None:
    histogram = LatencyHistogram()
    for milliseconds in (1, 2, 20, 3000):
        histogram.record(milliseconds * 1_000_000, 10)
    assert histogram.summary().within([0.0015, 0.01, 0.1, 10.0]) == [10, 20, 30, 40]


def test_reading_while_another_thread_records() -> None:
    histogram, done = LatencyHistogram(), threading.Event()

    def record() -> None:
        for number in range(200_000):
            histogram.record(number * 997)
        done.set()

    recorder = threading.Thread(target=record)
    recorder.start()
    while not done.is_set():
        histogram.summary()
    recorder.join()
    assert histogram.summary().count == 200_000


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_meter_measures_rates_cpu_and_memory() -> None:
    metrics = TaskMetrics()
    meter = Meter(TaskContext("t", stage="s"), "thread", metrics, interval=0.05)
    before = meter.measure("created", 0, 0)
    assert (before.seconds, before.packets_per_second, before.cpu_percent) == (0.0, 0.0, 0.0)
    with metrics.running():
        begun = time.monotonic()
        now = time.time_ns()
        metrics.routing = 0.25
        metrics.batch_done(1000, 10, now - 2_000_000, now - 5_000_000)
        spin(0.1)
        snapshot = meter.measure("running", 980, 3)
        seconds = time.monotonic() - begun
        metrics.processed += 100
        assert meter.measure("running", 980, 3).packets_per_second == (
            snapshot.packets_per_second  # the interval is not over
        )
    assert (snapshot.task, snapshot.stage, snapshot.host) == ("t", "s", "thread")
    assert (snapshot.processed, snapshot.emitted, snapshot.queue_depth) == (990, 980, 3)
    assert snapshot.packets_per_second == pytest.approx(990 / seconds, rel=0.05)
    assert snapshot.packets_per_second == pytest.approx(snapshot.mean_packets_per_second, rel=0.05)
    assert snapshot.cpu_seconds >= 0.1
    assert snapshot.cpu_percent == pytest.approx(100 * snapshot.cpu_seconds / seconds, rel=0.05)
    assert snapshot.latency.count == 1000
    assert 0.002 <= (snapshot.latency.p50 or 0) < 0.005 <= (snapshot.end_to_end.p99 or 0)
    assert snapshot.time_spent.routing == 0.25
    assert [thread.processed for thread in snapshot.threads] == [990]
    assert snapshot.process is not None
    assert snapshot.process.cpu_percent >= snapshot.cpu_percent
    assert snapshot.process.rss > 1 << 20
    ended = meter.measure("stopped", 980, 0)
    assert ended.seconds == meter.measure("stopped", 980, 0).seconds


def test_cpu_time_of_a_thread_that_has_ended_is_kept() -> None:
    metrics = TaskMetrics()

    def lane() -> None:
        counts = metrics.add_lane()
        counts.processed += 7
        spin(0.02)
        counts.cpu_seconds()

    for _ in range(2):  # the second goes on where the first, of the same name, has ended
        thread = threading.Thread(target=lane, name="lane")
        thread.start()
        thread.join()
    snapshot = Meter(TaskContext("t"), "thread", metrics, 1.0).measure("stopped", 0, 0)
    usage = next(thread for thread in snapshot.threads if thread.name == "lane")
    assert usage.processed == 14
    assert usage.cpu_seconds >= 0.04


def measured(task: str, stage: str, pid: int, latency: LatencySummary, **figures: Any) -> Any:
    return MetricsSnapshot(
        task=task, stage=stage, host="process", state="running", at=1, seconds=2.0,
        latency=latency, end_to_end=latency,
        process=ProcessUsage("node", pid, 1.5, 50.0, 1 << 20), **figures,
    )  # fmt: skip


def a_job() -> JobMetrics:
    fast, slow = LatencyHistogram(), LatencyHistogram()
    fast.record(1_000_000, 90)
    slow.record(1_000_000_000, 10)
    spent = TimeSpent(1.0, 2.0, 3.0, 4.0)
    work = StageMetrics.of(
        "work",
        "process",
        [
            measured("work-0", "work", 1, fast.summary(), processed=90, errors=1, time_spent=spent),
            measured("work-1", "work", 2, slow.summary(), processed=10, time_spent=spent),
        ],
    )
    sink = StageMetrics.of(
        "sink", "process", [measured("sink-0", "sink", 2, slow.summary(), processed=10)]
    )
    return JobMetrics.of("job", 1, 2.0, [work, sink])


def test_sums_of_stages_and_jobs() -> None:
    job = a_job()
    work = job.stages[0]
    assert (work.processed, work.errors, work.latency.count) == (100, 1, 100)
    assert work.latency.p50 == pytest.approx(0.001, rel=0.01)
    assert work.latency.p99 == pytest.approx(1.0, rel=0.01)
    assert work.time_spent == TimeSpent(2.0, 4.0, 6.0, 8.0)
    assert work.time_spent.total == 20.0
    assert job.processed == 110
    assert job.end_to_end == job.stages[1].end_to_end  # at the sink, and not on the way
    assert [process.pid for process in job.processes] == [1, 2]  # each once
    assert job.rss == 2 << 20


def test_snapshots_are_json_and_pickle() -> None:
    job = a_job()
    assert msgspec.json.decode(msgspec.json.encode(job), type=JobMetrics) == job
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_monitor_tells_its_listeners(caplog: pytest.LogCaptureFixture) -> None:
    numbers: Iterator[int] = iter(range(1_000_000))
    told: list[int] = []
    three = threading.Event()

    def listen(number: int) -> None:
        told.append(number)
        if len(told) == 3:
            three.set()

    def broken(number: int) -> None:
        raise LookupError("no such listener")

    monitor = Monitor("m", lambda: next(numbers), 0.01, logging.getLogger("m"))
    assert next(numbers) == 0  # nobody listens: nothing is measured
    monitor.add_listener(broken)
    monitor.add_listener(listen)
    assert three.wait(30)
    monitor.close()
    monitor.close()
    assert told == list(range(told[0], told[0] + len(told)))
    assert next(numbers) == told[-1] + 1  # nothing is measured any more
    failures = [record for record in caplog.records if "broken" in record.getMessage()]
    assert len(failures) == 1
    assert failures[0].exc_info


def test_a_monitor_that_is_closed_at_once_has_told_once() -> None:
    told: list[str] = []
    monitor = Monitor("m", lambda: "measured", 3600.0, logging.getLogger("m"))
    monitor.add_listener(told.append)
    monitor.close()
    assert told == ["measured"]


def scrape(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of_name = samples.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in of_name
            of_name[labels] = sample.value
    return samples


def of(samples: dict[tuple[tuple[str, str], ...], float], **labels: str) -> float:
    return sum(value for found, value in samples.items() if set(labels.items()) <= set(found))


def test_prometheus_gets_a_job() -> None:
    exporter = PrometheusExporter(a_job, port=0)
    try:
        samples = scrape(exporter.port)
    finally:
        exporter.close()
    processed = samples["sageruntime_packets_processed_total"]
    assert of(processed, job="job", stage="work", task="work-0", host="process") == 90
    assert of(processed, stage="work") == 100
    assert of(samples["sageruntime_errors_total"], stage="work") == 1
    state = samples["sageruntime_task_state"]
    assert of(state, task="work-0", state="running") == 1
    assert of(state, task="work-0") == 1
    buckets = samples["sageruntime_latency_seconds_bucket"]
    assert of(buckets, stage="work", le="0.0025") == 90
    assert of(buckets, stage="work", le="2.5") == 100
    assert of(buckets, stage="work", le="+Inf") == 100
    assert of(samples["sageruntime_latency_seconds_count"], stage="work") == 100
    assert of(samples["sageruntime_latency_seconds_sum"], stage="work") == pytest.approx(10.09)
    assert of(samples["sageruntime_end_to_end_latency_seconds_count"], stage="sink") == 10
    assert of(samples["sageruntime_time_seconds_total"], activity="routing", stage="work") == 8.0
    assert of(samples["sageruntime_process_resident_memory_bytes"]) == 2 << 20
    assert of(samples["sageruntime_process_cpu_seconds_total"], pid="1", node="node") == 1.5
    assert of(samples["sageruntime_task_process"], task="work-1", pid="2") == 1


def test_a_port_that_is_taken() -> None:
    exporter = PrometheusExporter(a_job, port=0)
    try:
        with pytest.raises(MonitoringError, match=f":{exporter.port}: .*; choose another port"):
            PrometheusExporter(a_job, port=exporter.port)
        with pytest.raises(MonitoringError):
            PrometheusExporter(a_job, port=70_000)
    finally:
        exporter.close()
