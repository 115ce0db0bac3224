"""Random death: producers and consumers are SIGKILLed at random and replaced, for ever so long.

    python -m bench.soak [--kills N] [--mode mpmc|mpsc|spmc|spsc] [--seed N]

Every producer keeps a record, which survives it, of the message it is about to put and of how many
puts have returned. Every consumer claims, checks the whole body, records the message, and only then
releases it. So each message is accounted for: put returned and never seen is *lost*; a body that is
not what was put is *torn*; seen twice where the later one is not flagged as redelivered is a
*duplicate*. The one message a producer had in hand when it died may have been put or not.

*Stall* is the longest that any consumer waited for a message while a producer lived, and any
producer for room: what a survivor feels of the deaths of others. *Memory growth* is what this
process and the queue's segment took in the end beyond what they took after a quarter of the kills.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sagequeue import SageQueue, ShutDown

MODES = {"mpmc": (2, 2), "mpsc": (2, 1), "spmc": (1, 2), "spsc": (1, 1)}
MAXSIZE = 64
POOL_BYTES = 4 << 20
PATIENCE_SECONDS = 60.0
STALL_LIMIT_SECONDS = 1.0
MEMORY_GROWTH_LIMIT = 16 << 20

_PUTS = struct.Struct("<QQd")  # about to put, put, longest wait
_SIGHTING = struct.Struct("<QQQd")  # producer, number, redelivered | torn << 1, wait


def body_of(producer: int, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The body of a message: in its slot, in a chunk, or larger than any chunk."""
    kind = (producer * 7919 + number) % 100
    size = 5 << 20 if kind == 0 else 300_000 if kind < 5 else 3000 if kind < 30 else 20 + kind
    return np.full(size, (producer * 31 + number * 7) % 251, "u1")


def message_of(producer: int, number: int) -> tuple[int, int, Any]:
    """Bodies are bytes and arrays in turn."""
    body = body_of(producer, number)
    return producer, number, body if number % 2 else body.tobytes()


def is_whole(message: tuple[int, int, Any]) -> bool:
    """Whether the body is the one that was put."""
    producer, number, body = message
    return np.array_equal(np.frombuffer(body, "u1"), body_of(producer, number))


@dataclass
class Report:
    """What a soak found."""

    kills: int = 0
    seconds: float = 0.0
    committed: int = 0
    delivered: int = 0
    lost: int = 0
    torn: int = 0
    redelivered: int = 0
    duplicates: int = 0
    stall: float = 0.0
    failed_workers: int = 0
    pool_whole: bool = False
    slots_whole: bool = False
    unfinished: int = 0
    left_in_shm: list[str] = field(default_factory=list)
    memory_growth: int = 0

    @property
    def correct(self) -> bool:
        """Whether every message is accounted for, nobody stalled and nothing is left behind."""
        wrong = self.lost + self.torn + self.duplicates + self.failed_workers + self.unfinished
        whole = self.pool_whole and self.slots_whole and self.memory_growth < MEMORY_GROWTH_LIMIT
        flowing = self.stall < STALL_LIMIT_SECONDS
        return wrong == 0 and whole and flowing and not self.left_in_shm

    def __str__(self) -> str:
        return "\n".join(f"{name:>16}  {value}" for name, value in vars(self).items())


