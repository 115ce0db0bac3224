"""SqliteSink: rows in an SQLite file, each exactly once."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.core.write_ahead_log import connect_with_log
from sageruntime.operator.base_operator import BatchOperator
from sageruntime.operator.results import Results
from sageruntime.operator.sink import SinkOperator

# How many marks of each instance are kept. A run needs its mark for as long as it has a checkpoint,
# and runs of one job may take turns if each has a checkpoint store of its own.
_KEPT_MARKS = 64

# How long to wait for another connection that writes.
_BUSY_SECONDS = 60.0

_MARKS = "CREATE TABLE IF NOT EXISTS sageruntime_marks (run TEXT PRIMARY KEY, transactions INTEGER)"

Transaction = tuple[int, list[Any]]
"""Its number and its rows."""


class SqliteSink(SinkOperator, BatchOperator):
    """Executes a statement with each payload.

    In a job with checkpoints the rows of a checkpoint become one transaction, which is committed
    once the checkpoint is complete, together with a mark by which a later attempt sees that it was:
    each row is written exactly once, whatever is killed. The table ``sageruntime_marks`` has the
    marks of the last 64 runs of each instance. Without checkpoints each batch is a transaction, and
    rows may be repeated after a restart.

    Args:
        path: the file.
        statement: such as ``"INSERT INTO counts VALUES (?, ?)"``; payloads are tuples, or dicts
            for named parameters.
        schema: a script that makes the tables; it is executed at every start.
    """

    def __init__(self, path: str | Path, statement: str, schema: str = "") -> None:
        self.path = str(path)
        self.statement = statement
        self.schema = schema
        self._run = ""
        self._rows: list[Any] = []
        self._pending: list[Transaction] = []
        self._transactions = 0
        self._written = 0

    def open(self) -> None:
        self._database = connect_with_log(self.path, _BUSY_SECONDS)
        self._database.executescript(f"{self.schema};{_MARKS}")
        ctx = self.ctx
        self._run = f"{ctx.job}/{ctx.stage}/{ctx.index}/{secrets.token_hex(8)}"

    def process_batch(self, packets: list[Packet]) -> Results:
        rows = [packet.payload for packet in packets]
        if self.task.coordinated:
            self._rows += rows
        else:
            self._commit([(0, rows)])
        return None

    def snapshot(self) -> tuple[str, int, int, list[Transaction]]:
        """The transactions to be committed when the checkpoint is complete."""
        self._transactions += 1
        self._pending.append((self._transactions, self._rows))
        self._rows = []
        return self._run, self._transactions, self._written, self._pending

    def restore(self, state: tuple[str, int, int, list[Transaction]]) -> None:
        """Commit what a complete checkpoint holds, unless that has been done."""
        self._run, self._transactions, self._written, self._pending = state
        mark = self._database.execute(
            "SELECT transactions FROM sageruntime_marks WHERE run = ?", (self._run,)
        ).fetchone()
        done = mark[0] if mark else 0
        if done > self._transactions:
            # The job fell back to an older checkpoint: the same numbers will stand for other rows.
            with self._database:
                self._mark(self._transactions)
        self._written += sum(len(rows) for number, rows in self._pending if number <= done)
        self._pending = [pair for pair in self._pending if pair[0] > done]
        self.checkpoint_completed()

    def rescale(
        self, states: list[tuple[str, int, int, list[Transaction]]]
    ) -> tuple[str, int, int, list[Transaction]]:
        """Commit what some of the former instances had to write, and count it as written."""
        written = 0
        for state in states[self.ctx.index :: self.ctx.parallelism]:
            former = SqliteSink(self.path, self.statement, self.schema)
            former._database = self._database
            former.restore(state)
            written += former._written
        return self._run, 0, written, []

    def checkpoint_completed(self) -> None:
        if self._pending:
            self._commit(self._pending)
            self._pending = []

    def result(self) -> int:
        """How many rows this instance has written, or will once the job's end is kept."""
        return self._written + len(self._rows) + sum(len(rows) for _, rows in self._pending)

    def close(self) -> None:
        self._database.close()

    def _commit(self, transactions: list[Transaction]) -> None:
        with self._database as database:
            for _, rows in transactions:
                database.executemany(self.statement, rows)
                self._written += len(rows)
            last, _ = transactions[-1]
            if last:
                self._mark(last)

    def _mark(self, number: int) -> None:
        """Note that this run has committed so far, and delete the oldest marks of its instance."""
        self._database.execute(
            "INSERT OR REPLACE INTO sageruntime_marks VALUES (?, ?)", (self._run, number)
        )
        instance = self._run.rpartition("/")[0]
        # A mark that is replaced gets a new rowid, so these are in the order of their commits.
        self._database.execute(
            "DELETE FROM sageruntime_marks WHERE rowid IN (SELECT rowid FROM sageruntime_marks "
            "WHERE run > ? AND run < ? ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
            (f"{instance}/", f"{instance}0", _KEPT_MARKS),  # "0" follows "/"
        )
