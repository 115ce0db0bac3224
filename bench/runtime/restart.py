"""Restart: how long after SIGKILL of a stage's process the sink gets packets at the full rate."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import ray

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.stages import Idle, Stopwatch
from sageruntime import (
    CheckpointOptions,
    Job,
    OperatorFactory,
    Pipeline,
    RestartPolicy,
    SourceOperator,
    TaskOptions,
)

MOST_SECONDS = 1.0
FULL = 0.9
_BEFORE, _AFTER = 2.0, 2.5
_WINDOW, _STEP = 0.1, 0.01


class Endless(SourceOperator):
    """Counts until the job is stopped."""

    def __init__(self) -> None:
        self.next = 0

    def read(self) -> Iterator[int]:
        """See :class:`SourceOperator`."""
        for number in itertools.count(self.next):
            self.next = number + 1
            yield number

    def snapshot(self) -> int:
        """See :class:`BaseOperator`."""
        return self.next

    def restore(self, state: int) -> None:
        """See :class:`BaseOperator`."""
        self.next = state


class SharedStopwatch(Stopwatch):
    """Notes arrivals in a list that outlives restarts."""

    def __init__(self, arrivals: list[tuple[float, int]]) -> None:
        self.arrivals = arrivals


def figure(rounds: int) -> Figure:
    """Measure it."""
    with ray_running():
        samples = in_turn(
            {
                "checkpoints": lambda: seconds_to_full_rate(checkpoints=True),
                "claims": lambda: seconds_to_full_rate(checkpoints=False),
                "executor": executor_seconds,
                "ray": ray_actor_seconds,
            },
            rounds,
        )
    rows = [
        Row("a stage, back to the last checkpoint", samples["checkpoints"], "s", most=MOST_SECONDS),
        Row("a stage alone, unfinished packets claimed", samples["claims"], "s", most=MOST_SECONDS),
        Row(
            "a ProcessPoolExecutor made anew, until its first result", samples["executor"], "s",
            ratio_of(samples["executor"], samples["checkpoints"]),
        ),
        Row(
            "a Ray actor with max_restarts, until its next result", samples["ray"], "s",
            ratio_of(samples["ray"], samples["checkpoints"]),
        ),
    ]  # fmt: skip
    note = f"The full rate: {FULL:.0%} of the median before, over {_WINDOW} s"
    return Figure("From SIGKILL to the full rate", rows, note)


def seconds_to_full_rate(checkpoints: bool) -> float:
    """Kill the process in the middle of a pipeline."""
    arrivals: list[tuple[float, int]] = []
    options = TaskOptions(restart=RestartPolicy(max_restarts=3))
    pipeline = Pipeline("restart", options=options).source(Endless)
    pipeline.map(Idle, on="process").sink(OperatorFactory(SharedStopwatch, arrivals))
    with tempfile.TemporaryDirectory() as folder:
        kept = CheckpointOptions(Path(folder) / "checkpoints.db", interval=0.5)
        with pipeline.start(checkpoint=kept if checkpoints else None) as job:
            _wait(lambda: bool(arrivals))
            time.sleep(_BEFORE)
            killed = time.perf_counter()
            os.kill(_pid(job), signal.SIGKILL)
            time.sleep(_AFTER)
            restarts = job.measure().stages[1].restarts
            job.stop()
            job.result()
    if restarts != 1:
        raise AssertionError(f"{restarts} restarts; expected 1")
    return recovery(arrivals, killed)


def recovery(arrivals: list[tuple[float, int]], killed: float) -> float:
    """Seconds from the kill to the first window at the full rate behind the gap."""

    def rate(begin: float) -> float:
        end = begin + _WINDOW
        return sum(count for at, count in arrivals if begin <= at < end) / _WINDOW

    steps = round((_BEFORE - 0.5) / _STEP)
    before = statistics.median(rate(killed - _WINDOW - step * _STEP) for step in range(steps))
    # What had been sent before the kill comes at the full rate, too: we look behind the gap.
    times = [killed, *(at for at, _ in arrivals if killed < at < killed + _AFTER)]
    _, begin = max(itertools.pairwise(times), key=lambda pause: pause[1] - pause[0])
    while begin + _WINDOW < killed + _AFTER:
        if rate(begin) >= FULL * before:
            return begin - killed
        begin += _STEP
    return float("inf")


def executor_seconds() -> float:
    """What a program would do by hand: see that the pool is broken, and make another."""
    context = mp.get_context("forkserver")
    with ProcessPoolExecutor(1, context) as first:
        pid = first.submit(os.getpid).result()
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        try:
            while True:
                first.submit(os.getpid).result()
        except BrokenProcessPool:
            with ProcessPoolExecutor(1, context) as second:
                second.submit(os.getpid).result()
                return time.perf_counter() - killed


@contextmanager
def ray_running() -> Iterator[None]:
    """A Ray of our own; what it says of actors that die goes where logs go."""
    with redirect_stdout(sys.stderr):
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


def ray_actor_seconds() -> float:
    """Ray starts the actor again and repeats the call."""

    class Actor:
        def pid(self) -> int:
            return os.getpid()

    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(Actor)
    actor = remote.remote()
    pid = ray.get(actor.pid.remote())
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while ray.get(actor.pid.remote()) == pid:
        pass
    seconds = time.perf_counter() - killed
    ray.kill(actor)
    return seconds


def _pid(job: Job) -> int:
    process = job.measure().stages[1].tasks[0].process
    assert process is not None
    return process.pid


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
