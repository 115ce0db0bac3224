"""A job with checkpoints that is started again with other numbers of instances."""

from __future__ import annotations

import multiprocessing
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sageruntime import (
    IDLE,
    CheckpointOptions,
    CountByKey,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    SqliteSink,
    TaskContext,
    TaskOptions,
)
from sageruntime.errors import JobFailed
from sageruntime.operator import IterableSource
from sageruntime.recovery.checkpoint import Checkpoint
from sageruntime.recovery.rescaling import assign_states
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it

NUMBERS = 20_000
KEYS = 97
SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER)"


def held(go_on: Path) -> Callable[[], Iterator[Any]]:
    """Numbers up to the half, and the rest once that file is there."""

    def read() -> Iterator[Any]:
        for number in range(NUMBERS):
            yield number
            while number >= NUMBERS // 2 and not go_on.exists():
                time.sleep(0.01)
                yield IDLE

    return read


class Broken(CountByKey):
    """Fails for good once, in the middle of the second half."""

    def __init__(self, broken: Path) -> None:
        super().__init__()
        self.broken = broken

    def process(self, packet: Packet) -> Any:
        if packet.payload > NUMBERS * 3 // 4 and not self.broken.exists():
            self.broken.touch()
            raise RuntimeError("broken")
        return super().process(packet)


def interrupt(job: Any, store: Path, name: str) -> None:
    """Leave off when some has been processed and kept."""
    with job, SqliteCheckpointStore(store) as kept:
        while (latest := kept.latest(name)) is None or latest.number < 3:
            assert not job.wait(0.01)


@pytest.mark.parametrize("on", ["thread", "process"])
@pytest.mark.parametrize(("before", "after"), [((1, 2, 1), (2, 3, 2)), ((3, 3, 2), (2, 1, 1))])
def test_counts_are_those_of_an_unbroken_run(
    on: Any, before: tuple[int, ...], after: tuple[int, ...], tmp_path: Path
) -> None:
    go_on, broken = tmp_path / "go-on", tmp_path / "broken"
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)

    def counting(sources: int, counters: int, sinks: int) -> Pipeline:
        restart = TaskOptions(restart=RestartPolicy(max_restarts=3), batch_size=50)
        return (
            Pipeline("rescaled", options=restart)
            .source(held(go_on), on=on, parallelism=sources)
            .key_by(lambda number: number % KEYS)
            .map(OperatorFactory(Broken, broken), on=on, parallelism=counters)
            .sink(on=on, parallelism=sinks)
        )

    interrupt(counting(*before).start(checkpoint=options), tmp_path / "c.db", "rescaled")
    go_on.touch()
    result = counting(*after).run(checkpoint=options)
    assert broken.exists()
    counts = sorted(count for part in result.sink_results for count in part)
    assert counts == sorted(Counter(n % KEYS for n in range(NUMBERS)).items())


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_each_row_is_written_exactly_once(before: int, after: int, tmp_path: Path) -> None:
    database, go_on = tmp_path / "numbers.db", tmp_path / "go-on"
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)

    def writing(sinks: int) -> Pipeline:
        return (
            Pipeline("rows")
            .source(held(go_on))
            .map(lambda number: (number,))
            .sink(
                OperatorFactory(SqliteSink, database, "INSERT INTO numbers VALUES (?)", SCHEMA),
                parallelism=sinks,
            )
        )

    interrupt(writing(before).start(checkpoint=options), tmp_path / "c.db", "rows")
    go_on.touch()
    result = writing(after).run(checkpoint=options)
    assert sum(result.sink_results) == NUMBERS
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT number FROM numbers ORDER BY number").fetchall()
    assert found == [(number,) for number in range(NUMBERS)]


class Keeper(CountByKey):
    """An operator with a state that it cannot share."""

    def rescale(self, states: list[Any]) -> Any:
        """As of one that has none."""
        return super(CountByKey, self).rescale(states)


def test_an_operator_that_cannot_share_its_state_says_so(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)

    def keeping(parallelism: int) -> Pipeline:
        return (
            Pipeline("kept")
            .source(held(go_on))
            .key_by(lambda number: number % KEYS)
            .map(Keeper, parallelism=parallelism)
            .sink()
        )

    interrupt(keeping(2).start(checkpoint=options), tmp_path / "c.db", "kept")
    go_on.touch()
    with pytest.raises(JobFailed, match=r"2 instances of .*, the job has 3, and Keeper has no res"):
        keeping(3).run(checkpoint=options)
    assert len(keeping(2).run(checkpoint=options).sink_result) == KEYS


def test_which_states_each_task_begins_with() -> None:
    states = {f"{stage}/{index}": b"%d" % index for index in range(11) for stage in ("a", "b/c")}
    checkpoint = Checkpoint(1, 0.0, states)
    tasks = [f"a/{index}" for index in range(11)] + ["b/c/0", "b/c/1"]
    begins = assign_states("job", checkpoint, tasks)
    assert begins.keys() == set(tasks)
    assert [begins[f"a/{index}"] for index in range(11)] == [b"%d" % i for i in range(11)]
    former = [cloudpickle.loads(begins[f"b/c/{index}"]) for index in range(2)]
    assert former[0] == former[1]
    assert former[0].states == [b"%d" % index for index in range(11)]


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=4, max_size=4))),
)
def test_the_items_of_an_iterable_are_shared_anew(
    count: int, runs: list[tuple[int, list[int]]]
) -> None:
    """Each run has so many instances, each of which yields so many items and leaves off."""
    read: list[int] = []
    states: list[Any] = []
    for parallelism, amounts in [*runs, (1, [count + 1])]:
        sources = []
        for index in range(parallelism):
            source = IterableSource(lambda: iter(range(count)))
            source.ctx = TaskContext("read", index=index, parallelism=parallelism)
            if len(states) == parallelism:
                source.restore(states[index])
            elif states:
                source.restore(source.rescale(states))
            read += [item for _, item in zip(range(amounts[index]), source.read(), strict=False)]
            sources.append(source)
        states = [source.snapshot() for source in sources]
    assert sorted(read) == list(range(count))


def open_at_once(path: Path, barrier: Any) -> None:
    barrier.wait()
    sink = SqliteSink(path, "INSERT INTO numbers VALUES (?)", SCHEMA)
    sink.ctx = TaskContext("opens")
    sink.open()
    sink.close()


def test_several_sinks_may_open_one_database_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for n in range(20):
        barrier = context.Barrier(4)
        opening = [
            context.Process(target=open_at_once, args=(tmp_path / f"{n}.db", barrier))
            for _ in range(4)
        ]
        for process in opening:
            process.start()
        for process in opening:
            process.join(60)
        assert [process.exitcode for process in opening] == [0] * 4
