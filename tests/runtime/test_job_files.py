"""Job files: what is wrong with one is said with its line and its path."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sageruntime.config import load_job
from sageruntime.errors import ConfigError, OperatorNotFound
from sageruntime.job_file import build_pipeline
from sageruntime.operator.operator_factory import register_operator

GOOD = """\
name: job
stages:
  - source: letters
  - map: upper
    on: process
  - sink: collect
task:
  local: {max_buffer_size: 100, queue_maxsize: 200, worker_threads: 1}
  ray: {lifetime: detached, resources: {CPU: 0.5}, memory: 1GB}
performance:
  batch_processing: true
  batch_size: 20
  monitoring_interval: 5s
"""

register_operator("letters", lambda: iter("abc"))
register_operator("upper", str.upper)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


def test_a_job_file_in_full(file: Path) -> None:
    job = load_job(file)
    assert job.task.ray.memory == 1_000_000_000
    assert job.performance.monitoring_interval == 5.0
    pipeline = build_pipeline(job, file.parent)
    assert [stage.host for stage in pipeline.stages] == ["thread", "process", "thread"]
    options = pipeline.stages[0].options
    assert (options.max_buffer_size, options.queue_maxsize, options.batch_size) == (100, 200, 20)
    assert options.monitoring_interval == 5.0
    assert pipeline.run().sink_result == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  batch_size: 20", "  batch_sizes: 20", "12: performance.batch_sizes: unknown key"),
        ("  batch_size: 20", "  batch_size: many", "12: performance.batch_size: .*'many'"),
        ("  batch_size: 20", "  batch_size: 0", "12: performance.batch_size: .*greater"),
        ("  batch_size: 20", "  batch_size: '20'", "12: performance.batch_size: .*integer"),
        ("5s", "5 parsecs", "13: performance.monitoring_interval: .*30s"),
        ("1GB", "huge", "9: task.ray.memory"),
        ("on: process", "on: moon", r"5: stages\[1\].on: .*thread"),
        ("    on: process", "    filter: upper", r"4: stages\[1\]: .*exactly one of"),
        ("name: job", "title: job", "name: is required"),
        ("stages:", "stages: 3\nrest:", "2: stages: "),
        (GOOD, "", "1: the file: "),
        (GOOD, "a: [", "is not YAML"),
    ],
)
def test_mistakes(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=said) as caught:
        load_job(file)
    assert all(problem.startswith(str(file)) for problem in caught.value.problems)


def test_every_mistake_is_told_at_once(file: Path) -> None:
    file.write_text(GOOD.replace("batch_size: 20", "batch_size: 0").replace("1GB", "huge"))
    with pytest.raises(ConfigError) as caught:
        load_job(file)
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonesuch", "known: .*collect"),
        ("no_module:x", "leads nowhere"),
        ("json:x", "no attribute"),
    ],
)
def test_operators_that_do_not_exist(file: Path, name: str, said: str) -> None:
    file.write_text(GOOD.replace("map: upper", f"map: {name}"))
    with pytest.raises(OperatorNotFound, match=said):
        build_pipeline(load_job(file), file.parent)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["job.yaml", "--on", "moon"], 2, "thread, process, ray"),
        (["job.yaml", "--with", "nonsense"], 2, "STAGE.KEY=VALUE"),
        (["job.yaml", "--with", "x.y=1"], 2, "no stage is named"),
        (["none.yaml"], 2, "cannot be read"),
        (["failing.yaml"], 1, "division by zero"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "mine.py").write_text("def one(): return [1]\ndef fail(n): return n / 0\n")
    good = "name: job\nstages:\n  - source: mine:one\n  - sink: collect\n"
    (tmp_path / "job.yaml").write_text(good)
    failing = good.replace("  - sink", "  - map: mine:fail\n    on: process\n  - sink")
    (tmp_path / "failing.yaml").write_text(failing)
    done = subprocess.run(
        [sys.executable, "-m", "sageruntime", "run", *arguments],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert code == 1 or "Traceback" not in done.stderr


@pytest.mark.parametrize("on", ["thread", "process", "ray"])
def test_classes_of_the_job_s_own_module_travel(tmp_path: Path, on: str) -> None:
    (tmp_path / "shop.py").write_text(
        textwrap.dedent("""
            from dataclasses import dataclass
            @dataclass
            class Order:
                number: int
            def numbers(): return range(3)
            def order(number): return Order(number)
            def double(order):
                assert isinstance(order, Order)
                return Order(order.number * 2)
            def number(order):
                assert isinstance(order, Order)
                return order.number
        """)
    )
    (tmp_path / "job.yaml").write_text(
        "name: job\nstages: [source: 'shop:numbers', map: 'shop:order', map: 'shop:double', "
        "map: 'shop:number', sink: collect]\nresult: {file: result.json}\n".replace(", ", "}, {")
        .replace("[", "[{")
        .replace("]", "}]")
    )
    done = subprocess.run(
        [sys.executable, "-m", "sageruntime", "run", "job.yaml", "--on", on],
        capture_output=True, text=True, timeout=150, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text()) == [0, 2, 4]
