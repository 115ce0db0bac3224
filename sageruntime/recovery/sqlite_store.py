"""SqliteCheckpointStore: checkpoints in an SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagequeue.closing import Closing
from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
    job TEXT NOT NULL, number INTEGER NOT NULL, taken_at REAL NOT NULL, over INTEGER NOT NULL,
    PRIMARY KEY (job, number));
CREATE TABLE IF NOT EXISTS states (
    job TEXT NOT NULL, number INTEGER NOT NULL, task TEXT NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (job, number, task)) WITHOUT ROWID;
"""


class SqliteCheckpointStore(Closing):
    """See :class:`~sageruntime.recovery.CheckpointStore`; any thread may use it.

    Args:
        path: the file, which is made when it is missing.
        keep: how many checkpoints of a job are kept.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        self._lock = threading.Lock()
        with self._errors():
            self._database = sqlite3.connect(self.path, check_same_thread=False)
            # With a write-ahead log a commit is on disk after one write, and readers do not wait.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_SCHEMA)

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        """See :class:`~sageruntime.recovery.CheckpointStore`: one transaction."""
        number = checkpoint.number
        rows = [(job, number, task, state) for task, state in checkpoint.states.items()]
        with self._lock, self._errors(), self._database as database:
            database.execute(
                "INSERT INTO checkpoints VALUES (?, ?, ?, ?)",
                (job, number, checkpoint.taken_at, checkpoint.over),
            )
            database.executemany("INSERT INTO states VALUES (?, ?, ?, ?)", rows)
            for table in ("states", "checkpoints"):
                database.execute(
                    f"DELETE FROM {table} WHERE job = ? AND number <= ?", (job, number - self.keep)
                )

    def latest(self, job: str) -> Checkpoint | None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        with self._lock, self._errors():
            found = self._database.execute(
                "SELECT number, taken_at, over FROM checkpoints WHERE job = ? "
                "ORDER BY number DESC LIMIT 1",
                (job,),
            ).fetchone()
            if found is None:
                return None
            number, taken_at, over = found
            states = self._database.execute(
                "SELECT task, state FROM states WHERE job = ? AND number = ?", (job, number)
            ).fetchall()
        return Checkpoint(number, taken_at, dict(states), bool(over))

    def clear(self, job: str) -> None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        with self._lock, self._errors(), self._database as database:
            for table in ("states", "checkpoints"):
                database.execute(f"DELETE FROM {table} WHERE job = ?", (job,))

    def close(self) -> None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CheckpointError(
                f"the checkpoint store {self.path} cannot be used: {error}; it must be an SQLite "
                "file of ours in a folder that can be written"
            ) from error
