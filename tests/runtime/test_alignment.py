"""Checkpoints while one sender is silent: what waits for it is bounded, and so is the wait."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from waiting import until

from sageruntime import (
    IDLE,
    BaseOperator,
    CheckpointOptions,
    OperatorFactory,
    Packet,
    Pipeline,
    RestartPolicy,
    SourceOperator,
    TaskOptions,
)
from sageruntime.recovery import Checkpoint
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


class Uneven(SourceOperator):
    """The first instance yields numbers. The second yields two words and is silent between them.

    Args:
        folder: it is silent until there is a file ``go-on``, and both end when there is a file
            ``enough``; ``exhausted`` is there when the numbers are.
        count: how many numbers.
        pause: seconds between two of them.
        waits: whether it is silent because it waits; else it yields ``IDLE`` in the meantime.
    """

    def __init__(self, folder: Path, count: int, pause: float = 0, waits: bool = True) -> None:
        self.folder = folder
        self.count = count
        self.pause = pause
        self.waits = waits
        self.position = 0

    def read(self) -> Iterator[Any]:
        yield from self._words() if self.ctx.index else self._numbers()
        while not (self.folder / "enough").exists():
            yield IDLE
            time.sleep(0.005)

    def _numbers(self) -> Iterator[int]:
        while self.position < self.count:
            self.position += 1
            yield self.position - 1
            time.sleep(self.pause)
        (self.folder / "exhausted").touch()

    def _words(self) -> Iterator[Any]:
        if self.position == 0:
            self.position = 1
            yield "first"
        while not (self.folder / "go-on").exists():
            if not self.waits:
                yield IDLE
            time.sleep(0.005)
        if self.position == 1:
            self.position = 2
            yield "last"

    def snapshot(self) -> int:
        return self.position

    def restore(self, state: int) -> None:
        self.position = state


class Saving(SqliteCheckpointStore):
    """Tells how many checkpoints were saved."""

    saved = 0

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        super().save(job, checkpoint)
        self.saved += 1


def given_up(log: pytest.LogCaptureFixture) -> bool:
    """Whether it was told that a checkpoint is."""
    messages = [r.getMessage() for r in list(log.records) if r.levelno >= logging.WARNING]
    return any("checkpoint" in message and "given up" in message for message in messages)


def end(folder: Path) -> None:
    (folder / "go-on").touch()
    (folder / "enough").touch()


@pytest.mark.parametrize("on", ["thread", "process"])
def test_what_waits_for_a_barrier_is_bounded(on: Any, tmp_path: Path) -> None:
    options = TaskOptions(queue_maxsize=200, batch_size=20, monitoring_interval=0.01)
    source = OperatorFactory(Uneven, tmp_path, 50_000)
    pipeline = Pipeline("bounded", options=options).source(source, on=on, parallelism=2)
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.02, timeout=600)
    with pipeline.sink(lambda item: None, on=on).start(checkpoint=checkpoint) as job:
        sink = job.tasks[1][0]
        before = -1
        exhausted = held = False
        while not exhausted:
            for _ in range(20):
                numbers = job.progress()
                read, done = numbers[0].packets, numbers[1].packets
                assert sink.get_status().held <= 200
                held = held or sink.get_status().held > 0
                if on == "thread":  # of processes these are not as of the same moment
                    # the queue, what is held back, and what is in hands on either side
                    assert read - done <= 5 * 200
                time.sleep(0.005)
            if held and read == before:
                break  # it holds back all it may, and the source waits for it
            before = read
            exhausted = (tmp_path / "exhausted").exists()
        end(tmp_path)
        assert job.wait(40)
        assert job.result().stages[1].packets == 50_002
        assert sink.get_status().held == 0


@pytest.mark.parametrize("silent", ["waits", "paused"])
def test_a_late_checkpoint_is_given_up_and_a_later_one_completed(
    host: Any, silent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Saving(tmp_path / "c.db")
    source = OperatorFactory(Uneven, tmp_path, 500, waits=silent == "waits")
    pipeline = Pipeline("late").source(source, on=host, parallelism=2).sink(on=host)
    checkpoint = CheckpointOptions(store, interval=0.05, timeout=0.2)
    with pipeline.start(checkpoint=checkpoint) as job:
        other = job.tasks[0][1]
        assert until(lambda: other.get_status().processed == 1)
        if silent == "paused":  # then checkpoints go on: it is asked between two yields
            other.pause()
            saved = store.saved
            assert until(lambda: store.saved > saved + 2)
        else:
            assert until(lambda: given_up(caplog))
        # what waited for it comes through, though nothing comes from there
        assert until(lambda: job.progress()[1].packets == 501)
        saved = store.saved
        if silent == "paused":
            other.resume()
        (tmp_path / "go-on").touch()
        assert until(lambda: store.saved > saved)
        (tmp_path / "enough").touch()
        assert job.wait(20)
        result = job.result()
    assert Counter(result.sink_result) == Counter([*range(500), "first", "last"])


class FailsOnce(BaseOperator):
    """Fails on the first packet after it was told to by a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def process(self, packet: Packet) -> Packet:
        if (self.folder / "fail").exists():
            (self.folder / "fail").unlink()
            raise ValueError("as told")
        return packet


@pytest.mark.parametrize("on", ["thread", "process"])
def test_after_a_checkpoint_that_was_given_up_each_packet_still_counts_once(
    on: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = TaskOptions(restart=RestartPolicy(1), batch_size=10)
    source = OperatorFactory(Uneven, tmp_path, 2000, pause=0.001)
    pipeline = Pipeline("exact", options=options).source(source, on=on, parallelism=2)
    pipeline = pipeline.map(OperatorFactory(FailsOnce, tmp_path), on=on).sink(on=on)
    checkpoint = CheckpointOptions(tmp_path / "c.db", interval=0.02, timeout=0.1)
    with pipeline.start(checkpoint=checkpoint) as job:
        assert until(lambda: given_up(caplog))
        (tmp_path / "fail").touch()
        (tmp_path / "go-on").touch()  # a source on a thread leaves off when it yields
        assert until(lambda: job.tasks[2][0].get_status().attempt == 1)
        end(tmp_path)
        assert job.wait(40)
        result = job.result()
    assert Counter(result.sink_result) == Counter([*range(2000), "first", "last"])


@pytest.mark.parametrize("on", ["thread", "process"])
def test_while_nobody_is_silent_no_checkpoint_is_given_up(
    on: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Saving(tmp_path / "c.db")
    (tmp_path / "go-on").touch()
    source = OperatorFactory(Uneven, tmp_path, 500)
    pipeline = Pipeline("timely").source(source, on=on, parallelism=2).sink(on=on)
    checkpoint = CheckpointOptions(store, interval=0.02, timeout=20)
    with pipeline.start(checkpoint=checkpoint) as job:
        assert until(lambda: store.saved >= 3)
        end(tmp_path)
        result = job.result()
    assert Counter(result.sink_result) == Counter([*range(500), "first", "last"])
    assert not given_up(caplog)
