"""What a SIGKILL does to other queues: the same random kills, one queue after the other.

    python -m bench.kill_peers [--kills N] [--seed N]

Two producers and two consumers; every few milliseconds one of them is killed and replaced. A queue
*hangs* when nothing has been got for five seconds though producers live; a message is *lost* when
its put had returned and nobody ever got it (get, not claim, everywhere: what the killed consumers
had in hand, at most one each, is not counted); *torn* when what was got is not what was put.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing as mp
import os
import pickle
import queue as standard
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sagequeue import SageQueue

HUNG_SECONDS = 5.0
_PUT = struct.Struct("<Q")
_GOT = struct.Struct("<QQQ")  # producer, number, whole


def faster_fifo() -> Any:
    """The peer from PyPI."""
    from faster_fifo import Queue

    return Queue(max_size_bytes=1 << 20)


PEERS: dict[str, Callable[[], Any]] = {
    "SageQueue": lambda: SageQueue(1000),
    "multiprocessing.Queue": lambda: mp.Queue(1000),
    "multiprocessing.SimpleQueue": mp.SimpleQueue,
    "faster_fifo.Queue": faster_fifo,
}


def body_of(producer: int, number: int) -> bytes:
    """Some are larger than a pipe writes at once."""
    size = 20_000 if number % 10 == 0 else 40
    return bytes([(producer * 31 + number) % 251]) * size


class Trial:
    """One queue under fire."""

    def __init__(self, made: Any, kills: int, folder: Path) -> None:
        self.queue = made
        self.folder = folder
        self.puts = mmap.mmap(-1, _PUT.size * (kills + 10))
        self.started = [0, 0]
        self.workers: dict[int, int] = {}

    def produce(self, producer: int) -> None:
        """Put for ever."""
        number = 0
        while True:
            self.queue.put((producer, number, body_of(producer, number)))
            number += 1
            _PUT.pack_into(self.puts, producer * _PUT.size, number)

    def consume(self, consumer: int) -> None:
        """Get for ever."""
        log = os.open(self.folder / str(consumer), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        while True:
            try:
                producer, number, body = self.queue.get()
                whole = body == body_of(producer, number)
            except (standard.Empty, standard.Full):
                continue
            except (pickle.UnpicklingError, ValueError, TypeError, EOFError):
                producer, number, whole = 0, 0, False  # what came is no message
            os.write(log, _GOT.pack(producer, number, whole))

    def start(self, kind: int) -> None:
        """Start a producer (0) or a consumer (1)."""
        number = self.started[kind]
        self.started[kind] += 1
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, os.getppid())
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
                with contextlib.suppress(BaseException):
                    (self.produce, self.consume)[kind](number)
                os._exit(1)
        self.workers[pid] = kind

    def got(self) -> int:
        """How many messages have been recorded."""
        return sum(file.stat().st_size for file in self.folder.iterdir()) // _GOT.size

    def stalls(self) -> bool:
        """Whether nothing is got for so long."""
        before, start = self.got(), time.monotonic()
        while time.monotonic() - start < HUNG_SECONDS:
            time.sleep(0.05)
            if self.got() > before:
                return False
        return True

    def run(self, kills: int, seed: int) -> str:
        """Kill and see."""
        chance = random.Random(seed)
        for kind in (0, 1, 0, 1):
            self.start(kind)
        killed, verdict = 0, ""
        while killed < kills and not verdict:
            time.sleep(0.005 + chance.random() * 0.01)
            pid = chance.choice(list(self.workers))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.start(self.workers.pop(pid))
            killed += 1
            if killed % 25 == 0 and self.stalls():
                verdict = f"hung within {killed} kills"
        for pid in [pid for pid, kind in self.workers.items() if kind == 0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            del self.workers[pid]
        while not verdict and not self.drained():
            pass
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return ", ".join(filter(None, (verdict or f"survived {killed} kills", self.account())))

    def drained(self) -> bool:
        """Whether nothing comes any more."""
        before = self.got()
        time.sleep(1.0)
        return self.got() == before

    def account(self) -> str:
        """What became of the messages."""
        seen: set[tuple[int, int]] = set()
        torn = 0
        for file in self.folder.iterdir():
            data = file.read_bytes()
            for producer, number, whole in _GOT.iter_unpack(data[: len(data) // 24 * 24]):
                torn += not whole
                if whole:
                    seen.add((producer, number))
        put = missing = 0
        for producer in range(self.started[0]):
            (count,) = _PUT.unpack_from(self.puts, producer * _PUT.size)
            put += count
            missing += sum((producer, number) not in seen for number in range(count))
        lost = max(0, missing - self.started[1])  # in the hands of consumers that died
        return f"{put:,} put, {lost:,} lost, {torn:,} torn"


def trial(name: str, kills: int, seed: int) -> None:
    """In a process of its own, which can be given up with all its children."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"| {name} | {Trial(PEERS[name](), kills, Path(folder)).run(kills, seed)} |")
        sys.stdout.flush()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_peers")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| queue | after random SIGKILLs |\n|---|---|")
    sys.stdout.flush()
    for name in PEERS:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            trial(name, options.kills, options.seed)
            os._exit(0)
        deadline = time.monotonic() + 300
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.1)
            if time.monotonic() > deadline:
                print(f"| {name} | hung, and could not be stopped in order |")
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
