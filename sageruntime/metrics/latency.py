"""How long packets take: a histogram that costs next to nothing to fill, and its percentiles."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec

# Two significant digits: 2 * 10**2 values to a power of two, so 8 bits of each value count.
_PRECISION_BITS = 8


class LatencySummary(msgspec.Struct, frozen=True):
    """Percentiles of latencies, in seconds, to within one percent; None where nothing was counted.

    Attributes:
        count: packets counted.
        mean: their mean.
        p50, p90, p99, p99_9: half, 90 %, 99 % and 99.9 % of the packets took at most this long.
        max: the longest.
        buckets: packets by latency in microseconds, rounded down to the start of its bucket.
    """

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None
    buckets: dict[int, int] = {}

    def within(self, bounds: Sequence[float]) -> list[int]:
        """How many packets took at most each of these numbers of seconds, which ascend."""
        counts = [0] * (len(bounds) + 1)
        for bucket, count in self.buckets.items():
            counts[bisect_left(bounds, _bucket_end(bucket) / 1e6)] += count
        return list(accumulate(counts[:-1]))


class LatencyHistogram:
    """Counts of durations in the buckets of an HdrHistogram of microseconds with two digits.

    It is a dict, because a record of the ``hdrhistogram`` package takes as long as an operator may
    take for several packets. One thread records; others may read at the same time.

    Args:
        buckets: counts to begin with; see :class:`LatencySummary`.
        total_ns: the sum of what they count.
    """

    __slots__ = ("_buckets", "_total_ns")

    def __init__(self, buckets: Mapping[int, int] | None = None, total_ns: int = 0) -> None:
        self._buckets = dict(buckets or {})
        self._total_ns = total_ns

    @classmethod
    def merged(cls, summaries: Iterable[LatencySummary]) -> LatencyHistogram:
        """What several summaries count together."""
        histogram = cls()
        for summary in summaries:
            total_ns = round((summary.mean or 0.0) * summary.count * 1e9)
            histogram.add(cls(summary.buckets, total_ns))
        return histogram

    def record(self, nanoseconds: int, count: int = 1) -> None:
        """Count ``count`` packets that took this long; less than nothing counts as nothing."""
        if nanoseconds < 0:  # the clocks of two machines differ
            nanoseconds = 0
        self._total_ns += nanoseconds * count
        bucket = nanoseconds // 1000
        shift = bucket.bit_length() - _PRECISION_BITS
        if shift > 0:
            bucket = bucket >> shift << shift
        buckets = self._buckets
        buckets[bucket] = buckets.get(bucket, 0) + count

    def percentile(self, percent: float) -> float | None:
        """The seconds within which ``percent`` of the packets were done; None without any."""
        return self._percentiles([percent])[0]

    def summary(self) -> LatencySummary:
        """The counts as they are now."""
        buckets = self._buckets.copy()
        count = sum(buckets.values())
        if not count:
            return LatencySummary()
        frozen = LatencyHistogram(buckets)
        p50, p90, p99, p99_9, longest = frozen._percentiles([50, 90, 99, 99.9, 100])
        mean = self._total_ns / count / 1e9
        return LatencySummary(count, mean, p50, p90, p99, p99_9, longest, buckets)

    def add(self, other: LatencyHistogram) -> None:
        """Count what ``other`` counted, too."""
        buckets = self._buckets
        for bucket, count in other._buckets.copy().items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        self._total_ns += other._total_ns

    def __len__(self) -> int:
        return sum(self._buckets.copy().values())

    def _percentiles(self, percents: Sequence[float]) -> list[float | None]:
        buckets = sorted(self._buckets.copy().items())
        if not buckets:
            return [None] * len(percents)
        up_to = list(accumulate(count for _, count in buckets))
        # the rank as HdrHistogram rounds it
        ranks = [max(1, int(percent * up_to[-1] / 100 + 0.5)) for percent in percents]
        return [_bucket_end(buckets[bisect_left(up_to, rank)][0]) / 1e6 for rank in ranks]


def _bucket_end(bucket: int) -> int:
    """The last microsecond that counts in the bucket beginning at ``bucket``."""
    return int(bucket + (1 << max(0, bucket.bit_length() - _PRECISION_BITS)) - 1)
