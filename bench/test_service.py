"""A call of a service, and what else there is to call something in a thread or process.

Each calls one method with 64 bytes and gets them back: one call after the other, and with
hundreds of calls under way.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from statistics import median
from typing import Any

import pytest

from sageruntime.service import Service, ServiceTask

TEXT = "x" * 64
CALLS = 5_000
UNDER_WAY = 200

Call = Callable[[str], str]
Submit = Callable[[str], "Future[str]"]


class Echo(Service):
    """Hands back what it is given."""

    def echo(self, text: str) -> str:
        return text


def echo(text: str) -> str:
    return text


def answer(pipe: Connection) -> None:
    """The other end of a call over a pipe, with a method's name, as one would write it by hand."""
    service = Echo()
    while True:
        method, arguments = pipe.recv()
        pipe.send(getattr(service, method)(*arguments))


class Manager(BaseManager):
    """A manager that serves Echo."""


Manager.register("Echo", Echo)


@contextmanager
def service(on: str) -> Iterator[tuple[Call, Submit]]:
    with ServiceTask(f"bench-echo-{on}", Echo, on=on) as task, task.client() as client:
        yield client.echo, client.echo.submit


@contextmanager
def pipe() -> Iterator[tuple[Call, None]]:
    near, far = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=answer, args=(far,), daemon=True)
    process.start()

    def call(text: str) -> str:
        near.send(("echo", (text,)))
        return str(near.recv())

    yield call, None
    process.kill()
    process.join()


@contextmanager
def manager() -> Iterator[tuple[Call, None]]:
    with Manager(ctx=mp.get_context("spawn")) as running:
        yield running.Echo().echo, None  # type: ignore[attr-defined]


@contextmanager
def pool(kind: Callable[[], Any]) -> Iterator[tuple[Call, Submit]]:
    with kind() as executor:
        yield (
            lambda text: str(executor.submit(echo, text).result()),
            (lambda text: executor.submit(echo, text)),
        )


PEERS: dict[str, dict[str, Callable[[], Any]]] = {
    "call of a process": {
        "service on a process": lambda: service("process"),
        "mp.Pipe by hand": pipe,
        "mp.Manager": manager,
        "ProcessPoolExecutor": lambda: pool(
            lambda: ProcessPoolExecutor(1, mp_context=mp.get_context("spawn"))
        ),
    },
    "call of a thread": {
        "service on a thread": lambda: service("thread"),
        "ThreadPoolExecutor": lambda: pool(lambda: ThreadPoolExecutor(1)),
    },
}
CASES = [(group, peer) for group, peers in PEERS.items() for peer in peers]


def calls_per_second(call: Call, calls: int = CALLS) -> float:
    for _ in range(calls // 10):
        call(TEXT)
    begun = time.perf_counter()
    for _ in range(calls):
        call(TEXT)
    return calls / (time.perf_counter() - begun)


def futures_per_second(submit: Submit, calls: int = CALLS) -> float:
    under_way: deque[Future[str]] = deque()
    begun = time.perf_counter()
    for _ in range(calls):
        under_way.append(submit(TEXT))
        if len(under_way) >= UNDER_WAY:
            under_way.popleft().result()
    while under_way:
        under_way.popleft().result()
    return calls / (time.perf_counter() - begun)


@pytest.mark.parametrize(("group", "peer"), CASES)
def test_calls(benchmark: Any, rounds: int, group: str, peer: str) -> None:
    rates: list[float] = []
    benchmark.group = group
    benchmark.extra_info.update(peer=peer, rates=rates)
    with PEERS[group][peer]() as (call, _):
        benchmark.pedantic(lambda: rates.append(calls_per_second(call)), rounds=rounds)
    assert len(rates) == rounds


@pytest.mark.parametrize(
    ("group", "peer"), [case for case in CASES if case[1] not in ("mp.Pipe by hand", "mp.Manager")]
)
def test_futures(benchmark: Any, rounds: int, group: str, peer: str) -> None:
    rates: list[float] = []
    benchmark.group = f"{group}, {UNDER_WAY} under way"
    benchmark.extra_info.update(peer=peer, rates=rates)
    with PEERS[group][peer]() as (_, submit):
        benchmark.pedantic(lambda: rates.append(futures_per_second(submit)), rounds=rounds)
    assert len(rates) == rounds


def main() -> None:
    """The same in turns, so that whatever else the machine does meets all of them alike."""
    print("| | call: median, best (us) | one of 200: median, best (us) |\n|---|---|---|")
    for peers in PEERS.values():
        with ExitStack() as stack:
            ends = {name: stack.enter_context(make()) for name, make in peers.items()}
            times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ends}
            for _ in range(25):
                for name, (call, submit) in ends.items():
                    times[name][0].append(1e6 / calls_per_second(call, 200))
                    if submit is not None:
                        times[name][1].append(1e6 / futures_per_second(submit, UNDER_WAY))
        for name, measured in times.items():
            cells = [f"{median(t):.0f}, {min(t):.0f}" if t else "" for t in measured]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
