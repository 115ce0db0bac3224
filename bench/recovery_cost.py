"""What crash safety costs: the C core built with and without it, in one run.

    python -m bench.recovery_cost [--rounds N]

Both builds run in turn: put and taken by one process, in its own time; and from one process to
another, each pinned to a core. First Python's ``put`` and ``get`` (``bench/core/put_get.py``),
which is what users have; then the bare core (``bench/core/transfer.c``), where a message costs
25 ns and less. The tables give the medians, their quartiles, and the share of throughput that
recovery costs: the median of the ratios of each two runs that followed one another, for how far
apart the two cores of a virtual machine are may change between one pair and the next.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
MODES = {"mpmc": 0, "spsc": 3}
CASES = [(1, 64, 4_000_000), (64, 64, 8_000_000), (1, 1024, 1_500_000)]


PYTHON_CASES = [
    (1, 64, 2_000_000), (1, 1024, 1_000_000), (2, 64, 2_000_000), (2, 1024, 1_000_000),
]  # fmt: skip


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


def build_package(folder: Path, recovery: int) -> Path:
    """The Python package, with or without recovery; the folder to be on its path."""
    sources, installed = folder / f"sources-{recovery}", folder / f"installed-{recovery}"
    left_out = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "__pycache__")
    shutil.copytree(ROOT, sources, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--target", str(installed), str(sources)],
        env={**os.environ, "CFLAGS": f"-DSQ_RECOVERY={recovery}"}, check=True,
    )  # fmt: skip
    return installed


def rate(program: Path, case: Case) -> float:
    """Messages a second of one run of the core."""
    numbers = (case.processes, MODES[case.mode], case.batch, case.size, case.messages)
    return _rate([str(program), *map(str, numbers)])


def rate_of_python(installed: Path, case: tuple[int, int, int]) -> float:
    """Messages a second of one run of the package."""
    command = [sys.executable, str(ROOT / "bench/core/put_get.py"), *map(str, case)]
    return _rate(command, PYTHONPATH=str(installed))


def _rate(command: list[str], **environment: str) -> float:
    run = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, timeout=300
    )
    return float(run.stdout)


def compare(rounds: int, rate_of: Callable[[int], float]) -> str:
    """The last columns of a line: the rate without and with recovery, and what that costs."""
    rates: list[list[float]] = [[], []]
    for turn in range(rounds):
        for recovery in (turn % 2, 1 - turn % 2):
            rates[recovery].append(rate_of(recovery))
    cost = statistics.median(1 - with_it / without for without, with_it in zip(*rates))
    return f"{spread(rates[0])} | {spread(rates[1])} | {cost:+.1%} |"


def spread(rates: list[float]) -> str:
    """The median and the quartiles, in millions."""
    low, middle, high = (value / 1e6 for value in statistics.quantiles(rates, n=4))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery_cost")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        packages = [build_package(Path(folder), recovery) for recovery in (0, 1)]
        print("| processes | bytes | without, M/s | with, M/s | cost |\n|---|---|---|---|---|")
        for python_case in PYTHON_CASES:
            ends = compare(
                rounds, lambda recovery, case=python_case: rate_of_python(packages[recovery], case)
            )
            print(f"| {python_case[0]} | {python_case[1]} | {ends}", flush=True)
        programs = [build(Path(folder), recovery) for recovery in (0, 1)]
        print("\n| processes | mode | messages a call | bytes | without, M/s | with, M/s | cost |")
        print("|---|---|---|---|---|---|---|")
        for processes, mode, numbers in itertools.product((1, 2), MODES, CASES):
            case = Case(processes, mode, *numbers)
            ends = compare(rounds, lambda recovery, case=case: rate(programs[recovery], case))
            print(f"| {processes} | {mode} | {case.batch} | {case.size} | {ends}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
