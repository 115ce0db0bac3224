"""SQLite's write-ahead log: a commit is on disk after one write, and readers do not wait."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

_RETRY_SECONDS = 0.01


def connect_with_log(path: str | Path, seconds: float) -> sqlite3.Connection:
    """Open a database that keeps a write-ahead log, for any thread.

    While another connection begins the log, SQLite says at once that the database is locked,
    whatever its busy timeout is; so this tries again.

    Args:
        path: the file; it is made if there is none.
        seconds: how long to wait for another connection that writes, now and later.

    Raises:
        sqlite3.OperationalError: it is locked for longer, or cannot be written.
    """
    database = sqlite3.connect(path, timeout=seconds, check_same_thread=False)
    deadline = time.monotonic() + seconds
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return database
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)
