"""Measure another version of the runtime and this one in turn, and print the ratios.

    python -m bench.against PATH [CASE ...] [--rounds N]

``PATH`` is a checkout of the other version, with its extensions built in place. Every case runs in
processes of its own, once a round for each version, there and back again. So whatever else the
machine does meets both. A ratio is the median of those of the rounds; above 1 this version is
slower or larger. Where others use the machine, instructions and CPU time tell most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("sagequeue", "sageruntime")
CASES = ("instructions", "threads", "process", "actor", "restart", "checkpoints", "memory")
TIMEOUT = 600


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.against")
    parser.add_argument("path", type=Path, help="the other version")
    parser.add_argument("cases", nargs="*", metavar="|".join(CASES), help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of every case")
    options = parser.parse_args()
    if not list(options.path.glob("sagequeue/_*.so")):
        parser.error(f"no extensions in {options.path}; run `python setup.py build_ext --inplace`")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown cases: {', '.join(unknown)}; expected some of {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        other = tree(Path(folder) / "other", options.path.resolve())
        ours = tree(Path(folder) / "ours", ROOT)
        print("| less is better | other | this | this / other | min - max |\n|---|---|---|---|---|")
        for case in options.cases or CASES:
            samples = compare(case, other, ours, options.rounds)
            print(*rows(samples[other], samples[ours]), sep="\n", flush=True)
    print(f"load of the last minute: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return 0


def tree(folder: Path, version: Path) -> Path:
    """A folder with the packages of a version and these benchmarks."""
    folder.mkdir()
    for package in PACKAGES:
        (folder / package).symlink_to(version / package)
    (folder / "bench").symlink_to(ROOT / "bench")
    return folder


def compare(case: str, other: Path, ours: Path, rounds: int) -> dict[Path, list[dict[str, float]]]:
    """The measures of each round of both versions."""
    samples: dict[Path, list[dict[str, float]]] = {other: [], ours: []}
    for turn in range(rounds):
        for version in (other, ours) if turn % 2 == 0 else (ours, other):
            samples[version].append(measure(case, version))
    return samples


def measure(case: str, version: Path) -> dict[str, float]:
    """Run one case of one version."""
    run = subprocess.run(
        [sys.executable, "-m", "bench.against.cases", case], cwd=version, check=True,
        env={**os.environ, "PYTHONPATH": str(version)}, stdout=subprocess.PIPE, timeout=TIMEOUT,
    )  # fmt: skip
    measures: dict[str, float] = json.loads(run.stdout)
    return measures


def rows(other: list[dict[str, float]], ours: list[dict[str, float]]) -> list[str]:
    """The lines of the table for one case."""
    lines = []
    for name in ours[0]:
        before, after = [each[name] for each in other], [each[name] for each in ours]
        ratios = [new / old for old, new in zip(before, after)]
        lines.append(
            f"| {name} | {statistics.median(before):,.4g} | {statistics.median(after):,.4g} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
