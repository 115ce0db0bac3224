"""The words counted by sageruntime."""

from __future__ import annotations

from collections import Counter

from bench.runtime.wordcount.text import words
from sageruntime import CountByKey, Packet, Pipeline
from sageruntime.operator import BatchOperator
from sageruntime.operator.results import Results


def plainly(text: list[str]) -> dict[str, int]:
    """By functions and a counting operator, as a user begins, in this process."""
    pipeline = Pipeline("words").source(text).flat_map(words).key_by(itself)
    return dict(pipeline.map(CountByKey).sink().run().sink_result)


def in_batches(text: list[str]) -> dict[str, int]:
    """By operators that take a batch a call, in this process."""
    pipeline = Pipeline("words").source(text).map(SplitBatch)
    return dict(pipeline.map(CountBatch).sink().run().sink_result)


def in_processes(text: list[str]) -> dict[str, int]:
    """By the same operators in a process each."""
    pipeline = Pipeline("words").source(text).map(SplitBatch, on="process")
    return dict(pipeline.map(CountBatch, on="process").sink().run().sink_result)


def itself(word: str) -> str:
    """A word is its own key."""
    return word


class SplitBatch(BatchOperator):
    """Makes a packet of each word."""

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        return [
            Packet(word, 0, word, packet.timestamp)
            for packet in packets
            for word in words(packet.payload)
        ]


class CountBatch(BatchOperator):
    """Counts packets by key."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        self.counts.update([packet.key for packet in packets])
        return None

    def finish(self) -> Results:
        """Each word with its count."""
        return (Packet(item, key=item[0]) for item in self.counts.items())
