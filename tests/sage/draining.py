"""What a queue still holds."""

from __future__ import annotations

from typing import Any

from sagequeue import Empty, SageQueue


def drain(queue: SageQueue[Any]) -> list[Any]:
    """Take all that is there, one item a call."""
    items = []
    while True:
        try:
            items.append(queue.get_nowait())
        except Empty:
            return items
