"""TaskMetrics: what a task counts while it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sageruntime.metrics.latency import LatencyHistogram
from sageruntime.metrics.snapshot import TimeSpent

# Latencies are recorded once in this time at most: it costs the same however many batches come.
_RECORD_EVERY_NS = 1_000_000


class Started(NamedTuple):
    """When a worker was started: monotonic seconds, and CPU seconds of its process."""

    at: float
    process_cpu_seconds: float


class TaskMetrics:
    """The counts of one task. One thread writes each of them; any thread may read them.

    Attributes:
        processed: packets processed without an error; for a source, packets read.
        errors: packets that met the error policy.
        retries: times a packet was given to the operator again.
        timeouts: packets that took longer than the processing timeout.
        latency: from the moment upstream put a packet's batch to the moment the batch was done.
        end_to_end: from the moment a packet's data entered the pipeline to that same moment.
        waiting, decoding: seconds the worker loop spent; see
            :class:`~sageruntime.metrics.TimeSpent`.
        started: when the worker loop was, if it was.
        loop: the thread of the worker loop.
        lanes: threads that call the operator in its place, by name.
    """

    def __init__(self) -> None:
        self.processed = 0
        self.errors = 0
        self.retries = 0
        self.timeouts = 0
        self.latency = LatencyHistogram()
        self.end_to_end = LatencyHistogram()
        self.waiting = 0.0
        self.decoding = 0.0
        self.loop = ThreadCounts()
        self.lanes: dict[str, ThreadCounts] = {}
        self.started: Started | None = None
        self._run_at: float | None = None
        self._ran = 0.0
        self._unrecorded = 0
        self._recorded = (0, 0)
        self._recorded_at = 0

    @property
    def seconds(self) -> float:
        """How long the worker loop has been running."""
        run_at = self._run_at
        return self._ran if run_at is None else self._ran + time.monotonic() - run_at

    def time_spent(self, routing: float) -> TimeSpent:
        """What the loop did all that time.

        Args:
            routing: seconds that it was in the router.
        """
        working = max(0.0, self.seconds - self.waiting - self.decoding)
        routing = min(routing, working)  # they are not read at the same moment
        return TimeSpent(self.waiting, self.decoding, working - routing, routing)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The calling thread is that of the worker loop while this lasts."""
        self._run_at = time.monotonic()
        if self.started is None:
            self.started = Started(self._run_at, time.process_time())
        self.loop.begin()
        try:
            yield
        finally:
            self.loop.end()
            begun, self._run_at = self._run_at, None
            self._ran += time.monotonic() - begun

    def add_lane(self) -> ThreadCounts:
        """The counts of the calling thread, which go on from those of an earlier one so named."""
        lane = self.lanes.setdefault(threading.current_thread().name, ThreadCounts())
        lane.begin()
        return lane

    def batch_done(self, packets: int, failed: int, sent_at: int, entered_at: int) -> None:
        """Count a batch that was done now. Times are in nanoseconds since the epoch.

        Args:
            packets: how many it held.
            failed: on how many of them the operator failed.
            sent_at: when it was sent to this task.
            entered_at: when the data of its first packet entered the pipeline. Every packet is
                counted with the age of this one, which is the oldest where order is kept.

        Of batches that are done within a millisecond, one's latencies count for all.
        """
        self.processed += packets - failed
        self._unrecorded += packets
        now = time.time_ns()
        if not 0 <= now - self._recorded_at <= _RECORD_EVERY_NS:
            self._recorded_at = now
            self._recorded = (now - sent_at, now - entered_at)
            self.settle()

    def settle(self) -> None:
        """Record what has not been recorded yet; called by the worker when it has nothing to do."""
        packets, self._unrecorded = self._unrecorded, 0
        if packets:
            latency, end_to_end = self._recorded
            self.latency.record(latency, packets)
            self.end_to_end.record(end_to_end, packets)


class ThreadCounts:
    """What one worker thread has done. It begins and ends by itself; any thread may read.

    Attributes:
        name: the thread's.
        processed: packets it has processed.
    """

    def __init__(self) -> None:
        self.name = ""
        self.processed = 0
        self._clock: int | None = None
        self._begun = 0.0
        self._earlier = 0.0
        self._used = 0.0

    def begin(self) -> None:
        """Count the CPU time of the calling thread from now on."""
        self.name = threading.current_thread().name
        self._earlier += self._used
        self._used = 0.0
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._begun = time.clock_gettime(self._clock)

    def end(self) -> None:
        """The calling thread ends, or does something else from now on."""
        self.cpu_seconds()
        self._clock = None

    def cpu_seconds(self) -> float:
        """CPU time used between begin and end, or up to now."""
        if self._clock is not None:
            try:
                self._used = time.clock_gettime(self._clock) - self._begun
            except OSError:  # the thread has ended: as of the last time somebody asked
                self._clock = None
        return self._earlier + self._used
