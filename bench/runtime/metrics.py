"""Metrics: what they cost in CPU time; see :mod:`bench.metrics_cost` for all there is to tell."""

from __future__ import annotations

from functools import partial

from bench.metrics_cost import CASES, Case, run
from bench.runtime.figure import Figure, Row, in_turn

MOST_PERCENT = 3.0


def figure(rounds: int) -> Figure:
    """Measure it."""
    rows = []
    for case in CASES:
        seconds = in_turn(
            {
                "with": partial(cpu_seconds, case, True),
                "without": partial(cpu_seconds, case, False),
            },
            rounds,
        )
        costs = [(one / other - 1) * 100 for one, other in zip(seconds["with"], seconds["without"])]
        rows.append(Row(case.name, costs, "%", most=MOST_PERCENT))
    return Figure("What metrics add to the CPU time of one hop with an idle operator", rows)


def cpu_seconds(case: Case, measured: bool) -> float:
    """Of all processes together, in one run."""
    return run(case, measured).cpu_seconds
