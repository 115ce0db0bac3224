"""Checkpoints: whatever is killed, whenever, the answer is that of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagequeue import list_queues
from sageruntime import (
    IDLE,
    BaseOperator,
    CheckpointOptions,
    CountByKey,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    SourceOperator,
    SqliteSink,
    TaskContext,
    TaskOptions,
)
from sageruntime.communication.router import Barrier
from sageruntime.core.state import TaskState
from sageruntime.errors import CheckpointError, InvalidOption, JobFailed, RuntimeTaskError
from sageruntime.job import Job
from sageruntime.operator import CollectSink
from sageruntime.operator.sqlite_sink import _KEPT_MARKS
from sageruntime.recovery import Checkpoint
from sageruntime.recovery.checkpoint import CheckpointStore
from sageruntime.recovery.folder_store import FolderCheckpointStore
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore
from sageruntime.recovery.stores import open_store
from sageruntime.runner.events import SnapshotTaken

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


def all_tasks(job: Job) -> list[Any]:
    return [task for tasks in job.tasks for task in tasks]


def texts(count: int = 20_000) -> Iterator[str]:
    for number in range(count):
        yield f"w{number % 97} x{number % 13} y{number % 1009}"


def counts_of(source: Iterator[str]) -> dict[str, int]:
    return dict(Counter(word for text in source for word in text.split()))


def word_count(on: Any, source: Any = texts, restarts: int = 1000, **options: Any) -> Pipeline:
    options = {"restart": RestartPolicy(max_restarts=restarts), "batch_size": 50, **options}
    return (
        Pipeline("word-count", options=TaskOptions(**options))
        .source(source, on=on)
        .flat_map(str.split, on=on, parallelism=2)
        .key_by(lambda word: word)
        .map(CountByKey, on=on, parallelism=2)
        .sink(on=on)
    )


def slow_texts() -> Iterator[str]:
    """Slow enough to be killed on the way, for as long as the test says."""
    until = float(os.environ.get("SLOW_UNTIL", "0"))
    for number, text in enumerate(texts()):
        yield text
        if number % 100 == 0 and time.time() < until:
            time.sleep(0.05)


@pytest.mark.timeout(300)
def test_every_stage_killed_in_turn_fifty_times(tmp_path: Path, long: bool) -> None:
    """SIGKILL at random times; the source does not end before the last of them."""
    kills = 200 if long else 50
    chance = random.Random(7)
    stop_file = tmp_path / "enough"

    def endless() -> Iterator[str]:
        for number, text in enumerate(texts(10_000_000)):
            yield text
            if number % 500 == 0:
                if stop_file.exists() and number >= int(stop_file.read_text()):
                    return
                time.sleep(0.002)

    options = CheckpointOptions(tmp_path / "checkpoints.db", interval=0.1)
    with word_count("process", endless).start(checkpoint=options) as job:
        tasks: list[Any] = all_tasks(job)
        attempt = tasks[0].get_status().attempt
        for kill in range(kills):
            time.sleep(chance.random() * 0.2)
            task = tasks[kill % len(tasks)]
            # an attempt of its own: this task may not have come to that of the kill before
            while task.get_status().attempt <= attempt:
                task.kill_host()
                assert not task.join(0.02)
            attempt = task.get_status().attempt
        # far enough ahead of the source; it ends at the first look at the file behind that
        end = 500 * ((job.progress()[0].packets + 20_000) // 500)
        unfinished = tmp_path / "unfinished"
        unfinished.write_text(str(end))
        unfinished.rename(stop_file)
        result = job.result()
    read = sum(result_counts(result).values()) // 3
    assert read >= end
    assert result_counts(result) == counts_of(texts(read))
    assert tasks[0].get_status().attempt >= kills


def result_counts(result: Any) -> dict[str, int]:
    assert len({word for word, _ in result.sink_result}) == len(result.sink_result)
    return dict(result.sink_result)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_checkpoints import *
if __name__ == "__main__":
    store, out, on = sys.argv[1:]
    options = CheckpointOptions(store, interval=0.1)
    with word_count(on, slow_texts).start(checkpoint=options) as job:
        print("started", flush=True)
        result = job.result()
    Path(out).write_text(json.dumps(dict(result.sink_result)))
"""


