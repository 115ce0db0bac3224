"""Metrics: what they add to the instructions of a job; see :mod:`bench.metrics_cost`."""

from __future__ import annotations

from bench.metrics_cost import CASES, measure
from bench.runtime.figure import Figure, Row

MOST_PERCENT = 3.0


def figure(rounds: int) -> Figure:
    """Measure it."""
    rows = [Row(case, measure(case, rounds).percent, "%", most=MOST_PERCENT) for case in CASES]
    return Figure("What metrics add to the instructions of one hop with an idle operator", rows)
