"""What a SIGKILL does to other queues: the same random kills, one queue after the other.

    python -m bench.kill_peers [--kills N] [--trials N]

Two producers and two consumers; every few milliseconds one of them is killed and replaced, so many
times or until the queue *hangs*: nothing was got for five seconds, though producers and consumers
live. In the end the producers are killed and the consumers take what is left. Of the messages whose
put had returned, some are *missing*: nobody ever got them (what is stuck in a queue that hangs, and
what its put had only handed to a thread that died, are among them; what the killed consumers may
have had in hand, one each, is not). Others are *torn*: what was got is not what was put, or cannot
be unpickled. A worker *fails* when the queue raised something else, or crashed it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import multiprocessing as mp
import os
import pickle
import queue as standard
import random
import select
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagequeue import SageQueue

HUNG_SECONDS = 5.0
LOOK_EVERY = 25  # kills
TRIAL_SECONDS = 300.0
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


@dataclass
class Outcome:
    """What became of one queue."""

    kills: int = 0
    hung: bool = False
    failed: int = 0
    put: int = 0
    missing: int = 0
    torn: int = 0


class Trial:
    """One queue under fire."""

    def __init__(self, made: Any, kills: int, folder: Path) -> None:
        self.queue = made
        self.folder = folder
        self.puts = mmap.mmap(-1, _PUT.size * (kills + 10))
        self.started = [0, 0]
        self.workers: dict[int, int] = {}
        self.outcome = Outcome()

    def produce(self, producer: int) -> None:
        """Put without end."""
        number = 0
        while True:
            self.queue.put((producer, number, body_of(producer, number)))
            number += 1
            _PUT.pack_into(self.puts, producer * _PUT.size, number)

    def consume(self, consumer: int) -> None:
        """Get without end."""
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

    def kill(self, pid: int) -> int:
        """Kill one; of which kind it was."""
        os.kill(pid, signal.SIGKILL)
        self.outcome.failed += not os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        return self.workers.pop(pid)

    def run(self, kills: int, seed: int) -> Outcome:
        """Kill and see."""
        outcome, chance = self.outcome, random.Random(seed)
        for kind in (0, 1, 0, 1):
            self.start(kind)
        while outcome.kills < kills and not outcome.hung:
            time.sleep(0.005 + chance.random() * 0.01)
            self.start(self.kill(chance.choice(list(self.workers))))
            outcome.kills += 1
            outcome.hung = outcome.kills % LOOK_EVERY == 0 and self.stalls()
        for pid in [pid for pid, kind in self.workers.items() if kind == 0]:
            self.kill(pid)
        while not self.drained():
            pass
        for pid in list(self.workers):
            self.kill(pid)
        self.account()
        return outcome

    def drained(self) -> bool:
        """Whether nothing comes any more."""
        before = self.got()
        time.sleep(1.0)
        return self.got() == before

    def account(self) -> None:
        """What became of the messages."""
        seen: set[tuple[int, int]] = set()
        for file in self.folder.iterdir():
            data = file.read_bytes()
            whole_records = len(data) // _GOT.size * _GOT.size
            for producer, number, whole in _GOT.iter_unpack(data[:whole_records]):
                self.outcome.torn += not whole
                if whole:
                    seen.add((producer, number))
        missing = 0
        for producer in range(self.started[0]):
            (count,) = _PUT.unpack_from(self.puts, producer * _PUT.size)
            self.outcome.put += count
            missing += sum((producer, number) not in seen for number in range(count))
        self.outcome.missing = max(0, missing - self.started[1])


def trial(name: str, kills: int, seed: int) -> Outcome:
    """In a process of its own, which can be given up with all its children."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        with tempfile.TemporaryDirectory() as folder:
            queue = PEERS[name]()
            outcome = Trial(queue, kills, Path(folder)).run(kills, seed)
            os.write(writer, json.dumps(asdict(outcome)).encode())
            if isinstance(queue, SageQueue):
                queue.close()  # the others have nothing that would outlive their processes
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], TRIAL_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    answer = os.read(reader, 4096) if ready else b""
    os.close(reader)
    if not answer:
        raise RuntimeError(f"the trial of {name} did not come to an end")
    return Outcome(**json.loads(answer))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kill_peers")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=5)
    options = parser.parse_args()
    print("| queue | hung | after kills | put | missing | torn | failed workers |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in PEERS:
        outcomes = [trial(name, options.kills, seed) for seed in range(1, options.trials + 1)]
        hung = sum(outcome.hung for outcome in outcomes)
        fewest, most = (choose(outcome.kills for outcome in outcomes) for choose in (min, max))
        sums = [sum(getattr(o, what) for o in outcomes) for what in ("put", "missing", "torn")]
        print(
            f"| {name} | {hung} of {len(outcomes)} | {fewest} to {most} | "
            f"{' | '.join(f'{value:,}' for value in sums)} | "
            f"{sum(outcome.failed for outcome in outcomes)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
