"""Words counted by sageruntime, Bytewax and streamz: the same text, the same answer.

In each of them every word is an element of the stream of its own, counted by key. (A program that
may count a line at a time needs no stream: a Counter in a loop is faster than any of them.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.wordcount import bytewax_count, our_count, streamz_count
from bench.runtime.wordcount.text import answer, lines, word_total

OURS = {
    "functions": "sageruntime, functions on threads",
    "batches": "sageruntime, batch operators on threads",
    "processes": "sageruntime, batch operators on processes",
}
COUNTERS: dict[str, Callable[[list[str]], dict[str, int]]] = {
    OURS["functions"]: our_count.plainly,
    "streamz": streamz_count.plainly,
    "Bytewax, functions": bytewax_count.plainly,
    OURS["batches"]: our_count.in_batches,
    "Bytewax, batch operators": bytewax_count.in_batches,
    OURS["processes"]: our_count.in_processes,
    "Bytewax, batch operators in two processes": bytewax_count.in_two_processes,
}
_BESIDE = {
    "streamz": OURS["functions"],
    "Bytewax, functions": OURS["functions"],
    "Bytewax, batch operators": OURS["batches"],
    "Bytewax, batch operators in two processes": OURS["processes"],
}


def figure(rounds: int) -> Figure:
    """Measure it: each form beside the peers of its kind."""
    rates = in_turn({name: lambda name=name: rate(name) for name in COUNTERS}, rounds)
    rows = []
    for name, samples in rates.items():
        if name not in _BESIDE:
            rows.append(Row(name, samples, "words/s"))
            continue
        ratio = ratio_of(rates[_BESIDE[name]], samples)
        rows.append(Row(name, samples, "words/s", ratio, least=1.0))
    note = (
        f"{word_total():,} words in {len(lines()):,} lines; the whole job, start and end included"
    )
    return Figure("Word count", rows, note)


def rate(name: str) -> float:
    """Words a second of one run, which has to give the right answer."""
    text, expected = lines(), answer()
    begun = time.perf_counter()
    counts = COUNTERS[name](text)
    seconds = time.perf_counter() - begun
    if counts != expected:
        raise AssertionError(f"{name} counts {len(counts)} words; expected {len(expected)}")
    return word_total() / seconds