class Soak:
    """A queue, its workers, and what they have put and seen."""

    def __init__(self, mode: str, kills: int, folder: Path) -> None:
        self.queue: SageQueue[tuple[int, int, Any]] = SageQueue(
            MAXSIZE,
            mode=mode,
            pool_bytes=POOL_BYTES,  # type: ignore[arg-type]
        )
        self.folder = folder
        self.puts = mmap.mmap(-1, _PUTS.size * (2 * kills + 100))
        self.started = [0, 0]
        self.workers: dict[int, Callable[[], None]] = {}
        self.report = Report()

    def produce(self, producer: int) -> None:
        """The life of a producer."""
        number, longest, at = 0, 0.0, producer * _PUTS.size
        while True:
            _PUTS.pack_into(self.puts, at, number + 1, number, longest)
            message = message_of(producer, number)
            start = time.monotonic()
            self.queue.put(message, timeout=PATIENCE_SECONDS)
            longest = max(longest, time.monotonic() - start)
            number += 1
            _PUTS.pack_into(self.puts, at, number, number, longest)

    def consume(self, consumer: int) -> None:
        """The life of a consumer."""
        log = os.open(self.folder / str(consumer), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        while True:
            start = time.monotonic()
            try:
                lease = self.queue.claim(timeout=PATIENCE_SECONDS)
            except ShutDown:
                return
            wait = time.monotonic() - start
            producer, number, _ = lease.item
            flags = lease.redelivered | (not is_whole(lease.item)) << 1
            os.write(log, _SIGHTING.pack(producer, number, flags, wait))
            lease.release()

    def start_producer(self) -> None:
        """One more."""
        self._start(0, self.produce, self.start_producer)

    def start_consumer(self) -> None:
        """One more."""
        self._start(1, self.consume, self.start_consumer)

    def _start(self, kind: int, live: Callable[[int], None], again: Callable[[], None]) -> None:
        number = self.started[kind]
        self.started[kind] += 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                live(number)
                self.queue.close()
                status = 0
            finally:
                if status:
                    sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(status)
        self.workers[pid] = again

    def kill(self, pid: int) -> Callable[[], None]:
        """Kill one; how to replace it."""
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            self.report.failed_workers += 1  # it had ended by itself
        self.report.kills += 1
        return self.workers.pop(pid)

    def memory(self) -> int:
        """Bytes that this process and the queue's segment take."""
        segment = os.stat(f"/dev/shm/sagequeue-{self.queue.name}")
        return int(psutil.Process().memory_info().rss) + segment.st_blocks * 512

    def run(self, mode: str, kills: int, seed: int) -> Report:
        """Kill so many, then let the last consumers drain the queue, and count."""
        chance = random.Random(seed)
        producers, consumers = MODES[mode]
        for _ in range(producers):
            self.start_producer()
        for _ in range(consumers):
            self.start_consumer()
        start = time.monotonic()
        memory = 0
        while self.report.kills < kills:
            time.sleep(chance.random() * 0.01)
            for _ in range(1 if chance.random() < 0.9 else 2):
                self.kill(chance.choice(list(self.workers)))()
            if self.report.kills <= kills // 4:
                memory = self.memory()
        self.report.memory_growth = self.memory() - memory
        for pid in [pid for pid, again in self.workers.items() if again == self.start_producer]:
            self.kill(pid)
        self.queue.shutdown()
        for pid in self.workers:
            self.report.failed_workers += os.waitpid(pid, 0)[1] != 0
        self.report.seconds = time.monotonic() - start
        self._account()
        self._inspect()
        return self.report

    def _account(self) -> None:
        report = self.report
        seen: dict[tuple[int, int], list[bool]] = {}
        for consumer in range(self.started[1]):
            log = self.folder / str(consumer)
            data = log.read_bytes() if log.exists() else b""
            whole = len(data) // _SIGHTING.size * _SIGHTING.size
            for producer, number, flags, wait in _SIGHTING.iter_unpack(data[:whole]):
                report.torn += flags >> 1
                report.stall = max(report.stall, wait)
                seen.setdefault((producer, number), []).append(bool(flags & 1))
        for producer in range(self.started[0]):
            _, put, longest = _PUTS.unpack_from(self.puts, producer * _PUTS.size)
            report.committed += put
            report.lost += sum((producer, number) not in seen for number in range(put))
            report.stall = max(report.stall, longest)
        report.delivered = sum(map(len, seen.values()))
        report.redelivered = sum(sum(flags) for flags in seen.values())
        # of a message's sightings, which consumers wrote down apart, only one may be unflagged
        report.duplicates = sum(max(0, flags.count(False) - 1) for flags in seen.values())
        self._distinct = len(seen)

    def _inspect(self) -> None:
        """A queue of the same handle's segment after all that: is everything free again?"""
        queue, report = self.queue, self.report
        queue.recover()
        for _ in range(self._distinct):
            queue.task_done()  # what was never put must not be missing either
        report.unfinished = queue.unfinished_tasks
        usage = queue.usage()
        report.slots_whole = queue.empty() and usage.slots_held == 0
        report.pool_whole = usage.chunks_held == 0
        name = queue.name
        queue.close()
        report.left_in_shm = [path.name for path in Path("/dev/shm").glob(f"sagequeue-{name}*")]


def soak(kills: int, mode: str = "mpmc", seed: int = 1) -> Report:
    """One soak in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return Soak(mode, kills, Path(folder)).run(mode, kills, seed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--mode", choices=MODES, default="mpmc")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = soak(options.kills, options.mode, options.seed)
    print(report)
    print("every message accounted for" if report.correct else "NOT CORRECT")
    return 0 if report.correct else 1


if __name__ == "__main__":
    sys.exit(main())
