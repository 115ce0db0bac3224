"""What is measured: histograms, snapshots, sums, listeners, and what Prometheus scrapes."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import cloudpickle
import msgspec
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sageruntime import (
    BaseOperator,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskContext,
    TaskOptions,
)
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
from sageruntime.recovery import RestartPolicy
from sageruntime.task.process_task import ProcessTask

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

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
    before = meter.measure("created", 0, 0, 0.05)
    assert (before.seconds, before.packets_per_second, before.cpu_percent) == (0.0, 0.0, 0.0)
    outside = time.monotonic()
    with metrics.running():
        inside = time.monotonic()
        now = time.time_ns()
        metrics.batch_done(1000, 10, now - 2_000_000, now - 5_000_000)
        spin(0.1)
        least = time.monotonic() - inside
        snapshot = meter.measure("running", 980, 3, 0.05)
        most = time.monotonic() - outside
        metrics.processed += 100
        again = meter.measure("running", 980, 3, 0.05)
        is_over = time.monotonic() - inside - least >= 0.05  # the interval
        assert again.packets_per_second == snapshot.packets_per_second or is_over
    assert (snapshot.task, snapshot.stage, snapshot.host) == ("t", "s", "thread")
    assert (snapshot.processed, snapshot.emitted, snapshot.queue_depth) == (990, 980, 3)
    assert 990 / most <= snapshot.packets_per_second <= 990 / least
    assert 990 / most <= snapshot.mean_packets_per_second <= 990 / least
    assert snapshot.cpu_seconds >= 0.1
    share = 100 * snapshot.cpu_seconds
    assert share / most <= snapshot.cpu_percent <= share / least
    assert snapshot.latency.count == 1000
    assert 0.002 <= (snapshot.latency.p50 or 0) <= (snapshot.end_to_end.p50 or 0) - 0.002
    assert (snapshot.end_to_end.p99 or 0) >= 0.005
    assert snapshot.time_spent.routing == 0.05
    assert [thread.processed for thread in snapshot.threads] == [990]
    assert snapshot.process is not None
    assert snapshot.process.cpu_percent >= snapshot.cpu_percent
    assert snapshot.process.rss > 1 << 20
    ended = meter.measure("stopped", 980, 0, 0.05)
    assert ended.seconds == meter.measure("stopped", 980, 0, 0.05).seconds


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
    snapshot = Meter(TaskContext("t"), "thread", metrics, 1.0).measure("stopped", 0, 0, 0.0)
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


@pytest.fixture(params=["thread", "process", "ray"])
def on(request: pytest.FixtureRequest) -> Any:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


class Picky(BaseOperator):
    def process(self, packet: Packet) -> Packet:
        if packet.payload % 10 == 3:
            raise ValueError("a three")
        return packet


def test_a_job_is_measured(on: Any) -> None:
    options = TaskOptions(monitoring_interval=0.05, batch_size=10)
    pipeline = Pipeline("measured", options=options).source(range(1000), name="read")
    pipeline.map(Picky, name="pick", parallelism=2, worker_threads=2, error_policy="skip")
    metrics = pipeline.sink(name="write").run(on).metrics
    read, pick, write = metrics.stages
    assert [read.processed, read.emitted] == [1000, 1000]
    assert [pick.processed, pick.emitted, pick.errors] == [900, 900, 100]
    assert [write.processed, write.emitted, write.errors] == [900, 0, 0]
    assert read.latency.count == read.end_to_end.count == 0
    assert [pick.latency.count, write.latency.count] == [1000, 900]
    assert metrics.end_to_end == write.end_to_end
    assert (write.end_to_end.p50 or 0) >= (write.latency.p50 or 0) > 0
    assert metrics.processed == 2800
    for task in (task for stage in metrics.stages for task in stage.tasks):
        assert task.host == on
        assert task.state == "stopped"
        assert task.queue_depth == 0
        assert task.mean_packets_per_second == pytest.approx(task.processed / task.seconds)
        assert task.cpu_seconds > 0
        assert task.time_spent.total == pytest.approx(task.seconds)
        assert sum(thread.processed for thread in task.threads) == task.processed
        assert sum(thread.cpu_seconds for thread in task.threads) == pytest.approx(task.cpu_seconds)
    assert [len(task.threads) for task in pick.tasks] == [3, 3]
    pids = {process.pid for process in metrics.processes}
    if on == "thread":
        assert pids == {os.getpid()}
    else:
        assert len(pids) == 4
        assert os.getpid() not in pids
    assert metrics.rss > len(pids) << 20


class Retried(BaseOperator):
    """Fails on each packet until it has been tried often enough."""

    tries = 0

    def process(self, packet: Packet) -> Packet:
        self.tries += 1
        if self.tries % 3:
            raise ValueError("not yet")
        return packet


def test_retries_are_counted_in_every_host(on: Any) -> None:
    pipeline = Pipeline("retried").source(range(5))
    pipeline.map(Retried, name="try", error_policy="retry")
    attempts = pipeline.sink().run(on).metrics.stages[1]
    assert (attempts.retries, attempts.processed) == (10, 5)


class Hanging(BaseOperator):
    def process(self, packet: Packet) -> Packet:
        if packet.payload == 3:
            time.sleep(600)
        return packet


@pytest.mark.parametrize("host", ["process", "ray"])
def test_packets_that_take_too_long_are_counted(host: Any, ray_cluster: None) -> None:
    options = TaskOptions(processing_timeout=0.3, batch_size=1)
    pipeline = Pipeline("hanging", options=options).source(range(6))
    pipeline.map(Hanging, name="hang", error_policy="skip", on=host)
    hang = pipeline.sink().run().metrics.stages[1]
    assert (hang.timeouts, hang.errors) == (1, 1)
    assert hang.processed >= 5  # some may have been done twice


def test_latency_from_the_source_is_that_of_the_whole_way() -> None:
    def slow(n: int) -> int:
        time.sleep(0.05)
        return n

    options = TaskOptions(batch_size=1)
    pipeline = Pipeline("way", options=options).source(range(4)).map(slow, name="slow").sink()
    _, slow_stage, sink = pipeline.run().metrics.stages
    # each packet waits for those before it
    assert (sink.end_to_end.max or 0) >= 0.2
    assert (sink.end_to_end.max or 0) > (sink.latency.max or 0)
    assert (sink.end_to_end.max or 0) >= 0.99 * (slow_stage.end_to_end.max or 0)
    assert (slow_stage.latency.p50 or 0) >= 0.05


def test_listeners_of_a_job(on: Any) -> None:
    told: queue.SimpleQueue[JobMetrics] = queue.SimpleQueue()
    more = threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(1000)
        more.wait(60)

    options = TaskOptions(monitoring_interval=0.05)
    pipeline = Pipeline("told", options=options).source(numbers if on == "thread" else range(1000))
    with pipeline.map(lambda n: n).sink().start(on) as job:
        job.add_metrics_listener(told.put)
        seen = [told.get(timeout=60)]
        if on == "thread":
            while seen[-1].stages[-1].processed < 1000:
                seen.append(told.get(timeout=60))
        more.set()
        result = job.result()
    while not told.empty():
        seen.append(told.get())
    assert seen[-1].processed == result.metrics.processed == 3000
    assert [one.at for one in seen] == sorted(one.at for one in seen)


class Echo(BaseOperator):
    def process(self, packet: Packet) -> None:
        return None


@pytest.mark.parametrize("kind", [LocalTask, ProcessTask])
def test_listeners_of_a_task(kind: Any) -> None:
    told: queue.SimpleQueue[MetricsSnapshot] = queue.SimpleQueue()
    task = kind(TaskContext(f"told-{os.getpid()}"), OperatorFactory(Echo), monitoring_interval=0.02)
    task.add_metrics_listener(told.put)
    task.start_running()
    for number in range(100):
        task.put_packet(Packet(number))
    snapshot = told.get(timeout=60)
    while snapshot.processed < 100:
        snapshot = told.get(timeout=60)
    assert (snapshot.task, snapshot.host) == (task.name, task.host)
    assert snapshot.latency.count == 100
    task.stop()
    task.cleanup()
    while not told.empty():
        snapshot = told.get()
    assert snapshot.state == "stopped"


def test_what_a_host_that_was_killed_had_counted_is_kept() -> None:
    told: queue.SimpleQueue[MetricsSnapshot] = queue.SimpleQueue()
    task = ProcessTask(
        TaskContext(f"killed-{os.getpid()}"), OperatorFactory(Echo),
        monitoring_interval=0.02, restart=RestartPolicy(max_restarts=1),
    )  # fmt: skip
    task.add_metrics_listener(told.put)
    task.start_running()
    try:
        for number in range(100):
            task.put_packet(Packet(number))
        while told.get(timeout=60).processed < 100:
            pass
        task.kill_host()
        while told.get(timeout=60).restarts < 1:
            pass
        for number in range(50):
            task.put_packet(Packet(number))
        assert task.stop(timeout=60)
        snapshot = task.measure()
    finally:
        task.cleanup()
    assert snapshot.restarts == 1
    assert snapshot.processed >= 150  # what was not done may have been done twice
    assert snapshot.latency.count == snapshot.processed
    assert snapshot.mean_packets_per_second == pytest.approx(snapshot.processed / snapshot.seconds)


def test_prometheus_scrapes_a_job_that_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sageruntime")
    told: queue.SimpleQueue[JobMetrics] = queue.SimpleQueue()
    more = threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(1000)
        more.wait(60)

    options = TaskOptions(monitoring_interval=0.05)
    pipeline = Pipeline("scraped", options=options).source(numbers, name="read")
    pipeline.map(Picky, name="pick", on="process", parallelism=2, error_policy="skip")
    pipeline.sink(name="write")
    with pipeline.start(prometheus_port=0) as job:
        port = job.prometheus_port
        assert port
        assert f"http://127.0.0.1:{port}/metrics" in caplog.text
        job.add_metrics_listener(told.put)
        while [stage.processed for stage in told.get(timeout=60).stages] != [1000, 900, 900]:
            pass
        samples = scrape(port)
        more.set()
        job.result()
    assert job.prometheus_port is None
    processed = samples["sageruntime_packets_processed_total"]
    assert of(processed, job="scraped", stage="read", host="thread") == 1000
    assert of(processed, stage="pick", host="process") == 900
    assert of(processed, stage="write", host="thread") == 900
    assert of(samples["sageruntime_errors_total"], stage="pick") == 100
    assert of(samples["sageruntime_latency_seconds_count"], stage="pick") == 1000
    assert of(samples["sageruntime_end_to_end_latency_seconds_count"], stage="write") == 900
    assert of(samples["sageruntime_task_state"], state="running") == 4
    assert of(samples["sageruntime_queue_depth"]) == 0
    assert len(samples["sageruntime_process_resident_memory_bytes"]) == 3
    assert of(samples["sageruntime_process_cpu_seconds_total"], pid=str(os.getpid())) > 0
    with pytest.raises(OSError):
        scrape(port)


def test_a_port_that_is_taken_fails_the_start() -> None:
    pipeline = Pipeline("taken").source(range(10)).sink()
    exporter = PrometheusExporter(a_job, port=0)
    try:
        with pytest.raises(MonitoringError, match="choose another port"):
            pipeline.run(prometheus_port=exporter.port)
    finally:
        exporter.close()


def test_what_is_not_asked_for_is_not_imported() -> None:
    script = (
        "import sys; from sageruntime import Pipeline\n"
        "Pipeline('plain').source(range(10)).map(str).sink().run()\n"
        "print([name for name in ('prometheus_client', 'opentelemetry')"
        " if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "[]"
