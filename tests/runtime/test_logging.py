"""Logging: what a run writes, line by line, is the same from every host."""

from __future__ import annotations

import json
import logging
import pickle
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sageruntime import LocalTask, OperatorFactory, Pipeline, TaskContext
from sageruntime.errors import JobFailed, PacketError
from sageruntime.logs import TaskLogger, json_formatter, portable
from sageruntime.operator import MapOperator

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

JOB = """\
name: job
stages:
  - source: mine:numbers
  - map: mine:work
    name: work
    on: {on}
    error_policy: {policy}
    worker_threads: {threads}
  - sink: collect
"""
MINE = """\
import logging

def numbers():
    return range(20)

def work(n):
    logging.getLogger("mine").info("working on %d", n, extra={"number": n})
    if n % 5 == 2:
        raise LookupError(f"no place\\nfor {n}")
    if n % 5 == 3:
        raise KeyError(n)
    return n
"""


def run(folder: Path, *arguments: str, **job: Any) -> subprocess.CompletedProcess[str]:
    (folder / "mine.py").write_text(MINE)
    (folder / "job.yaml").write_text(JOB.format(**{"policy": "skip", "threads": 1, **job}))
    return subprocess.run(
        [sys.executable, "-m", "sageruntime", "run", "job.yaml", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("on", "threads"), [("thread", 1), ("thread", 3), ("process", 1), ("process", 3)]
)
def test_every_line_is_an_event_with_its_task(tmp_path: Path, on: str, threads: int) -> None:
    done = run(tmp_path, "--log-format", "json", "--log-level", "info", on=on, threads=threads)
    assert done.returncode == 0
    events = json_lines(done.stderr)
    assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
    assert all(datetime.fromisoformat(event["time"]).tzinfo for event in events)

    # what the operator's own code logs, by any logger
    working = [event for event in events if event["logger"] == "mine"]
    assert sorted(event["number"] for event in working) == list(range(20))
    assert sorted(event["message"] for event in working) == sorted(
        f"working on {n}" for n in range(20)
    )
    assert {event["stage"] for event in working} == {"work"}
    assert len({event["task"] for event in working}) == 1

    # a failing operator: the first error of each type in full, the others counted
    errors = [event for event in events if event["level"] == "ERROR"]
    assert len(errors) == 2
    for event in errors:
        assert (event["stage"], event["logger"]) == ("work", "sageruntime.task.work")
        assert event["task"] == working[0]["task"]
        assert f"packet {event['packet']}: " in event["message"]
        assert event["exc_info"].startswith("Traceback (most recent call last):\n")
        assert "in work\n" in event["exc_info"]
        assert "Traceback" not in event["message"]
    assert {re.search(r"(\w+Error)", event["message"])[1] for event in errors} == {  # type: ignore[index]
        "LookupError",
        "KeyError",
    }
    (summary,) = [event for event in events if event["level"] == "WARNING"]
    assert re.search(r"LookupError: 4, KeyError: 4|KeyError: 4, LookupError: 4", summary["message"])


@pytest.mark.parametrize("on", ["thread", "process"])
def test_a_failing_job_says_so_in_the_same_form(tmp_path: Path, on: str) -> None:
    done = run(tmp_path, "--log-format", "json", on=on, policy="fail")
    assert done.returncode == 1
    events = json_lines(done.stderr)
    task, cli = (event for event in events if event["level"] == "ERROR")
    assert (task["stage"], task["packet"] > 0) == ("work", True)
    assert "LookupError: no place\nfor 2" in task["exc_info"]
    assert cli["logger"] == "sageruntime.cli"
    assert cli["message"].startswith("job job failed: job-")


def test_levels(tmp_path: Path) -> None:
    done = run(tmp_path, "--log-format", "json", "--log-level", "error", on="process")
    assert {event["level"] for event in json_lines(done.stderr)} == {"ERROR"}
    done = run(tmp_path, "--log-format", "json", "--log-level", "debug", on="process")
    states = [event for event in json_lines(done.stderr) if "is running" in event["message"]]
    assert {event["stage"] for event in states} == {"source-0", "work", "sink-2"}
    done = run(tmp_path, "--log-level", "loud", on="thread")
    assert done.returncode == 2
    assert "debug" in done.stderr


def test_for_people(tmp_path: Path) -> None:
    done = run(tmp_path, "--log-level", "info", on="process")
    lines = done.stderr.splitlines()
    assert sum("working on" in line for line in lines) == 20
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} INFO    job-\w+-work-0: working on 0$", lines[0])
    assert "LookupError: no place" in done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 2


