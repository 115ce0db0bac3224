"""What crash safety costs: the C core built with and without it, in one run.

    python -m bench.recovery_cost [--rounds N]

Both builds of ``bench/core/transfer.c`` run in turn: put and taken by one process, in its own time,
which shows what the work itself costs; and from one process to another, each pinned to a core, where
the way the two fall into step makes the figures scatter. The table gives the medians, their
quartiles, and the share of throughput that recovery costs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MODES = {"mpmc": 0, "spsc": 3}
CASES = [(1, 64, 4_000_000), (64, 64, 8_000_000), (1, 1024, 1_500_000)]


class Case(NamedTuple):
    """One line of the table."""

    processes: int
    mode: str
    batch: int
    size: int
    messages: int


def build(folder: Path, recovery: int) -> Path:
    """The benchmark's program over the core, with or without recovery."""
    program = folder / f"transfer-{recovery}"
    sources = [ROOT / "bench/core/transfer.c", *sorted((ROOT / "csrc").glob("*.c"))]
    subprocess.run(
        ["cc", "-std=c11", "-D_GNU_SOURCE", "-O3", f"-DSQ_RECOVERY={recovery}",
         f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program), "-lpthread"],
        check=True,
    )  # fmt: skip
    return program


def rate(program: Path, case: Case) -> float:
    """Messages a second of one run."""
    numbers = (case.processes, MODES[case.mode], case.batch, case.size, case.messages)
    command = [str(program), *map(str, numbers)]
    return float(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)


def spread(rates: list[float]) -> str:
    """The median and the quartiles, in millions."""
    low, middle, high = (value / 1e6 for value in statistics.quantiles(rates, n=4))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery_cost")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("| processes | mode | messages a call | bytes | without, M/s | with, M/s | cost |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        programs = [build(Path(folder), recovery) for recovery in (0, 1)]
        for processes, mode, numbers in itertools.product((1, 2), MODES, CASES):
            case = Case(processes, mode, *numbers)
            rates: list[list[float]] = [[], []]
            for turn in range(rounds):
                for build_number in (turn % 2, 1 - turn % 2):
                    rates[build_number].append(rate(programs[build_number], case))
            without, with_it = map(statistics.median, rates)
            print(
                f"| {processes} | {mode} | {case.batch} | {case.size} | {spread(rates[0])} | "
                f"{spread(rates[1])} | {1 - with_it / without:+.1%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
