"""DeadLetterStore: dead letters in a SQLite file."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from sagequeue.closing import Closing
from sageruntime.communication.router import Packet
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.errors import DeadLetterStoreError

# Tells our files from those of other programs, and their versions from each other.
_APPLICATION = 0x53474451
_VERSION = 2

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    stage TEXT NOT NULL,
    task TEXT NOT NULL,
    is_result INTEGER NOT NULL,
    packet BLOB,
    packet_id TEXT,
    payload TEXT NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    failed_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 1,
    raw BLOB
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_FROM_VERSION_1 = f"""
BEGIN IMMEDIATE;
ALTER TABLE letters ADD COLUMN raw BLOB;
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_SHOWN = (
    "id, job, stage, task, is_result, packet IS NOT NULL, packet_id, payload, error, traceback, "
    "failed_at, tries"
)

# How long to wait for another process that writes to the same file.
_BUSY_SECONDS = 30.0

_PAYLOAD_CHARACTERS = 2000


@dataclass(frozen=True)
class StoredLetter:
    """A dead letter in a store, as far as it can be told without its packet.

    Attributes:
        id: its number in the store.
        job, stage, task: who gave the packet up.
        is_result: whether the packet is a result of the stage that could not be sent on, and not
            one that its operator failed on.
        replayable: whether the packet is kept, and not only its ``repr``.
        packet_id: the packet's, None for one that could not be decoded.
        payload: the ``repr`` of the payload, or of the raw bytes of a packet that could not be
            decoded; at most 2000 characters.
        error: the error's type and message, of the last try.
        traceback: where it was raised.
        failed_at: when, in nanoseconds since the epoch.
        tries: how often the packet was given up, the first time included.
    """

    id: int
    job: str
    stage: str
    task: str
    is_result: bool
    replayable: bool
    packet_id: int | None
    payload: str
    error: str
    traceback: str
    failed_at: int
    tries: int


