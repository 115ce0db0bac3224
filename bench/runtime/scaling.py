"""Four stages that need a core each: in four processes, and all in one."""

from __future__ import annotations

import os

from bench.runtime.figure import Figure, Row, in_turn, ratio_of
from bench.runtime.stages import Numbers, Stopwatch, rate
from sageruntime import BaseOperator, OperatorFactory, Packet, Pipeline
from sageruntime.factory.task_factory import Host
from sageruntime.operator.results import Results

PACKETS = 20_000
STAGES = 4
STEPS = 400
LEAST_RATIO = 1.7


class Compute(BaseOperator):
    """Iterates a linear congruence in pure Python: nothing but a core is needed, and the GIL."""

    def process(self, packet: Packet) -> Results:
        """See :class:`BaseOperator`."""
        packet.payload = computed(packet.payload)
        return packet


def computed(number: int) -> int:
    """The number after so many steps."""
    for _ in range(STEPS):
        number = (number * 1_664_525 + 1_013_904_223) & 0xFFFF_FFFF
    return number


def figure(rounds: int) -> Figure:
    """Measure it."""
    cores = len(os.sched_getaffinity(0))
    samples = in_turn(
        {"processes": lambda: job_rate("process"), "one": lambda: job_rate("thread")}, rounds
    )
    rows = [
        Row(f"{STAGES} stages in {STAGES} processes", samples["processes"], "packets/s"),
        Row(
            "the same stages in one process", samples["one"], "packets/s",
            ratio_of(samples["processes"], samples["one"]), least=LEAST_RATIO,
        ),
    ]  # fmt: skip
    return Figure(f"CPU-bound stages on {cores} cores", rows)


def job_rate(on: Host) -> float:
    """Packets a second through all stages."""
    pipeline = Pipeline("scaling").source(OperatorFactory(Numbers, PACKETS))
    for _ in range(STAGES):
        pipeline.map(Compute, on=on, queue_maxsize=1000)
    return rate(pipeline.sink(Stopwatch).run().sink_result, PACKETS)
