"""SQLite's write-ahead log: a commit is on disk after one write, and readers do not wait."""

from __future__ import annotations

import sqlite3
import time

_RETRY_SECONDS = 0.01


def use_write_ahead_log(database: sqlite3.Connection, seconds: float) -> None:
    """Let a database keep a write-ahead log.

    While another connection is changing the same, SQLite says at once that the database is locked,
    whatever its busy timeout is; so this tries again.

    Args:
        database: a connection.
        seconds: how long to try.

    Raises:
        sqlite3.OperationalError: it is locked for longer, or cannot be written.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)
