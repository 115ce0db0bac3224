"""The words counted by streamz, which calls one stage from the other in one thread."""

from __future__ import annotations

from collections import Counter

from streamz import Stream

from bench.runtime.wordcount.text import words


def plainly(text: list[str]) -> dict[str, int]:
    """Into a Counter that is changed in place: ``frequencies()`` copies it for every word."""
    counts: Counter[str] = Counter()

    def count(word: str) -> None:
        counts[word] += 1

    source = Stream()
    source.map(words).flatten().sink(count)
    for line in text:
        source.emit(line)
    return dict(counts)
