"""The specification's own code, and the table that says where each of its promises is."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from sagequeue import create_queue
from sageruntime.communication.router import Connection
from sageruntime.communication.router.base_router import BaseRouter
from sageruntime.communication.router.packet import Packet
from sageruntime.context import TaskContext
from sageruntime.operator import CollectSink, MapOperator
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.task.local_task import LocalTask

ROOT = Path(__file__).parents[2]


def test_the_life_of_a_task() -> None:
    runtime_context, operator_factory = TaskContext("spec-life"), OperatorFactory(CollectSink)
    task = LocalTask(runtime_context, operator_factory)
    task.start_running()
    status = task.get_status()
    assert status.name == "spec-life"
    task.stop()
    assert not task.is_running
    task.cleanup()


def test_packets() -> None:
    task = LocalTask(TaskContext("spec-packets"), OperatorFactory(CollectSink))
    data = {"any": "thing"}
    packet = Packet(payload=data, input_index=0)
    task.put_packet(packet)
    task.process_packet(Packet(payload=data, input_index=0))
    task.start_running()
    assert task.stop()
    assert task.get_report().result == [data, data]
    task.cleanup()


def test_routing() -> None:
    task = LocalTask(TaskContext("spec-routing"), OperatorFactory(MapOperator, str))
    queue = create_queue(scope="thread")
    downstream_connection = Connection("downstream", queue)
    task.router.add_connection(downstream_connection)
    task.router.route(Packet(1))
    task.router.flush()
    assert queue.get().packets[0].payload == 1
    runtime_context = TaskContext("another")
    router = BaseRouter(runtime_context)
    task.operator.inject_router(router)
    assert task.operator.router is router
    task.cleanup()


def test_an_operator_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        raise OSError("no such model")

    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="no such model"):
        LocalTask(TaskContext("spec-broken"), OperatorFactory(broken))
    (record,) = caplog.records
    assert record.getMessage() == "Failed to initialize node spec-broken: no such model"
    assert record.exc_info


def _references() -> list[str]:
    table = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| ")]
    return [
        reference
        for _, where, tests in rows
        for reference in re.findall("`([^`]+)`", where + tests)
    ]


def test_the_table_names_what_there_is() -> None:
    references = _references()
    assert len(references) > 100
    for reference in references:
        file, _, name = reference.partition("::")
        places = [ROOT / file, ROOT / "sageruntime" / file, ROOT / "tests" / "runtime" / file]
        found = [place for place in places if place.exists()]
        assert found, f"{reference}: there is no such file"
        if name:
            text = found[0].read_text(encoding="utf-8")
            defined = re.search(rf"^(def {name}\(|{name} = )", text, re.MULTILINE)
            assert defined, f"{reference}: there is no such test"
