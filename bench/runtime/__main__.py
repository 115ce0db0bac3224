"""Measure the runtime and print a table for each figure; 1 if a promise is not kept."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.runtime.figure import Figure

FIGURES = (
    "hop",
    "process",
    "actors",
    "scaling",
    "wordcount",
    "restart",
    "memory",
    "backpressure",
    "metrics",
)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.runtime", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="|".join(FIGURES), help="all by default")
    parser.add_argument("--rounds", type=int, default=7, help="repeats of every case")
    parser.add_argument("--packets", type=int, default=1_000_000, help="that flow, for memory")
    parser.add_argument("--plot", type=Path, help="a file for the picture, for backpressure")
    parser.add_argument("--markdown", action="store_true", help="tables as in docs/benchmarks.md")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(
            f"unknown figures: {', '.join(unknown)}; expected some of {', '.join(FIGURES)}"
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    kept = True
    for name in options.figures or FIGURES:
        done = measure(name, options)
        kept = kept and done.kept
        if options.markdown:
            print(*done.markdown(), sep="\n", flush=True)
        else:
            console.print(done.table())
    print(f"load of the last minute: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return 0 if kept else 1


def measure(name: str, options: argparse.Namespace) -> Figure:
    """Measure a figure by its name."""
    of_figure: dict[str, Any] = {"memory": options.packets, "backpressure": options.plot}
    # here: what one figure imports is not to cost another memory
    module = import_module(f"bench.runtime.{name}")
    figure: Figure = module.figure(of_figure.get(name, options.rounds))
    return figure


if __name__ == "__main__":
    sys.exit(main())
