"""Random death and random stops, and every message accounted for.

    python -m bench.soak [--kills N] [--stops N] [--mode mpmc|mpsc|spmc|spsc] [--seed N]

Producers and consumers are killed (SIGKILL) at random moments and replaced, and in between stopped
(SIGSTOP) at random moments, for some milliseconds or for many times the recovery interval, and
continued (SIGCONT) or killed where they stand. A stopped process is alive: what it holds stays its
own.

Every producer keeps a record, which survives it, of the message it is about to put and of how many
puts have returned. Every consumer claims, checks the whole body, records the message, and only then
releases it. So each message is accounted for: put returned and never seen is *lost*; a body that is
not what was put is *torn*; seen twice where the later one is not flagged as redelivered is a
*duplicate*; released twice is *taken*: the lease of somebody alive was given to another. The one
message a producer had in hand when it died may have been put or not.

*Stall* is the longest that any consumer waited for a message while a producer lived, and any
producer for room: what a survivor feels of the deaths of others. Time during which a worker was
stopped does not count, because others may have to wait for it. *Oversleep* is how much longer than
asked for a sleep of this process lasted at most: a stall that is not much longer is the machine's.
*Memory growth* is what this process and the queue's segment took in the end beyond what they took
after a quarter of all that.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sagequeue import SageQueue, ShutDown
from sagequeue.queue import DEFAULT_RECOVERY_SECONDS

MODES = {"mpmc": (2, 2), "mpsc": (2, 1), "spmc": (1, 2), "spsc": (1, 1)}
MAXSIZE = 64
POOL_BYTES = 4 << 20
PATIENCE_SECONDS = 60.0
STALL_LIMIT_SECONDS = 10.0  # more than a machine that is busy with other things needs
MEMORY_GROWTH_LIMIT = 16 << 20
SHORT_STOP_SECONDS = 0.05
LONG_STOP_SECONDS = 10 * DEFAULT_RECOVERY_SECONDS
NOTABLE_SECONDS = 0.01  # a wait that is written down

_PUTS = struct.Struct("<QQ")  # about to put, put
_SIGHTING = struct.Struct("<QQQ")  # producer, number, redelivered | torn << 1
_WAIT = struct.Struct("<ddQQ")  # from, until, 0 to put or 1 to claim, pid


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
    stops: int = 0
    seconds: float = 0.0
    committed: int = 0
    delivered: int = 0
    lost: int = 0
    torn: int = 0
    redelivered: int = 0
    duplicates: int = 0
    taken: int = 0
    stall: float = 0.0
    stalled: str = ""
    oversleep: float = 0.0
    failed_workers: int = 0
    pool_whole: bool = False
    slots_whole: bool = False
    unfinished: int = 0
    left_in_shm: list[str] = field(default_factory=list)
    memory_growth: int = 0

    @property
    def correct(self) -> bool:
        """Whether every message is accounted for, nobody stalled and nothing is left behind."""
        wrong = self.lost + self.torn + self.duplicates + self.taken
        wrong += self.failed_workers + self.unfinished
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
        self.waits = os.open(folder / "waits", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.started = [0, 0]
        self.workers: dict[int, Callable[[], None]] = {}
        self.stopped: dict[int, tuple[float, float]] = {}  # since when, until when
        self.stops: list[tuple[float, float]] = []  # that are over
        self.report = Report()
        self.began = time.monotonic()

    def produce(self, producer: int) -> None:
        """The life of a producer."""
        number, at = 0, producer * _PUTS.size
        while True:
            _PUTS.pack_into(self.puts, at, number + 1, number)
            message = message_of(producer, number)
            start = time.monotonic()
            self.queue.put(message, timeout=PATIENCE_SECONDS)
            self._waited(start, 0)
            number += 1
            _PUTS.pack_into(self.puts, at, number, number)

    def consume(self, consumer: int) -> None:
        """The life of a consumer."""
        log = os.open(self.folder / str(consumer), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        while True:
            start = time.monotonic()
            try:
                lease = self.queue.claim(timeout=PATIENCE_SECONDS)
            except ShutDown:
                return
            self._waited(start, 1)
            producer, number, _ = lease.item
            flags = lease.redelivered | (not is_whole(lease.item)) << 1
            os.write(log, _SIGHTING.pack(producer, number, flags))
            lease.release()

    def _waited(self, start: float, kind: int) -> None:
        now = time.monotonic()
        if now - start >= NOTABLE_SECONDS:
            os.write(self.waits, _WAIT.pack(start, now, kind, os.getpid()))

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
        """Kill one, stopped or not; how to replace it."""
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            self.report.failed_workers += 1  # it had ended by itself
        self.report.kills += 1
        if pid in self.stopped:
            self._stop_is_over(pid)
        return self.workers.pop(pid)

    def stop(self, pid: int, seconds: float) -> None:
        """Stop one, to be continued after so many seconds at the earliest."""
        now = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        self.stopped[pid] = now, now + seconds
        self.report.stops += 1

    def continue_those_due(self, now: float) -> None:
        """Continue all that were stopped until `now` or before."""
        for pid in [pid for pid, (_, until) in self.stopped.items() if until <= now]:
            self.queue.recover()  # which must not take it for dead
            os.kill(pid, signal.SIGCONT)
            self._stop_is_over(pid)

    def _stop_is_over(self, pid: int) -> None:
        self.stops.append((self.stopped.pop(pid)[0], time.monotonic()))

    def _sleep(self, seconds: float) -> None:
        before = time.monotonic()
        time.sleep(seconds)
        self.report.oversleep = max(self.report.oversleep, time.monotonic() - before - seconds)

    def _await_first_put(self) -> None:
        """Wait until the workers are at work: before, there is nobody to be disturbed."""
        until = time.monotonic() + PATIENCE_SECONDS
        while _PUTS.unpack_from(self.puts)[1] == 0 and time.monotonic() < until:
            time.sleep(0.001)

    def memory(self) -> int:
        """Bytes that this process and the queue's segment take."""
        segment = os.stat(f"/dev/shm/sagequeue-{self.queue.name}")
        return int(psutil.Process().memory_info().rss) + segment.st_blocks * 512

    def run(self, mode: str, kills: int, stops: int, seed: int) -> Report:
        """Kill and stop so many, then let the last consumers drain the queue, and count."""
        chance = random.Random(seed)
        report = self.report
        producers, consumers = MODES[mode]
        for _ in range(producers):
            self.start_producer()
        for _ in range(consumers):
            self.start_consumer()
        self._await_first_put()
        memory = 0
        while (ahead := max(0, kills - report.kills) + stops - report.stops) > 0:
            self._sleep(chance.random() * 0.01)
            self.continue_those_due(time.monotonic())
            if chance.randrange(ahead) < stops - report.stops:
                longest = SHORT_STOP_SECONDS if chance.random() < 0.8 else LONG_STOP_SECONDS
                running = [pid for pid in self.workers if pid not in self.stopped]
                if len(running) > len(self.workers) // 2:  # else there is nobody to be disturbed
                    self.stop(chance.choice(running), chance.random() * longest)
            else:
                for _ in range(1 if chance.random() < 0.9 else 2):
                    self.kill(chance.choice(list(self.workers)))()
            if report.kills + report.stops <= (kills + stops) // 4:
                memory = self.memory()
        self.report.memory_growth = self.memory() - memory
        self.continue_those_due(math.inf)
        for pid in [pid for pid, again in self.workers.items() if again == self.start_producer]:
            self.kill(pid)
        self.queue.shutdown()
        for pid in self.workers:
            self.report.failed_workers += os.waitpid(pid, 0)[1] != 0
        self.report.seconds = time.monotonic() - self.began
        self._account()
        self._inspect()
        return self.report

    def _account(self) -> None:
        report = self.report
        seen: dict[tuple[int, int], list[bool]] = {}
        released: Counter[tuple[int, int]] = Counter()
        for consumer in range(self.started[1]):
            sightings = list(records(self.folder / str(consumer), _SIGHTING))
            for producer, number, flags in sightings:
                report.torn += flags >> 1
                seen.setdefault((producer, number), []).append(bool(flags & 1))
            # the last one may have died before it was released
            released.update((producer, number) for producer, number, _ in sightings[:-1])
        for producer in range(self.started[0]):
            _, put = _PUTS.unpack_from(self.puts, producer * _PUTS.size)
            report.committed += put
            report.lost += sum((producer, number) not in seen for number in range(put))
        report.delivered = sum(map(len, seen.values()))
        report.redelivered = sum(sum(flags) for flags in seen.values())
        # of a message's sightings, which consumers wrote down apart, only one may be unflagged
        report.duplicates = sum(max(0, flags.count(False) - 1) for flags in seen.values())
        report.taken = sum(times - 1 for times in released.values())
        stops = merged(self.stops)
        waits = [(lasting(wait, stops), wait) for wait in records(self.folder / "waits", _WAIT)]
        if waits:
            report.stall, (start, _, kind, pid) = max(waits)
            call = ("put", "claim")[kind]
            report.stalled = f"{call} of process {pid}, {start - self.began:.1f} s after the start"
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


def records(path: Path, form: struct.Struct) -> Iterator[tuple[Any, ...]]:
    """What is written in a file; its writer may have died within the last record."""
    data = path.read_bytes() if path.exists() else b""
    return form.iter_unpack(data[: len(data) // form.size * form.size])


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as spans in order that do not overlap."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def lasting(wait: tuple[Any, ...], stops: list[tuple[float, float]]) -> float:
    """Seconds that a wait lasted while nobody was stopped."""
    start, end, *_ = wait
    stopped = sum(max(0.0, min(end, until) - max(start, since)) for since, until in stops)
    return float(end - start - stopped)


def soak(kills: int, stops: int = 0, mode: str = "mpmc", seed: int = 1) -> Report:
    """One soak in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return Soak(mode, kills, Path(folder)).run(mode, kills, stops, seed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--stops", type=int, default=0)
    parser.add_argument("--mode", choices=MODES, default="mpmc")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = soak(options.kills, options.stops, options.mode, options.seed)
    print(report)
    print("every message accounted for" if report.correct else "NOT CORRECT")
    return 0 if report.correct else 1


if __name__ == "__main__":
    sys.exit(main())
