"""Many processes at once: nothing lost, doubled or torn, each producer's order kept.

The long form (``--long``) sends ten million messages between 4 producers and 4 consumers.
"""

from __future__ import annotations

import multiprocessing as mp
import time
import zlib
from typing import Any

import pytest

from sagequeue.queue import Mode, SageQueue

SECONDS = 900.0
_context = mp.get_context("fork")


def body(producer: int, number: int) -> bytes:
    """Every hundredth is too long for a slot."""
    mixed = (number * 2654435761 + producer * 97) & 0xFFFFFFFF
    length = mixed % 3000 if number % 100 == 0 else mixed % 40
    return bytes([mixed & 0xFF]) * length


def packed(producer: int, number: int) -> bytes:
    content = producer.to_bytes(1, "big") + number.to_bytes(8, "big") + body(producer, number)
    return zlib.crc32(content).to_bytes(4, "big") + content


def produce(queue: SageQueue[bytes], producer: int, count: int, batch: int) -> None:
    for start in range(0, count, batch):
        numbers = range(start, min(start + batch, count))
        if batch == 1:
            queue.put(packed(producer, start))
        else:
            queue.put_many([packed(producer, number) for number in numbers])


def consume(queue: SageQueue[bytes], report: Any, batched: bool) -> None:
    last: dict[int, int] = {}
    counts: dict[int, int] = {}
    sums: dict[int, int] = {}
    wrong: list[str] = []
    messages = (m for many in iter_batches(queue) for m in many) if batched else iter(queue)
    for message in messages:
        checksum, content = message[:4], message[4:]
        producer, number = content[0], int.from_bytes(content[1:9], "big")
        if zlib.crc32(content).to_bytes(4, "big") != checksum or content[9:] != body(
            producer, number
        ):
            wrong.append(f"torn: {message!r}")
        if number <= last.get(producer, -1):
            wrong.append(f"{number} of {producer} after {last[producer]}")
        last[producer] = number
        counts[producer] = counts.get(producer, 0) + 1
        sums[producer] = sums.get(producer, 0) + number
    report.send((counts, sums, wrong[:10]))


def iter_batches(queue: SageQueue[bytes]) -> Any:
    from sagequeue import ShutDown

    while True:
        try:
            yield queue.get_many()
        except ShutDown:
            return


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("mode", "producers", "consumers", "batch"),
    [
        ("mpmc", 4, 4, 1),
        ("mpmc", 4, 4, 100),
        ("mpsc", 3, 1, 1),
        ("spmc", 1, 3, 50),
        ("spsc", 1, 1, 1),
    ],
)
def test_traffic(mode: Mode, producers: int, consumers: int, batch: int, long: bool) -> None:
    count = 2_500_000 if long and producers == 4 else 20_000
    with SageQueue[bytes](1000, mode=mode) as queue:
        pipes = [_context.Pipe(duplex=False) for _ in range(consumers)]
        receivers = [
            _context.Process(target=consume, args=(queue, sender, batch > 1), daemon=True)
            for _, sender in pipes
        ]
        senders = [
            _context.Process(target=produce, args=(queue, n, count, batch), daemon=True)
            for n in range(producers)
        ]
        start = time.perf_counter()
        for process in receivers + senders:
            process.start()
        for process in senders:
            process.join(SECONDS)
            assert process.exitcode == 0
        queue.shutdown()
        reports = [pipe.recv() for pipe, _ in pipes]
        seconds = time.perf_counter() - start
        for process in receivers:
            process.join(SECONDS)
        print(f"{producers * count:,} messages, {producers * count / seconds:,.0f}/s")
        assert [wrong for _, _, wrong in reports if wrong] == []
        for producer in range(producers):
            assert sum(counts.get(producer, 0) for counts, _, _ in reports) == count
            assert sum(sums.get(producer, 0) for _, sums, _ in reports) == count * (count - 1) // 2
        assert queue.empty()
