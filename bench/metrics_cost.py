"""What metrics cost: the same job with them and without, in one run.

    python -m bench.metrics_cost [--rounds N]

With them, a job is measured for a listener at every ``monitoring_interval`` of 0.2 s. Without, the
worker loop is what it would be if nothing were measured: it counts packets, and that is all. Rounds
with and without take turns; the table gives the medians of packets a second and of CPU time a
packet, of all processes together, and of the ratios of each two rounds that followed one another,
with their quartiles. Rates scatter where others use the machine; CPU time does so less, and a loop
that is short of it is slower by as much.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from sageruntime.task.hosted_task import HostedTask
from sageruntime.task.mailbox_worker import MailboxWorker
from sageruntime.task.source_worker import SourceWorker

from sagequeue.errors import Empty
from sageruntime import BaseOperator, OperatorFactory, Packet, Pipeline, SinkOperator
from sageruntime.communication.router import Message, PacketBatch, base_router
from sageruntime.factory.task_factory import Host
from sageruntime.operator import BatchOperator
from sageruntime.operator.results import Results
from sageruntime.task.local_task import LocalTask


@contextmanager
def without_metrics() -> Iterator[None]:
    """The worker loops of this process without all that measures them."""

    def take(self: Any) -> list[Message]:
        try:
            messages: list[Message] = self._inbox.take(block=False)
        except Empty:
            self._flush()
            messages = self._inbox.take(block=True)
        return messages

    def flush(self: Any) -> None:
        self.router.flush()
        if not self.coordinated:
            self._inbox.done()
        self._flushed_at = time.monotonic()

    def handle(self: Any, batch: PacketBatch) -> None:
        packets = batch.packets
        if self._hung.due:
            packets = self._hung.rest_of(packets)
        if not self._decodes:
            index = batch.input_index
            for packet in packets:
                if packet.input_index != index:
                    packet.input_index = index
        self.metrics.processed += len(packets) - self.calls.work_on(packets)

    def send(self: Any) -> None:
        gathered = self._gathered
        packets = [gathered.popleft() for _ in range(len(gathered))]
        self.metrics.processed += len(packets)
        self.router.route_batch(packets)

    with ExitStack() as stack:
        for where, name, plain in (
            (MailboxWorker, "_take", take),
            (MailboxWorker, "_flush", flush),
            (MailboxWorker, "_handle", handle),
            (SourceWorker, "_send", send),
            (HostedTask, "get_status", LocalTask.get_status),
            (base_router, "time", SimpleNamespace(perf_counter=float)),
        ):
            stack.enter_context(patch.object(where, name, plain))
        yield


class Idle(BaseOperator):
    """Does nothing with each packet.

    Args:
        unmeasured_in: the process that measures nothing, and whose children measure nothing.
    """

    def __init__(self, unmeasured_in: int | None) -> None:
        if unmeasured_in not in (None, os.getpid()):
            without_metrics().__enter__()

    def process(self, packet: Packet) -> Results:
        """See :class:`BaseOperator`."""
        return packet

    def finish(self) -> Results:
        """This process, and its CPU time."""
        return Packet((os.getpid(), time.process_time()))


class IdleBatch(Idle, BatchOperator):
    """Does nothing with each batch."""

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        return packets


class Stopwatch(SinkOperator, BatchOperator):
    """Tells how many packets came a second, from the first batch to the last, and who used what."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.used: tuple[int, float] | None = None

    def process_batch(self, packets: list[Packet]) -> Results:
        """See :class:`BatchOperator`."""
        self.arrivals.append((time.perf_counter(), len(packets)))
        if isinstance(packets[-1].payload, tuple):
            self.used = packets[-1].payload
        return None

    def result(self) -> Any:
        """See :class:`SinkOperator`."""
        (first, _), *_, (last, _) = self.arrivals
        return sum(count for _, count in self.arrivals[1:]) / (last - first), self.used


class Round(NamedTuple):
    """What one run took."""

    packets_per_second: float
    cpu_seconds: float


class Case(NamedTuple):
    """One line of the table."""

    name: str
    host: Host
    operator: type[Idle]
    packets: int


CASES = (
    Case("threads, packet by packet", "thread", Idle, 1_200_000),
    Case("threads, batch by batch", "thread", IdleBatch, 1_600_000),
    Case("through a process and back", "process", Idle, 800_000),
)


def run(case: Case, measured: bool) -> Round:
    """Run the job once."""
    unmeasured_in = None if measured else os.getpid()
    pipeline = Pipeline("cost").source(range(case.packets))
    pipeline.map(OperatorFactory(case.operator, unmeasured_in), on=case.host).sink(Stopwatch)
    begun = time.process_time()
    if measured:
        with pipeline.start() as job:
            job.add_metrics_listener(lambda metrics: None)
            rate, (pid, used) = job.result().sink_result
    else:
        with without_metrics():
            rate, (pid, used) = pipeline.run().sink_result
    cpu_seconds = time.process_time() - begun
    if pid != os.getpid():
        cpu_seconds += used
    return Round(rate, cpu_seconds)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics_cost")
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    print("| one hop, no-op operator | packets/s without | with | cost | CPU us a packet | cost |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        done: dict[bool, list[Round]] = {False: [], True: []}
        run(case, measured=True)  # warm
        for turn in range(rounds):
            for measured in (turn % 2 == 0, turn % 2 == 1):
                done[measured].append(run(case, measured))
        rates, cpu = ([[one[field] for one in done[which]] for which in done] for field in (0, 1))
        print(
            f"| {case.name} | {statistics.median(rates[0]):,.0f} | "
            f"{statistics.median(rates[1]):,.0f} | "
            f"{spread([1 - with_ / without for without, with_ in zip(*rates)])} | "
            f"{statistics.median(cpu[0]) / case.packets * 1e6:.3f} | "
            f"{spread([with_ / without - 1 for without, with_ in zip(*cpu)])} |",
            flush=True,
        )
    return 0


def spread(costs: list[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(costs, n=4)
    return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