class DeadLetterStore(Closing):
    """Dead letters in a SQLite file, which several jobs may share.

    One thread uses a store at a time. Reading letters unpickles nothing but what :meth:`packet`
    is asked for.

    Args:
        path: the file.
        create: whether to make a file that is not there.

    Raises:
        DeadLetterStoreError: there is no such file, or it is another program's.
    """

    def __init__(self, path: Path | str, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise DeadLetterStoreError(
                f"{self.path}: there is no such file; a job with dead_letters.file makes it"
            )
        with self._errors():
            self._database = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, check_same_thread=False
            )
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def add(self, job: str, letters: Iterable[DeadLetter]) -> None:
        """Keep letters of a job, all or none."""
        with self._transaction():
            self._insert(job, letters)

    def letters(
        self, job: str | None = None, ids: Collection[int] | None = None
    ) -> list[StoredLetter]:
        """The letters in the order they came, of one job only, or of some ids only.

        Raises:
            DeadLetterStoreError: there is no letter of one of the ids.
        """
        with self._errors():
            rows = self._database.execute(
                f"SELECT {_SHOWN} FROM letters WHERE ? IN (job, '') ORDER BY id", (job or "",)
            ).fetchall()
        letters = [_letter(row) for row in rows]
        if ids is None:
            return letters
        missing = sorted(set(ids) - {letter.id for letter in letters})
        if missing:
            raise DeadLetterStoreError(
                f"{self.path} has no dead letter {', '.join(map(str, missing))}"
                f"{f' of job {job}' if job else ''}; sagert dlq ls {self.path} shows those it has"
            )
        return [letter for letter in letters if letter.id in ids]

    def packet(self, letter: StoredLetter) -> Packet:
        """The packet of a letter. Unpickling runs code: the file has to be trusted.

        Raises:
            DeadLetterStoreError: the packet is not kept, or cannot be unpickled here.
        """
        with self._errors():
            row = self._database.execute(
                "SELECT packet FROM letters WHERE id = ?", (letter.id,)
            ).fetchone()
        if row is None or row[0] is None:
            raise DeadLetterStoreError(
                f"{self.path}: the packet of letter {letter.id} is not kept: it could not be "
                "pickled or decoded"
            )
        try:
            packet: Packet = pickle.loads(row[0])
        except Exception as error:  # whatever the payload's class raises
            raise DeadLetterStoreError(
                f"{self.path}: the packet of letter {letter.id} cannot be unpickled here: {error}"
            ) from error
        return packet

    def raw(self, letter: StoredLetter) -> bytes | None:
        """The bytes of a packet that could not be decoded, as it travelled; None for any other."""
        with self._errors():
            row = self._database.execute(
                "SELECT raw FROM letters WHERE id = ?", (letter.id,)
            ).fetchone()
        raw: bytes | None = row and row[0]
        return raw

    def remove(self, ids: Collection[int]) -> None:
        """Remove letters.

        Raises:
            DeadLetterStoreError: there is no letter of one of the ids; none is removed then.
        """
        self.letters(ids=ids)
        with self._transaction():
            self._delete(ids)

    def record_replay(
        self,
        job: str,
        gone: Collection[int],
        again: Mapping[int, DeadLetter],
        new: Iterable[DeadLetter],
    ) -> None:
        """Write down what came of a replay, all or nothing.

        Args:
            job: the job it was of.
            gone: letters whose packets went through; they are removed.
            again: letters whose packets failed again, with how; their tries are counted.
            new: letters of stages further on.
        """
        with self._transaction():
            self._delete(gone)
            self._database.executemany(
                "UPDATE letters SET task = ?, error = ?, traceback = ?, failed_at = ?, "
                "tries = tries + 1 WHERE id = ?",
                [
                    (letter.task, letter.error, letter.traceback, letter.failed_at, number)
                    for number, letter in again.items()
                ],
            )
            self._insert(job, new)

    def close(self) -> None:
        """Give the file back; may be repeated."""
        self._database.close()

    def _open(self) -> None:
        execute = self._database.execute
        execute("BEGIN")  # another process may be making the file
        (application,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
        execute("COMMIT")
        if not application and not tables:
            self._database.executescript(_SCHEMA)
        elif (application, version) == (_APPLICATION, 1):
            self._database.executescript(_FROM_VERSION_1)
        elif (application, version) != (_APPLICATION, _VERSION):
            raise DeadLetterStoreError(
                f"{self.path} is no file of dead letters of this version; name another file"
            )

    def _insert(self, job: str, letters: Iterable[DeadLetter]) -> None:
        self._database.executemany(
            "INSERT INTO letters (job, stage, task, is_result, packet, packet_id, payload, error, "
            "traceback, failed_at, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(job, *_row(letter)) for letter in letters],
        )

    def _delete(self, ids: Collection[int]) -> None:
        self._database.executemany("DELETE FROM letters WHERE id = ?", [(one,) for one in ids])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), self._database:
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DeadLetterStoreError(f"{self.path}: {error}") from error


def _row(letter: DeadLetter) -> tuple[Any, ...]:
    packet = letter.packet
    if packet is None:
        payload = "" if letter.raw is None else repr(letter.raw)
    else:
        payload = packet.payload if letter.is_repr else repr(packet.payload)
    return (
        letter.stage,
        letter.task,
        letter.is_result,
        None if packet is None or letter.is_repr else _dumps(packet),
        None if packet is None else str(packet.id),  # it has 64 bits, and SQLite's integers 63
        payload[:_PAYLOAD_CHARACTERS],
        letter.error,
        letter.traceback,
        letter.failed_at,
        letter.raw,
    )


def _letter(row: tuple[Any, ...]) -> StoredLetter:
    number, job, stage, task, is_result, kept, packet_id, *rest = row
    packet_id = None if packet_id is None else int(packet_id)
    return StoredLetter(number, job, stage, task, bool(is_result), bool(kept), packet_id, *rest)


def _dumps(packet: Packet) -> bytes | None:
    """The packet as bytes, None if it does not pickle.

    Classes go by name where they can: after the job's code was corrected, they are the new ones.
    """
    for dumps in (pickle.dumps, cloudpickle.dumps):
        try:
            data: bytes = dumps(packet)
        except Exception:  # whatever the payload's class raises
            continue
        return data
    return None
