"""A hop to another process and back, beside loops over mp.Queue that do the same work."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.stages import Idle, Numbers, Stopwatch, rate
from sageruntime import OperatorFactory, Pipeline

PACKETS = 600_000
LOOP_ITEMS = 100_000
LEAST_RATIO = 5.0
_MAXSIZE = 50_000
_LIST = 100

_spawn = mp.get_context("spawn")


def figure(rounds: int) -> Figure:
    """Measure it."""
    cases = {"ours": job_rate, "loop": loop_of_numbers_rate, "lists": loop_of_lists_rate}
    samples = in_turn(cases, rounds)
    ours = samples["ours"]
    rows = [
        Row('a stage on="process"', ours, "packets/s"),
        Row(
            "a loop over mp.Queue, numbers", samples["loop"], "items/s",
            ratio_of(ours, samples["loop"]), least=LEAST_RATIO,
        ),
        Row(
            f"a loop over mp.Queue, lists of {_LIST} tuples", samples["lists"], "items/s",
            ratio_of(ours, samples["lists"]),
        ),
    ]  # fmt: skip
    note = "Rates from the first arrival to the last. Tuples have what a packet has, numbers do not"
    return Figure("Through another process and back", rows, note)


def job_rate() -> float:
    """Packets a second through a stage in a process of its own."""
    pipeline = Pipeline("process-hop").source(OperatorFactory(Numbers, PACKETS))
    return rate(pipeline.map(Idle, on="process").sink(Stopwatch).run().sink_result, PACKETS)


def loop_of_numbers_rate() -> float:
    """Numbers a second, one an item."""
    return _loop_rate(_pass_on, range(LOOP_ITEMS), _MAXSIZE, lambda item: 1)


def loop_of_lists_rate() -> float:
    """Tuples a second, a list of them an item."""
    return _loop_rate(_pass_on_lists, _Lists(), _MAXSIZE // _LIST, len)


def _loop_rate(
    work: Callable[[Any, Any], None], items: Any, maxsize: int, count: Callable[[Any], int]
) -> float:
    """What goes a second through a process with a loop, by hand.

    Args:
        work: the loop.
        items: what goes through.
        maxsize: of the two queues.
        count: how many an item counts for.
    """
    there, back = _spawn.Queue(maxsize), _spawn.Queue(maxsize)
    worker = _spawn.Process(target=work, args=(there, back))
    worker.start()
    there.put(next(iter(items)))
    back.get()  # it has started
    feeder = threading.Thread(target=_feed, args=(items, there))
    feeder.start()
    arrived = first = count(back.get())
    begun = time.perf_counter()
    while (item := back.get()) is not None:
        arrived += count(item)
    seconds = time.perf_counter() - begun
    feeder.join()
    worker.join()
    return (arrived - first) / seconds


class _Lists:
    """Lists of tuples: payload, key, time and id; as many of them as packets."""

    def __iter__(self) -> Iterator[list[tuple[int, None, int, int]]]:
        number = itertools.count().__next__
        for begin in range(0, PACKETS, _LIST):
            yield [(i, None, time.time_ns(), number()) for i in range(begin, begin + _LIST)]


def _feed(items: Any, into: Any) -> None:
    for item in items:
        into.put(item)
    into.put(None)


def _idle(item: Any) -> Any:
    return item


def _pass_on(taken: Any, into: Any) -> None:
    while (item := taken.get()) is not None:
        into.put(_idle(item))
    into.put(None)


def _pass_on_lists(taken: Any, into: Any) -> None:
    while (items := taken.get()) is not None:
        into.put([_idle(item) for item in items])
    into.put(None)
