"""What of a queue's memory is in use."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """A snapshot; other participants may change it at any time.

    Attributes:
        slots_held: slots that consumers have claimed and not yet released.
        leases: messages that are claimed and not yet released or rejected.
        chunks_held: chunks that are being written, queued, leased or looked at.
        chunk_bytes_held: their size.
    """

    slots_held: int
    leases: int
    chunks_held: int
    chunk_bytes_held: int
