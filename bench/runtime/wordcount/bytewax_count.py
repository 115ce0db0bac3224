"""The words counted by Bytewax, with those of its operators that take a batch a call."""

from __future__ import annotations

import multiprocessing as mp
import socket
import time
from collections.abc import Iterable
from typing import Any

import psutil
from bytewax import operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, cluster_main, run_main

from bench.runtime.wordcount.text import lines, words

_BATCH = 100
_SECONDS = 120

_spawn = mp.get_context("spawn")


def plainly(text: list[str]) -> dict[str, int]:
    """By one worker, with the operators that its guide begins with."""
    counts: list[tuple[str, int]] = []
    flow = Dataflow("words")
    split = op.flat_map("split", op.input("read", flow, Lines(text)), words)
    op.output("collect", op.count_final("count", split, str), TestingSink(counts))
    run_main(flow)
    return dict(counts)


def in_batches(text: list[str]) -> dict[str, int]:
    """By one worker, with operators that take a batch a call."""
    counts: list[tuple[str, int]] = []
    run_main(_dataflow(text, counts))
    return dict(counts)


def in_two_processes(text: list[str]) -> dict[str, int]:
    """By a worker in each of two processes, which exchange words by TCP."""
    addresses = _free_addresses(2)
    pipes = [_spawn.Pipe(duplex=False) for _ in addresses]
    processes = [
        _spawn.Process(target=_work, args=(addresses, index, far))
        for index, (_, far) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    counts: dict[str, int] = {}
    for near, _ in pipes:
        if not near.poll(_SECONDS):
            raise TimeoutError("a Bytewax worker did not report")
        counts.update(near.recv())
    for process in processes:
        process.join()
    return counts


class Lines(DynamicSource):
    """Every worker reads its share of the lines."""

    def __init__(self, text: list[str]) -> None:
        self.text = text

    def build(self, step_id: str, worker_index: int, worker_count: int) -> LinesOfWorker:
        """See :class:`DynamicSource`."""
        return LinesOfWorker(self.text[worker_index::worker_count])


class LinesOfWorker(StatelessSourcePartition):
    """Some lines at a time."""

    def __init__(self, text: list[str]) -> None:
        self.text = text
        self.next = 0

    def next_batch(self) -> list[str]:
        """See :class:`StatelessSourcePartition`."""
        if self.next >= len(self.text):
            raise StopIteration
        batch = self.text[self.next : self.next + _BATCH]
        self.next += _BATCH
        return batch


class Count(StatefulBatchLogic):
    """The count of one word."""

    def __init__(self, count: int | None) -> None:
        self.count = count or 0

    def on_batch(self, values: list[int]) -> tuple[Iterable[int], bool]:
        """More of it."""
        self.count += len(values)
        return (), StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[int], bool]:
        """All of it."""
        return (self.count,), StatefulBatchLogic.DISCARD

    def snapshot(self) -> int:
        """For recovery, which is not asked for."""
        return self.count


def _dataflow(text: list[str], counts: list[tuple[str, int]]) -> Dataflow:
    flow = Dataflow("words")
    read = op.input("read", flow, Lines(text))
    split = op.flat_map_batch("split", read, _keyed_words)
    op.output("collect", op.stateful_batch("count", split, Count), TestingSink(counts))
    return flow


def _keyed_words(batch: list[str]) -> list[tuple[str, int]]:
    return [(word, 1) for line in batch for word in words(line)]


def _work(addresses: list[str], index: int, results: Any) -> None:
    counts: list[tuple[str, int]] = []
    if index:
        _wait_for(addresses[0])
    cluster_main(_dataflow(lines(), counts), addresses, index)
    results.send(counts)


def _wait_for(address: str) -> None:
    """The first worker listens: else the second would try again after a whole second."""
    port = int(address.rpartition(":")[2])
    while not any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.net_connections("tcp")
    ):
        time.sleep(0.01)


def _free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return [f"localhost:{port}" for port in ports]