def test_from_ray(ray_cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    def work(n: int) -> int:
        logging.getLogger("mine").warning("working on %d", n)
        return 1 // (n % 2)

    pipeline = Pipeline("ray").source(range(10))
    result = pipeline.map(work, name="work", error_policy="skip").sink().run("ray")
    assert result.errors == 5
    records = [record for record in caplog.records if getattr(record, "stage", "") == "work"]
    assert [r.getMessage() for r in records if r.name == "mine"] == [
        f"working on {n}" for n in range(10)
    ]
    (failure,) = (record for record in records if record.levelname == "ERROR")
    assert f"packet {failure.packet}: ZeroDivisionError" in failure.getMessage()  # type: ignore[attr-defined]
    assert "in work" in str(failure.exc_text)


def test_a_failing_task_names_the_packet(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(JobFailed) as caught:
        Pipeline("fails").source([0]).map(lambda n: 1 / n, name="work").sink().run()
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert isinstance(caught.value.__cause__, PacketError)
    assert record.packet == caught.value.__cause__.packet_id  # type: ignore[attr-defined]


def test_the_logger_of_a_task(caplog: pytest.LogCaptureFixture) -> None:
    task = LocalTask(TaskContext("task-7", stage="work"), OperatorFactory(MapOperator, str))
    logger = task.logger
    with caplog.at_level(logging.INFO, "sageruntime.task.work"):
        logger.info("seen")
        logger.debug("not seen")
    logger.info("not seen either")
    assert [(r.message, r.task, r.stage) for r in caplog.records] == [  # type: ignore[attr-defined]
        ("seen", "task-7", "work")
    ]
    again = pickle.loads(pickle.dumps(logger))
    assert (type(again), again.name, again.task, again.stage) == (
        TaskLogger, "sageruntime.task.work", "task-7", "work",
    )  # fmt: skip
    task.cleanup()


def test_loggers_go_with_their_tasks() -> None:
    known = len(logging.Logger.manager.loggerDict)
    for number in range(100):
        TaskContext(f"task-{number}", stage="the-same")
    assert len(logging.Logger.manager.loggerDict) <= known + 1


def test_a_portable_record_is_the_same_event() -> None:
    logger = TaskLogger("task-0", "work")
    try:
        raise ValueError("no\nplace")
    except ValueError as error:
        record = logger.makeRecord(
            "name", logging.ERROR, "file", 1, "failed on %s", (object(),),
            (ValueError, error, error.__traceback__), extra={"packet": 2**64 - 1},
        )  # fmt: skip
    travelled = pickle.loads(pickle.dumps(portable(record)))
    formatter = json_formatter()
    assert json.loads(formatter.format(travelled)) == json.loads(formatter.format(record))
    assert record.exc_info is not None  # the original is as it was


def test_nothing_has_to_be_configured() -> None:
    """Without handlers, warnings come out on stderr, as Python does it."""
    code = (
        "from sageruntime import Pipeline\n"
        "if __name__ == '__main__':\n"
        "    pipeline = Pipeline('p').source([0]).map(lambda n: 1 / n, error_policy='skip')\n"
        "    pipeline.sink().run('process')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.count("ZeroDivisionError: division by zero; policy skip") == 1
