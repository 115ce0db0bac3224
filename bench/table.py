"""The table of one run: medians, and our ratio to each peer."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

OURS = (
    "SageQueue mpmc",
    "ObjectQueue",
    "SageQueue, 64 KiB",
    "sageruntime",
    "sageruntime, functions on threads",
    "service on a process",
    "service on a thread",
)


@dataclass(frozen=True)
class Row:
    """One peer in one group; the rate is per second."""

    group: str
    peer: str
    rate: float
    lowest: float
    highest: float
    ours: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.ours / self.rate


def rows_of(report: Path) -> list[Row]:
    """Read pytest-benchmark's JSON."""
    groups: dict[str, dict[str, list[float]]] = {}
    for case in json.loads(report.read_text())["benchmarks"]:
        groups.setdefault(case["group"], {})[case["extra_info"]["peer"]] = case["extra_info"][
            "rates"
        ]
    rows = []
    for group, peers in groups.items():
        ours = next(statistics.median(peers[name]) for name in OURS if name in peers)
        rows += [
            Row(group, peer, statistics.median(rates), min(rates), max(rates), ours)
            for peer, rates in peers.items()
        ]
    return rows


def markdown(rows: list[Row]) -> str:
    """The table as it stands in the README."""
    lines = ["| | | messages/s (median; min - max) | ours is |", "|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.peer in OURS else f"{row.ratio:.1f}x"
        lines.append(
            f"| {row.group} | {row.peer} | {row.rate:,.0f} "
            f"({row.lowest:,.0f} - {row.highest:,.0f}) | {ratio} |"
        )
    return "\n".join(lines)