@pytest.mark.parametrize(
    ("on", "store"), [("process", "checkpoints.db"), ("thread", "folder:checkpoints")]
)
def test_a_job_that_is_killed_goes_on_where_it_was(on: str, store: str, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    out = tmp_path / "out.json"
    command = [sys.executable, str(script), store, str(out), on]

    def start(until: float) -> subprocess.Popen[str]:
        environment = {**os.environ, "SLOW_UNTIL": str(until)}
        job = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert job.stdout is not None
        assert job.stdout.readline() == "started\n"
        return job

    def checkpoint() -> Checkpoint | None:
        with closing(open_store(CheckpointOptions(_within(tmp_path, store)))) as opened:
            return opened.latest("word-count")

    number = 0
    for _ in range(3):
        job = start(time.time() + 600)
        while (latest := checkpoint()) is None or latest.number < number + 3:
            time.sleep(0.02)
            assert job.poll() is None
        number = latest.number
        job.kill()
        job.wait()
    assert not out.exists()
    job = start(0)
    assert job.wait(60) == 0
    assert json.loads(out.read_text()) == counts_of(texts())
    assert checkpoint() is None, "a job that has ended well begins anew the next time"
    assert not [queue for queue in list_queues() if queue.name.startswith("word-count-")]


def _within(folder: Path, store: str) -> str:
    kind, colon, path = store.partition(":")
    return f"{kind}:{folder / path}" if colon else str(folder / store)


class Fails(BaseOperator):
    """Fails on one payload until a file says otherwise; counts what it has seen."""

    def __init__(self, payload: int, until: Path) -> None:
        self.payload = payload
        self.until = until
        self.seen = 0

    def process(self, packet: Packet) -> Packet:
        self.seen += 1
        if packet.payload == self.payload and not self.until.exists():
            self.until.touch()
            raise ValueError("the first time")
        return packet.derive((packet.payload, self.seen))

    def snapshot(self) -> int:
        return self.seen

    def restore(self, state: int) -> None:
        self.seen = state


@pytest.mark.parametrize("on", ["thread", "process", "ray"])
def test_an_operator_that_fails_takes_the_job_back(
    on: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    numbers = 20_000 if on != "ray" else 2000
    operator = OperatorFactory(Fails, numbers // 2, tmp_path / "failed")
    options = TaskOptions(restart=RestartPolicy(1))
    pipeline = Pipeline("goes-back", options=options).source(range(numbers))
    pipeline = pipeline.map(operator, on=on).sink(on=on)
    with pipeline.start(checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.05)) as job:
        result = job.result()
    # the state and the results are those of one pass, whatever was done twice
    assert result.sink_result == [(number, number + 1) for number in range(numbers)]
    assert job.tasks[1][0].get_status().attempt == 1


def test_the_number_of_ways_back_is_bounded(tmp_path: Path) -> None:
    class Always(BaseOperator):
        def process(self, packet: Packet) -> Packet:
            raise ValueError("always")

    pipeline = Pipeline("bounded", options=TaskOptions(restart=RestartPolicy(2)))
    pipeline.source([1]).map(Always).sink()
    with pytest.raises(JobFailed, match="always"):
        pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db"))


def test_a_failed_job_can_be_mended_and_goes_on(tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    class FailsFor(Fails):
        def process(self, packet: Packet) -> Packet:
            if packet.payload == self.payload and not self.until.exists():
                time.sleep(0.3)  # checkpoints are taken meanwhile, of all before
                raise ValueError("until it is mended")
            return super().process(packet)

    def run() -> Any:
        pipeline = Pipeline("mended", options=TaskOptions(batch_size=1)).source(range(200))
        pipeline.map(OperatorFactory(FailsFor, 150, mended)).sink()
        return pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.05))

    with pytest.raises(JobFailed, match="until it is mended"):
        run()
    mended.touch()
    assert run().sink_result == [(number, number + 1) for number in range(200)]


class Counting(SourceOperator):
    """Counts for ever, and now and then has nothing; says where it began."""

    def __init__(self, enough: Path) -> None:
        self.enough = enough
        self.next = 0
        self.completed = 0

    def read(self) -> Iterator[Any]:
        while not self.enough.exists():
            if self.next % 7 == 0:
                yield IDLE
            self.next += 1
            yield self.next - 1
            time.sleep(0.0005)

    def snapshot(self) -> int:
        return self.next

    def restore(self, state: int) -> None:
        self.next = state

    def checkpoint_completed(self) -> None:
        self.completed += 1
        if self.completed == 5:
            self.enough.touch()


def test_a_source_is_told_of_complete_checkpoints_and_may_idle(tmp_path: Path) -> None:
    pipeline = Pipeline("idle").source(OperatorFactory(Counting, tmp_path / "enough")).sink()
    result = pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.05))
    assert result.sink_result == list(range(len(result.sink_result)))


