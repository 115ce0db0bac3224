"""What metrics cost: the instructions of a job that is measured, and of one that is not.

    python -m bench.metrics_cost [--rounds N]

The same job runs under valgrind, in turn with metrics and without; see :mod:`bench.instructions`.
Every instruction of its process is counted from the job's start to its result, of all its threads.
With metrics, a listener gets them every ``monitoring_interval``. Without, tasks have metrics of
which only the count of packets is real, and nothing asks for the time in order to measure; what is
left are a few calls for a batch, which return at once.

Under valgrind a second holds some fifty times fewer packets than it does otherwise. So what
metrics do once in a while, rather than for each packet or batch, is done as many times seldomer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

from bench.instructions import Counted, count
from bench.runtime.stages import Idle, IdleBatch, Numbers, Stopwatch, rate
from sageruntime import BaseOperator, OperatorFactory, Pipeline, TaskOptions
from sageruntime.communication.router import base_router, connection
from sageruntime.metrics import TaskMetrics, task_metrics
from sageruntime.runner import attempt, task_runner

SLOWER = 50
"""How many times as slow a program is under valgrind, about."""

CASES: dict[str, type[BaseOperator]] = {
    "threads, packet by packet": Idle,
    "threads, batch by batch": IdleBatch,
}
PACKETS = 100_000
INTERVAL = 0.2


class NoMetrics(TaskMetrics):
    """Counts packets, and nothing else."""

    def batch_done(self, packets: int, failed: int, sent_at: int, entered_at: int) -> None:
        """Count the packets."""
        self.processed += packets - failed

    def settle(self) -> None:
        """There is nothing to record."""


@contextmanager
def without_metrics() -> Iterator[None]:
    """Tasks that are started here measure nothing."""
    no_time = SimpleNamespace(
        perf_counter=float, thread_time=float, time_ns=int, monotonic=time.monotonic
    )
    with ExitStack() as stack:
        stack.enter_context(patch.object(task_runner, "TaskMetrics", NoMetrics))
        for module in (attempt, base_router, connection):
            stack.enter_context(patch.object(module, "time", no_time))
        yield


class Cost(NamedTuple):
    """Of one case.

    Attributes:
        without: instructions a packet without metrics, in each round.
        with_: the same with metrics.
    """

    without: list[float]
    with_: list[float]

    @property
    def percent(self) -> list[float]:
        """What metrics add, in each round."""
        return [(w / o - 1) * 100 for o, w in zip(self.without, self.with_)]


def measure(case: str, rounds: int) -> Cost:
    """Count the instructions of one case."""
    command = ["-m", "bench.metrics_cost", "--count", case, "--rounds", str(rounds)]
    counts = [each / PACKETS for each in count(command)]
    return Cost(counts[::2], counts[1::2])


def run(case: str, rounds: int) -> None:
    """Run the job in turn without metrics and with them, after one that is not counted."""
    sys.setswitchinterval(sys.getswitchinterval() * SLOWER)
    every_ns = task_metrics._RECORD_EVERY_NS * SLOWER
    with patch.object(task_metrics, "_RECORD_EVERY_NS", every_ns):
        _run_job(CASES[case], listens=True)
        for _ in range(rounds):
            with without_metrics(), Counted():
                _run_job(CASES[case], listens=False)
            with Counted():
                _run_job(CASES[case], listens=True)


def _run_job(operator: type[BaseOperator], listens: bool) -> None:
    options = TaskOptions(monitoring_interval=INTERVAL * SLOWER)
    pipeline = Pipeline("cost", options=options).source(OperatorFactory(Numbers, PACKETS))
    with pipeline.map(operator).sink(Stopwatch).start() as job:
        if listens:
            job.add_metrics_listener(lambda metrics: None)
        rate(job.result().sink_result, PACKETS)  # all have come


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics_cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        run(options.count, options.rounds)
        return 0
    print("| one hop, no-op operator | instructions a packet without | with | cost |")
    print("|---|---|---|---|")
    for case in CASES:
        cost = measure(case, options.rounds)
        percent = cost.percent
        print(
            f"| {case} | {statistics.median(cost.without):,.0f} | "
            f"{statistics.median(cost.with_):,.0f} | {statistics.median(percent):.1f} % "
            f"({min(percent):.1f} to {max(percent):.1f}) |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
