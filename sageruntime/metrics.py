"""What a task counts and how long its packets take."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

_LONGEST_US = 3_600_000_000
_SIGNIFICANT_DIGITS = 2


class LatencyHistogram:
    """Durations from 1 microsecond to an hour, to within one percent; longer ones count as that.

    One thread records; the counts of several histograms add up.
    """

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, _LONGEST_US, _SIGNIFICANT_DIGITS)

    def record(self, nanoseconds: int, count: int = 1) -> None:
        """Add ``count`` packets that took this long."""
        microseconds = min(max(nanoseconds // 1000, 1), _LONGEST_US)
        self._histogram.record_value(microseconds, count)

    def percentile(self, percent: float) -> float | None:
        """The seconds within which ``percent`` of the packets were done; None without any."""
        if not self._histogram.get_total_count():
            return None
        return float(self._histogram.get_value_at_percentile(percent)) / 1e6

    def add(self, other: LatencyHistogram) -> None:
        """Count what ``other`` counted, too."""
        self._histogram.add(other._histogram)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def __getstate__(self) -> bytes:
        return bytes(self._histogram.encode())

    def __setstate__(self, state: bytes) -> None:
        self._histogram = HdrHistogram.decode(state)


class TaskMetrics:
    """The counts of one task.

    Attributes:
        processed: packets dealt with without an error; for a source, packets read.
        errors: packets the error policy had to deal with.
        latency: from the moment upstream put a packet's batch to the moment the batch was done.
    """

    def __init__(self) -> None:
        self.processed = 0
        self.errors = 0
        self.latency = LatencyHistogram()