def rows(database: Path) -> list[tuple[int]]:
    with sqlite3.connect(database) as connection:
        return connection.execute("SELECT number FROM numbers ORDER BY number").fetchall()


def writing(database: Path, on: Any, source: Any) -> Pipeline:
    options = TaskOptions(restart=RestartPolicy(1000), batch_size=20)
    sink = OperatorFactory(
        SqliteSink, database, "INSERT INTO numbers VALUES (?)",
        "CREATE TABLE IF NOT EXISTS numbers (number INTEGER)",
    )  # fmt: skip
    pipeline = Pipeline("writing", options=options).source(source, on=on)
    return pipeline.map(lambda number: (number,), on=on).sink(sink, on=on)


def test_a_transactional_sink_writes_each_row_exactly_once(tmp_path: Path) -> None:
    database = tmp_path / "numbers.db"
    stop_file = tmp_path / "enough"

    def numbers() -> Iterator[int]:
        for number in range(10_000_000):
            yield number
            if number % 100 == 0:
                if stop_file.exists() and number >= int(stop_file.read_text()):
                    return
                time.sleep(0.001)

    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)
    chance = random.Random(11)
    with writing(database, "process", numbers).start(checkpoint=options) as job:
        tasks: list[Any] = all_tasks(job)
        for kill in range(15):
            time.sleep(chance.random() * 0.25)
            tasks[2 if kill % 2 else kill % 3].kill_host()
        unfinished = tmp_path / "unfinished"
        unfinished.write_text(str(job.progress()[0].packets + 5000))
        unfinished.rename(stop_file)
        result = job.result()
    assert rows(database) == [(number,) for number in range(result.sink_result)]
    assert result.sink_result > 5000


def marks(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        return [run for (run,) in connection.execute("SELECT run FROM sageruntime_marks")]


def test_the_marks_of_a_transactional_sink_do_not_pile_up(tmp_path: Path) -> None:
    database = tmp_path / "numbers.db"
    options = CheckpointOptions(tmp_path / "c.db")
    runs = _KEPT_MARKS + 8
    for _ in range(runs):
        assert writing(database, "thread", range(2)).run(checkpoint=options).sink_result == 2
    assert rows(database) == [(0,)] * runs + [(1,)] * runs
    kept = marks(database)
    assert len(kept) == _KEPT_MARKS
    assert all(run.startswith("writing/sink-2/0/") for run in kept)


def test_runs_of_one_name_that_take_turns_write_each_row_exactly_once(tmp_path: Path) -> None:
    """Each has a checkpoint store of its own, and all write to the same file."""
    database = tmp_path / "numbers.db"
    go_on = tmp_path / "go-on"

    def held() -> Iterator[Any]:
        yield from range(100)
        while not go_on.exists():
            time.sleep(0.001)
            yield IDLE

    def run(store: str) -> Job:
        # rare: the last checkpoint is that with the rows
        checkpoint = CheckpointOptions(tmp_path / store, interval=0.3)
        return writing(database, "thread", held).start(checkpoint=checkpoint)

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER)")
    for committed, store in ((100, "one.db"), (200, "two.db")):
        with run(store):
            while len(rows(database)) < committed:
                time.sleep(0.01)
    go_on.touch()
    for store in ("one.db", "two.db"):
        with run(store) as job:
            assert job.result().sink_result == 100
    assert rows(database) == [(number,) for number in range(100) for _ in range(2)]
    assert len(marks(database)) == 2


