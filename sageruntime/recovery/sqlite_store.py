"""SqliteCheckpointStore: checkpoints in an SQLite file."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sagequeue.closing import Closing
from sageruntime.core.write_ahead_log import connect_with_log
from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint
from sageruntime.recovery.damage import DamagedCheckpoint, newest_intact

# How long to wait for another connection that writes.
_BUSY_SECONDS = 5.0

# The column `over` is Checkpoint.is_final.
_CHECKPOINTS = """
CREATE TABLE IF NOT EXISTS checkpoints (
    job TEXT NOT NULL, number INTEGER NOT NULL, taken_at REAL NOT NULL, over INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (job, number))
"""

_STATES = """
CREATE TABLE IF NOT EXISTS states (
    job TEXT NOT NULL, number INTEGER NOT NULL, task TEXT NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (job, number, task))
"""


class SqliteCheckpointStore(Closing):
    """Keeps checkpoints in an SQLite file, each in one transaction; any thread may use it.

    If the latest checkpoint was damaged, ``latest`` falls back to the one before. The next ``save``
    renames the damaged table to ``damaged_states_N`` and copies what can be read of it to a new
    one, because writing to a damaged table could damage the rest of the file.

    Args:
        path: the file, which is made when it is missing.
        keep: how many checkpoints of a job are kept.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        self._lock = threading.Lock()
        self._damaged: dict[str, list[int]] = {}
        with self._errors():
            self._database = connect_with_log(self.path, _BUSY_SECONDS)
            self._database.execute(_CHECKPOINTS)
            self._database.execute(_STATES)

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        with self._lock, self._errors():
            if damaged := self._damaged.pop(job, []):
                self._set_states_aside(job, damaged)
            self._write(partial(self._insert, job, checkpoint))

    def latest(self, job: str) -> Checkpoint | None:
        with self._lock, self._errors():
            # One transaction, so that nobody deletes a checkpoint while it is read.
            self._database.execute("BEGIN")
            try:
                checkpoint, self._damaged[job] = newest_intact(
                    job, self._numbers(job), partial(self._read, job)
                )
            finally:
                self._database.rollback()  # a commit fails after a malformed page was met
        return checkpoint

    def clear(self, job: str) -> None:
        with self._lock, self._errors():
            self._write(partial(self._forget, job, self._numbers(job)))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _write(self, write: Callable[[], None]) -> None:
        """Make one transaction, on new states if the present ones turn out to be damaged."""
        try:
            with self._database:
                write()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_states_aside()
            with self._database:
                write()

    def _insert(self, job: str, checkpoint: Checkpoint) -> None:
        number, taken_at = checkpoint.number, checkpoint.taken_at
        row = (job, number, taken_at, checkpoint.is_final, _checksum(checkpoint))
        self._database.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?)", row)
        states = [(job, number, task, state) for task, state in checkpoint.states.items()]
        self._database.executemany("INSERT INTO states VALUES (?, ?, ?, ?)", states)
        self._forget(job, self._numbers(job)[self.keep :])

    def _numbers(self, job: str) -> list[int]:
        """The numbers of a job's checkpoints, the latest first."""
        rows = self._database.execute(
            "SELECT number FROM checkpoints WHERE job = ? ORDER BY number DESC", (job,)
        )
        return [number for (number,) in rows]

    def _forget(self, job: str, numbers: Sequence[int]) -> None:
        for table in ("states", "checkpoints"):
            self._database.executemany(
                f"DELETE FROM {table} WHERE job = ? AND number = ?",
                [(job, number) for number in numbers],
            )

    def _read(self, job: str, number: int) -> Checkpoint:
        what = f"checkpoint {number} of job {job} in {self.path} is damaged"
        try:
            taken_at, is_final, checksum = self._database.execute(
                "SELECT taken_at, over, checksum FROM checkpoints WHERE job = ? AND number = ?",
                (job, number),
            ).fetchone()
            # as bytes, because a damaged name may be no text
            rows = self._database.execute(
                "SELECT CAST(task AS BLOB), state FROM states WHERE job = ? AND number = ?",
                (job, number),
            ).fetchall()
            states = {task.decode(): state for task, state in rows}
            checkpoint = Checkpoint(number, taken_at, states, bool(is_final))
            intact = checksum == _checksum(checkpoint)
        except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, sqlite3.Error) and not _is_damage(error):
                raise
            raise DamagedCheckpoint(f"{what}: {error}") from error
        if not intact:
            raise DamagedCheckpoint(f"{what}: its checksum is not that of its content")
        return checkpoint

    def _set_states_aside(self, job: str = "", damaged: Sequence[int] = ()) -> None:
        """Begin a new table of states, and forget these damaged checkpoints of a job."""
        # Other damaged ones stay without states, so that their jobs do not begin from the start.
        unreadable = [each for each in self._all() if not self._is_intact(*each)]
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            (count,) = database.execute(
                "SELECT count(*) FROM sqlite_master WHERE name GLOB 'damaged_states_*'"
            ).fetchone()
            aside = f"damaged_states_{count + 1}"
            database.execute(f"ALTER TABLE states RENAME TO {aside}")
            database.execute(_STATES)
            self._forget(job, damaged)
            copied = [each for each in self._all() if each not in unreadable]
            database.executemany(
                f"INSERT INTO states SELECT * FROM {aside} WHERE job = ? AND number = ?", copied
            )

    def _all(self) -> list[tuple[str, int]]:
        return self._database.execute("SELECT job, number FROM checkpoints").fetchall()

    def _is_intact(self, job: str, number: int) -> bool:
        try:
            self._read(job, number)
        except DamagedCheckpoint:
            return False
        return True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CheckpointError(
                f"the checkpoint store {self.path} cannot be used: {error}; it must be an SQLite "
                "file of ours in a folder that can be written. Name another one, or restore this "
                "one from a copy"
            ) from error


def _checksum(checkpoint: Checkpoint) -> int:
    """CRC-32 of all of it."""
    head = (checkpoint.number, checkpoint.taken_at, checkpoint.is_final)
    checksum = zlib.crc32(repr(head).encode())
    for task, state in sorted(checkpoint.states.items()):
        checksum = zlib.crc32(repr((task, len(state))).encode(), checksum)
        checksum = zlib.crc32(state, checksum)
    return checksum


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is malformed; subclasses say that it is locked, that it is full, or such."""
    return type(error) is sqlite3.DatabaseError
