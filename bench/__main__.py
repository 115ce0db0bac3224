"""Run every benchmark once and print the table of ratios."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.table import markdown, rows_of


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="repeats of every case")
    parser.add_argument("-k", default="", help="only the cases that match, as for pytest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pytest", str(Path(__file__).parent), "-q", "--timeout=600",
            f"--rounds={options.rounds}", f"--benchmark-json={report}", "--benchmark-disable-gc",
            "-p", "no:cacheprovider", "--benchmark-columns=median", "-k", options.k,
        ]  # fmt: skip
        status = subprocess.run(command, stdout=sys.stderr).returncode
        if report.exists():
            print(markdown(rows_of(report)))
    return status


if __name__ == "__main__":
    sys.exit(main())
