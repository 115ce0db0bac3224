"""One round: a producer process sends n messages to this process, which times their arrival."""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from typing import Any

from bench.messages import same, workloads
from bench.peers import PEERS, Channel
from bench.peers.ray_queue import RayUtilQueue

SECONDS = 120.0

_context = mp.get_context("spawn")


def pin(core: int) -> None:
    """Stay on one core, so that the two sides do not share one."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[core % len(allowed)]})


def send(channel: Channel, workload: str, count: int, batch: int) -> None:
    """The producer: `count` messages, `batch` a call (0: one a call), after one to warm up."""
    message = workloads()[workload].message
    if batch:
        messages = [message] * batch
        for _ in range(count // batch):
            channel.put_many(messages)
    else:
        put = channel.put
        for _ in range(count):
            put(message)


def _produce(channel: Channel, workload: str, count: int, batch: int) -> None:
    pin(1)
    channel.connect()
    channel.put(workloads()[workload].message)
    send(channel, workload, count, batch)


def receive(channel: Channel, message: Any, count: int, batch: int) -> None:
    """The consumer: take `count` messages and check the last."""
    last = None
    if batch:
        while count > 0:
            messages = channel.get_many()
            count -= len(messages)
            if messages:
                last = messages[-1]
    else:
        get = channel.get
        for _ in range(count):
            last = get()
    if not same(message, last):
        raise AssertionError(f"sent {message!r}, received {last!r}")


def messages_per_second(peer: str, workload: str, batched: bool) -> float:
    """Run one round and return the rate from the first message's arrival to the last one's."""
    kind, work = PEERS[peer], workloads()[workload]
    batch = work.batch if batched else 0
    count = max(int(work.count * kind.share), 20)
    count -= count % batch if batch else 0
    cores = os.sched_getaffinity(0)
    channel = kind()
    try:
        if kind is RayUtilQueue:
            return _put_then_get(channel, workload, count, batch)
        producer = _context.Process(
            target=_produce, args=(channel, workload, count, batch), daemon=True
        )
        producer.start()
        pin(0)
        channel.get()
        start = time.perf_counter()
        receive(channel, work.message, count, batch)
        seconds = time.perf_counter() - start
        producer.join(SECONDS)
        return count / seconds
    finally:
        os.sched_setaffinity(0, cores)
        channel.close()


def _put_then_get(channel: Channel, workload: str, count: int, batch: int) -> float:
    start = time.perf_counter()
    send(channel, workload, count, batch)
    receive(channel, workloads()[workload].message, count, batch)
    return count / (time.perf_counter() - start)


def _echo(there: Channel, back: Channel, rounds: int) -> None:
    pin(1)
    back.connect()
    for _ in range(rounds):
        back.put(there.get())


def round_trip_seconds(peer: str, rounds: int) -> float:
    """The time for 64 bytes to go to another process and come back, both ends blocking."""
    there, back = PEERS[peer](), PEERS[peer]()
    cores = os.sched_getaffinity(0)
    echo = _context.Process(target=_echo, args=(there, back, rounds + 1), daemon=True)
    try:
        echo.start()
        pin(0)
        there.connect()
        message = b"x" * 64
        there.put(message)
        back.get()
        start = time.perf_counter()
        for _ in range(rounds):
            there.put(message)
            back.get()
        seconds = time.perf_counter() - start
        echo.join(SECONDS)
        return seconds / rounds
    finally:
        os.sched_setaffinity(0, cores)
        there.close()
        back.close()
