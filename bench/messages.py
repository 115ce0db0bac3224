"""What is sent: three kinds of message, and how many make one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A message and how many of it one round sends; slow peers send a fraction."""

    message: Any
    count: int
    batch: int


def workloads() -> dict[str, Workload]:
    """By name; arrays are made anew, so that every process has its own."""
    return {
        "bytes 64 B": Workload(b"x" * 64, 300_000, 100),
        "dict": Workload({"id": 17, "name": "message", "value": 1.5}, 120_000, 100),
        "numpy 1 MiB": Workload(np.arange(1 << 20, dtype=np.uint8), 1_500, 10),
    }


def same(one: Any, other: Any) -> bool:
    """Whether a message came out as it went in."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    return bool(one == other)