def test_a_transactional_sink_loses_nothing_when_the_job_fell_back(tmp_path: Path) -> None:
    """Behind a damaged checkpoint, transactions of the same numbers hold other rows."""
    factory = OperatorFactory(
        SqliteSink, tmp_path / "numbers.db", "INSERT INTO numbers VALUES (?)",
        "CREATE TABLE IF NOT EXISTS numbers (number INTEGER)",
    )  # fmt: skip
    tasks = [LocalTask(TaskContext(f"fell-{n}"), factory, coordinated=True) for n in range(3)]
    sinks: list[Any] = [task.operator for task in tasks]

    def write(sink: Any, *numbers: int) -> bytes:
        sink.process_batch([Packet((number,)) for number in numbers])
        return cloudpickle.dumps(sink.snapshot())

    for sink in sinks:
        sink.open()
    older = write(sinks[0], 1)
    sinks[0].checkpoint_completed()
    write(sinks[0], 2)
    sinks[0].checkpoint_completed()
    sinks[1].restore(cloudpickle.loads(older))
    latest = write(sinks[1], 2, 3)  # and is killed before it is told
    sinks[2].restore(cloudpickle.loads(latest))
    assert rows(tmp_path / "numbers.db") == [(1,), (2,), (2,), (3,)]
    for task in tasks:
        task.operator.close()
        task.cleanup()


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_transactional_sink_without_checkpoints(on: Any, tmp_path: Path) -> None:
    database = tmp_path / "numbers.db"
    assert writing(database, on, range(500)).run().sink_result == 500
    assert rows(database) == [(number,) for number in range(500)]


def test_a_checkpoint_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    options = CheckpointOptions(tmp_path / "c.db")
    with SqliteCheckpointStore(tmp_path / "c.db") as store:
        store.save("word-count", Checkpoint(1, 0.0, {"other/0": b""}))
    with pytest.raises(CheckpointError, match=r"stages other; .*resume=False"):
        word_count("thread").start(checkpoint=options)
    anew = CheckpointOptions(tmp_path / "c.db", resume=False)
    assert result_counts(word_count("thread").run(checkpoint=anew)) == counts_of(texts())


def test_a_state_that_does_not_pickle_fails_the_job_with_a_reason(tmp_path: Path) -> None:
    class Stubborn(BaseOperator):
        def process(self, packet: Packet) -> Packet:
            return packet

        def snapshot(self) -> Any:
            return threading.Lock()

    pipeline = Pipeline("stubborn", options=TaskOptions(restart=RestartPolicy(9)))
    pipeline.source(range(10)).map(Stubborn).sink()
    with pytest.raises(JobFailed) as failure:
        pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db"))
    assert isinstance(failure.value.__cause__, CheckpointError)
    assert "does not pickle" in str(failure.value)


def test_a_snapshot_without_a_restore_is_an_error_of_the_operator(tmp_path: Path) -> None:
    class Forgot(BaseOperator):
        def process(self, packet: Packet) -> Packet:
            return packet

        def snapshot(self) -> int:
            return 1

    with pytest.raises(RuntimeTaskError, match="no restore"):
        Forgot().restore(1)


def test_a_job_that_is_closed_on_its_way_can_be_taken_up(tmp_path: Path) -> None:
    """As after Ctrl-C: what was complete is kept."""
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)
    go_on = tmp_path / "go-on"

    def held() -> Iterator[str]:
        for number, text in enumerate(texts()):
            yield text
            while number >= 5000 and not go_on.exists():
                time.sleep(0.01)
                yield IDLE  # type: ignore[misc]

    with word_count("thread", held).start(checkpoint=options) as job:
        _wait_for_checkpoint(tmp_path / "c.db", 3)
    assert all(task.state is TaskState.STOPPED for task in all_tasks(job))
    go_on.touch()
    assert result_counts(word_count("thread", held).run(checkpoint=options)) == counts_of(texts())


