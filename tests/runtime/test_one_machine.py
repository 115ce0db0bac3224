"""Ray on one machine: its actors share memory with the other tasks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from sagequeue import list_queues
from sageruntime import Pipeline, RestartPolicy, TaskOptions
from sageruntime.job import Job
from sageruntime.task.ray_task import is_one_machine

pytestmark = pytest.mark.usefixtures("ray_cluster")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


def queues_of(job: Job) -> list[str]:
    return [queue.name for queue in list_queues() if queue.name.startswith(f"{job.name}-")]


def hold(payload: Any) -> Any:
    time.sleep(0.01)
    return payload


def test_queues_of_a_job_are_shared_memory_and_go_with_it() -> None:
    pipeline = Pipeline("near").source(range(1000)).map(hold, on="ray", name="hold")
    with pipeline.map(str, on="process").sink().start() as job:
        names = queues_of(job)
        assert any("hold" in name for name in names)
    assert queues_of(job) == []


def test_arrays_are_read_in_the_queue_s_memory() -> None:
    def owns(array: Any) -> bool:
        return bool(array.flags.owndata or array.flags.writeable)

    arrays = [np.full(100_000, number) for number in range(3)]
    options = TaskOptions(restart=RestartPolicy(1))
    pipeline = Pipeline("arrays", options=options).source(arrays)
    assert pipeline.map(owns, on="ray").sink().run().sink_result == [False] * 3


def test_an_operator_that_hangs_leaves_nothing() -> None:
    def hang(payload: Any) -> None:
        time.sleep(1000)

    pipeline = Pipeline("hangs").source(range(10)).map(hang, on="ray", name="hang")
    with pipeline.sink().start() as job:
        while not job.measure().stages[1].tasks[0].process:
            time.sleep(0.01)
    assert queues_of(job) == []


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ({}, True),
        ({"resources": {"CPU": 2}}, True),
        ({"resources": {"CPU": 3}}, False),
        ({"resources": {"somewhere else": 0.1}}, False),
        ({"memory": 1 << 20}, True),
        ({"memory": 1 << 60}, False),
    ],
)
def test_what_this_machine_does_not_have_may_be_elsewhere(asked: Any, near: bool) -> None:
    assert is_one_machine(asked) is near


def test_what_a_script_defines_travels(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            from dataclasses import dataclass
            from sageruntime import Pipeline

            @dataclass
            class Order:
                number: int

            def double(order):
                assert isinstance(order, Order)
                return Order(order.number * 2)

            if __name__ == "__main__":
                pipeline = Pipeline("script").source([Order(1), Order(2)], name="read")
                pipeline = pipeline.map(double, on="ray").map(lambda order: order, on="ray")
                result = pipeline.sink().run()
                assert result.sink_result == [Order(2), Order(4)], result.sink_result
                print("travelled")
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert "travelled" in done.stdout, done.stderr
