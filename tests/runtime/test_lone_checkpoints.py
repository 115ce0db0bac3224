"""A task that is in no job keeps its operator's state: over restarts, kills and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sageruntime import (
    CheckpointOptions,
    LocalTask,
    OperatorFactory,
    Packet,
    RestartPolicy,
    SinkOperator,
    TaskContext,
)
from sageruntime.recovery.sqlite_store import SqliteCheckpointStore
from sageruntime.task.base_task import BaseTask
from sageruntime.task.process_task import ProcessTask


class Seen(SinkOperator):
    """Keeps what it has seen; fails once, where it is told to."""

    def __init__(self, fail_once: Path | None = None) -> None:
        self.seen: list[Any] = []
        self.fail_once = fail_once

    def process(self, packet: Packet) -> None:
        if packet.payload == "fail" and self.fail_once and not self.fail_once.exists():
            self.fail_once.touch()
            raise ValueError("the first time")
        self.seen.append(packet.payload)

    def snapshot(self) -> list[Any]:
        return self.seen

    def restore(self, state: list[Any]) -> None:
        self.seen = state

    def result(self) -> list[Any]:
        return self.seen


def task_of(kind: type[BaseTask], folder: Path, interval: float = 0.02, **options: Any) -> Any:
    return kind(
        TaskContext("lone"), OperatorFactory(Seen, folder / "failed"),
        checkpoint=CheckpointOptions(folder / "c.db", interval=interval), **options,
    )  # fmt: skip


KINDS = pytest.mark.parametrize("kind", [LocalTask, ProcessTask])


@KINDS
def test_the_next_task_begins_with_the_state_of_the_last(
    kind: type[BaseTask], tmp_path: Path
) -> None:
    for run in range(3):
        task = task_of(kind, tmp_path, interval=1000)  # on draining, then
        task.start_running()
        for number in range(5):
            task.put_packet(Packet((run, number)))
        assert task.stop(timeout=30)
        everything = [(r, number) for r in range(run + 1) for number in range(5)]
        assert task.get_report().result == everything
        task.cleanup()


@KINDS
def test_each_packet_has_its_effect_once_though_the_task_fails(
    kind: type[BaseTask], tmp_path: Path
) -> None:
    task = task_of(kind, tmp_path, restart=RestartPolicy(1))
    task.start_running()
    payloads: list[Any] = [*range(300), "fail", *range(300, 600)]
    for payload in payloads:
        task.put_packet(Packet(payload))
    assert task.stop(timeout=30)
    assert task.get_report().result == payloads
    task.cleanup()


def test_each_packet_has_its_effect_once_though_the_process_is_killed(tmp_path: Path) -> None:
    task = task_of(ProcessTask, tmp_path, restart=RestartPolicy(100))
    task.start_running()
    payloads = list(range(3000))
    for payload in payloads:
        task.put_packet(Packet(payload))
        if payload % 400 == 399:
            task.kill_host()
    assert task.stop(timeout=60)
    assert task.get_report().result == payloads
    assert task.get_status().attempt > 0
    task.cleanup()


@KINDS
def test_a_small_queue_asks_for_checkpoints(kind: type[BaseTask], tmp_path: Path) -> None:
    """More than a queue can have claimed comes before the interval is over."""
    task = task_of(kind, tmp_path, interval=1000, queue_maxsize=2, batch_size=1)
    task.start_running()
    for payload in range(9000 if kind is LocalTask else 300):
        task.put_packet(Packet(payload))
    with SqliteCheckpointStore(tmp_path / "c.db") as store:
        latest = store.latest("lone")
        assert latest is not None
        assert latest.number > 1
    assert task.stop(timeout=30)
    task.cleanup()