class Witness(SqliteCheckpointStore):
    """Notes whether the job still holds anything when it forgets its checkpoints."""

    job: Job
    closed: list[bool]

    def clear(self, job: str) -> None:
        self.closed = [task.input_buffer.closed for task in all_tasks(self.job)]
        super().clear(job)


def test_checkpoints_are_forgotten_last(tmp_path: Path) -> None:
    """A job that is killed while it tidies up must not be run anew."""
    store = Witness(tmp_path / "c.db")
    with word_count("process").start(checkpoint=CheckpointOptions(store)) as store.job:
        assert result_counts(store.job.result()) == counts_of(texts())
    assert store.closed == [True] * 6


def _wait_for_checkpoint(path: Path, number: int) -> None:
    with SqliteCheckpointStore(path) as store:
        while (latest := store.latest("word-count")) is None or latest.number < number:
            time.sleep(0.01)


def test_stopping_a_job_with_checkpoints_drains_it(tmp_path: Path) -> None:
    def endless() -> Iterator[str]:
        yield from texts(10_000_000)

    job: Job
    options = CheckpointOptions(tmp_path / "c.db", interval=0.05)
    with word_count("process", endless).start(checkpoint=options) as job:
        _wait_for_checkpoint(tmp_path / "c.db", 2)
        job.stop()
        result = job.result()
    read = sum(result_counts(result).values()) // 3
    assert result_counts(result) == counts_of(texts(read))


STORES: list[Any] = [SqliteCheckpointStore, FolderCheckpointStore]
states = st.dictionaries(st.text(min_size=1), st.binary(), max_size=5)


@pytest.mark.parametrize("store_class", STORES)
@settings(deadline=None, max_examples=30)
@given(saved=st.lists(st.tuples(states, st.booleans()), max_size=5))
def test_a_store_gives_back_the_latest(
    store_class: Any, saved: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("store") / "checkpoints"
    store: CheckpointStore
    with store_class(path, keep=2) as store:
        assert store.latest("job") is None
        for number, (state, over) in enumerate(saved, start=1):
            store.save("job", Checkpoint(number, 1.5, state, over))
            store.save("other", Checkpoint(100 + number, 1.5, {}))
    with store_class(path, keep=2) as store:
        latest = store.latest("job")
        if saved:
            assert latest == Checkpoint(len(saved), 1.5, *saved[-1])
        store.clear("job")
        assert store.latest("job") is None
        other = store.latest("other")
        assert (other is not None) == bool(saved)


def test_a_folder_keeps_so_many_and_ignores_what_is_unfinished(tmp_path: Path) -> None:
    store = FolderCheckpointStore(tmp_path, keep=2)
    for number in range(1, 6):
        store.save("job", Checkpoint(number, 0.0, {}))
    folder = tmp_path / "job"
    (folder / "000000000009.unfinished").write_bytes(b"half")
    assert sorted(file.name for file in folder.glob("*.checkpoint")) == [
        "000000000004.checkpoint", "000000000005.checkpoint",
    ]  # fmt: skip
    latest = store.latest("job")
    assert latest is not None
    assert latest.number == 5


def checkpoint_with(number: int, job: str = "job") -> Checkpoint:
    """One whose state of the first task is longer than a page of SQLite, and like no other."""
    block = random.Random(f"{job} {number}").randbytes(10_000)
    return Checkpoint(number, 1.5, {"first/0": block, "second/0": b"2"})


def place_of(number: int, data: bytes, job: str = "job") -> int:
    """Where the middle of that state is in a file."""
    block = checkpoint_with(number, job).states["first/0"]
    place = data.find(block[5000:5016])
    assert place >= 0
    return place


def flip(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[place_of(number, data)] ^= 1
    path.write_bytes(data)


def truncate(path: Path, number: int) -> None:
    os.truncate(path, place_of(number, path.read_bytes()))


def empty(path: Path, number: int) -> None:
    os.truncate(path, 0)


def scribble(path: Path, number: int) -> None:
    """Over one page, and with it over where the next one is."""
    data = bytearray(path.read_bytes())
    page = place_of(number, data) // 4096 * 4096
    data[page : page + 4096] = b"\xa5" * 4096
    path.write_bytes(data)


def execute(statement: str) -> Any:
    def damage(path: Path, number: int) -> None:
        with closing(sqlite3.connect(path)) as database:
            changed = database.execute(statement, (number,)).rowcount
            database.commit()
        assert changed == 1

    return damage


OF_THE_ROW = "WHERE job = 'job' AND number = ? AND task = 'second/0'"
DAMAGE = [
    *((FolderCheckpointStore, damage) for damage in (flip, truncate, empty, scribble)),
    *((SqliteCheckpointStore, damage) for damage in (flip, scribble)),
    (SqliteCheckpointStore, execute(f"DELETE FROM states {OF_THE_ROW}")),
    (SqliteCheckpointStore, execute(f"UPDATE states SET state = 3 {OF_THE_ROW}")),
    (SqliteCheckpointStore, execute(f"UPDATE states SET task = CAST(x'ff' AS TEXT) {OF_THE_ROW}")),
    (SqliteCheckpointStore, execute("UPDATE checkpoints SET taken_at = 2 WHERE number = ?")),
]


@pytest.mark.parametrize(("store_class", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    store_class: Any, damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    file = (
        path if store_class is SqliteCheckpointStore else path / "job" / "000000000012.checkpoint"
    )
    other = checkpoint_with(7, "other")
    with store_class(path, keep=3) as store:
        for number in range(10, 13):
            store.save("job", checkpoint_with(number))
        store.save("other", other)
    damage(file, 12)
    # no matter how often it is looked for, and what is saved after that
    for _ in range(2):
        with store_class(path, keep=3) as store:
            caplog.clear()
            assert store.latest("job") == checkpoint_with(11)
            assert f"{file}" in caplog.text
            assert "job job falls back to checkpoint 11" in caplog.text
            assert store.latest("other") == other
    for number in (12, 13):
        with store_class(path, keep=3) as store:
            store.latest("job")
            store.save("job", checkpoint_with(number))
            assert store.latest("job") == checkpoint_with(number)
            assert store.latest("other") == other
    caplog.clear()
    with store_class(path, keep=3) as store:
        assert store.latest("job") == checkpoint_with(13)
        store.clear("job")
        assert store.latest("job") is None
        assert store.latest("other") == other
    assert not caplog.text


@pytest.mark.parametrize(("store_class", "damage"), DAMAGE)
def test_when_no_checkpoint_can_be_read(store_class: Any, damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with store_class(path) as store:
        for number in (3, 4):
            store.save("job", checkpoint_with(number))
    for number in (3, 4):
        file = path / "job" / f"{number:012}.checkpoint"
        damage(path if store_class is SqliteCheckpointStore else file, number)
    with store_class(path) as store:
        with pytest.raises(CheckpointError, match="no checkpoint of job job .*resume=False"):
            store.latest("job")
        store.clear("job")
        assert store.latest("job") is None
        store.save("job", checkpoint_with(1))
        assert store.latest("job") == checkpoint_with(1)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    store = FolderCheckpointStore(tmp_path)
    before = Checkpoint(1, 1.5, {"a/0": b"before"})
    latest = Checkpoint(2, 2.5, {"a/0": b"latest", "b/0": b""})
    store.save("job", before)
    store.save("job", latest)
    file = tmp_path / "job" / "000000000002.checkpoint"
    data = file.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            assert store.latest("job") == before
    file.write_bytes(data)
    assert store.latest("job") == latest


@pytest.mark.parametrize("store", ["checkpoints.db", "folder:checkpoints"])
def test_a_job_goes_on_from_the_checkpoint_before_a_damaged_one(store: str, tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    class Keeps(BaseOperator):
        """Its state is the packets it has seen, and easy to find in a file."""

        def __init__(self) -> None:
            self.seen = bytearray()

        def process(self, packet: Packet) -> Packet:
            self.seen += b"<%d>" % packet.payload
            if packet.payload == 400 and not mended.exists():
                time.sleep(0.3)  # until there are some checkpoints
                raise ValueError("until it is mended")
            return packet.derive(bytes(self.seen).count(b"<"))

        def snapshot(self) -> bytes:
            return bytes(self.seen)

        def restore(self, state: bytes) -> None:
            self.seen = bytearray(state)

    def run() -> Any:
        pipeline = Pipeline("damaged", options=TaskOptions(batch_size=1))
        pipeline.source(slow_numbers).map(Keeps).sink()
        where = _within(tmp_path, store)
        return pipeline.run(checkpoint=CheckpointOptions(where, interval=0.05))

    def slow_numbers() -> Iterator[int]:
        for number in range(500):
            time.sleep(0.001)
            yield number

    with pytest.raises(JobFailed, match="until it is mended"):
        run()
    with closing(open_store(CheckpointOptions(_within(tmp_path, store)))) as opened:
        latest = opened.latest("damaged")
        assert latest is not None
        assert latest.number > 2
    state = latest.states["map-1/0"]
    for file in tmp_path.rglob("*checkpoint*"):
        if file.is_file():
            data = file.read_bytes()
            place = data.rfind(state)
            if place >= 0:
                file.write_bytes(data[:place] + data[place:].replace(b"<", b">", 1))
    mended.touch()
    assert run().sink_result == list(range(1, 501))


def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used"):
        SqliteCheckpointStore(tmp_path / "no" / "such" / "folder.db")
    (tmp_path / "text.db").write_text("this is no database, but a text of some length" * 100)
    with pytest.raises(CheckpointError, match="cannot be used"):
        SqliteCheckpointStore(tmp_path / "text.db")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be used"):
        FolderCheckpointStore(tmp_path / "file").save("job", Checkpoint(1, 0.0, {}))


@pytest.mark.parametrize("values", [{"interval": 0}, {"keep": 0}, {"timeout": 0}])
def test_options_out_of_range(values: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="checkpoint"):
        CheckpointOptions(tmp_path / "c.db", **values)


def test_a_process_that_hangs_when_the_job_goes_back_is_killed(tmp_path: Path) -> None:
    class Hangs(BaseOperator):
        def process(self, packet: Packet) -> Packet:
            if packet.payload == 5:
                try:
                    (tmp_path / "hung").touch(exist_ok=False)
                    signal.pause()  # in a thread: for ever
                except FileExistsError:
                    pass
                else:
                    time.sleep(1000)
            return packet

    options = TaskOptions(restart=RestartPolicy(5), batch_size=1)
    pipeline = Pipeline("hung", options=options).source(range(10))
    pipeline = pipeline.map(Hangs, on="process").map(str, on="process").sink()
    with pipeline.start(checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.1)) as job:
        while not (tmp_path / "hung").exists():
            time.sleep(0.01)
        job.tasks[2][0].kill_host()  # type: ignore[attr-defined]
        assert job.result().sink_result == [str(number) for number in range(10)]


class Told(CollectSink):
    """Notes how much it had seen when it was told of a complete checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def checkpoint_completed(self) -> None:
        self.told.append(len(self.payloads))


class Watching:
    """A supervisor that only keeps what it is told."""

    def __init__(self) -> None:
        self.snapshots: SimpleQueue[int] = SimpleQueue()

    def on_event(self, task: Any, event: Any) -> None:
        if isinstance(event, SnapshotTaken):
            self.snapshots.put(event.checkpoint)


def test_a_checkpoint_is_not_taken_for_a_later_one() -> None:
    """That an earlier one is complete may be known here only after the snapshot of the next."""
    supervisor: Any = Watching()
    task = LocalTask(
        TaskContext("late", upstreams=1), OperatorFactory(Told), supervisor=supervisor,
        coordinated=True,
    )  # fmt: skip
    task.start_running()
    for checkpoint in (1, 2):
        task.put_packet(Packet(checkpoint))
        task.input_buffer.put(Barrier(checkpoint, "source"))
        assert supervisor.snapshots.get(timeout=20) == checkpoint
    operator: Any = task.operator
    for checkpoint, known in ((1, []), (3, [3])):
        task.checkpoint_completed(checkpoint)
        task.put_packet(Packet("more"))
        task.input_buffer.put(Barrier(checkpoint + 2, "source"))
        assert supervisor.snapshots.get(timeout=20) == checkpoint + 2
        assert operator.told == known
    task.cleanup()
