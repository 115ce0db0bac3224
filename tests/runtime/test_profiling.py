"""Profiles: what the flame graphs show and where the time table says the time goes."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from rich.console import Console

from sageruntime import Pipeline, TaskOptions
from sageruntime.errors import JobFailed, MonitoringError
from sageruntime.profiling import Frame, StackProfile, flame_graph, time_report, time_table
from sageruntime.profiling.spy import Spy

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Page(HTMLParser):
    """The frames of a flame graph with their seconds, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.loads: list[str] = []
        self._frame: float | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [str(values[name]) for name in ("src", "href") if name in values]
        if "data-seconds" in values:
            self._frame = float(values["data-seconds"] or 0)

    def handle_data(self, data: str) -> None:
        if self._frame is not None:
            self.seconds[data] = self.seconds.get(data, 0.0) + self._frame
            self._frame = None


def test_a_flame_graph_is_as_wide_as_the_time() -> None:
    main, parse, score = Frame("main", "a.py:1"), Frame("<parse>", "a.py:5"), Frame("s", "b.py:9")
    profile = StackProfile({(main, parse): 1.0, (main, score): 2.5, (main,): 0.5})
    page = Page(flame_graph("work & play", profile))
    assert page.seconds == {"work & play": 4.0, "main": 4.0, "<parse>": 1.0, "s": 2.5}
    assert page.loads == []


def test_what_cannot_be_seen_is_left_out() -> None:
    profile = StackProfile({(Frame("long", "a.py:1"),): 100.0, (Frame("short", "a.py:2"),): 0.01})
    assert "short" not in Page(flame_graph("work", profile)).seconds


def test_a_flame_graph_of_nothing() -> None:
    assert Page(flame_graph("work", StackProfile())).seconds == {"work": 0.0}


def test_profiles_add_up() -> None:
    frame, task = Frame("f", "a.py:1"), Frame("task-0", "task")
    profile = StackProfile.merged([StackProfile({(frame,): 1.0}), StackProfile({(frame,): 2.0})])
    assert profile.seconds == {(frame,): 3.0}
    assert profile.total == 3.0
    assert pickle.loads(pickle.dumps(profile.under(task))).seconds == {(task, frame): 3.0}


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def doze(seconds: float) -> None:
    time.sleep(seconds)


def test_threads_are_sampled_side_by_side() -> None:
    spy = Spy()
    took: Counter[str] = Counter()
    lock = threading.Lock()

    def work(seconds: float) -> None:
        for _ in range(10):
            begun = time.perf_counter()
            burn(seconds)
            burnt = time.perf_counter()
            doze(seconds)
            slept = time.perf_counter()
            with lock:
                took["burn"] += burnt - begun
                took["doze"] += slept - burnt
                took[threading.current_thread().name] += slept - begun

    threads = [
        threading.Thread(target=work, args=(seconds,), name=name)
        for name, seconds in (("task-1", 0.02), ("task-1_0", 0.04), ("task-10", 0.02))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    of_one, of_other = spy.get_profile("task-1"), spy.get_profile("task-10")
    assert spy.get_profile("task").seconds == {}
    page = Page(flame_graph("work", StackProfile.merged([of_one, of_other])))
    # A busy machine costs samples, of one thing as of another: shares are what is right.
    seen = sum(page.seconds[thread.name] for thread in threads)
    spent = sum(took[thread.name] for thread in threads)
    for name, seconds in took.items():
        assert page.seconds[name] / seen == pytest.approx(seconds / spent, abs=0.15)
    assert {stack[0].function for stack in of_one.seconds} == {"task-1", "task-1_0"}
    outermost = {stack[1].function for stack in of_one.seconds}
    assert "burn" in outermost  # and not how the thread was started
    place = next(frame.place for stack in of_one.seconds for frame in stack[1:])
    assert place.startswith(__file__)


def test_without_py_spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(MonitoringError, match=r"pip install 'sagequeue\[profile\]'"):
        Pipeline("blind").source(range(10)).sink().run(profile=tmp_path)


def test_where_py_spy_may_not_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho Permission Denied\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(MonitoringError, match=r"Permission Denied.*SYS_PTRACE"):
        Pipeline("blind").source(range(10)).sink().run(profile=tmp_path)


@pytest.fixture(params=["thread", "process", "ray"])
def on(request: pytest.FixtureRequest) -> Any:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return request.param


# A queue holds little, so that waiting for room shows.
OPTIONS = TaskOptions(batch_size=50, queue_maxsize=100, monitoring_interval=0.1)


def compute(n: Any) -> Any:
    burn(0.001)
    return n


def rest(n: Any) -> Any:
    doze(0.001)
    return n


# What a stage is seen to have spent is at least what its packets take. A busy machine adds to all
# of it, so no share of it is certain.
PACKETS, AT_LEAST = 600, 0.6


def seconds(pipeline: Pipeline, on: Any) -> dict[str, dict[str, float]]:
    return {row["stage"]: row["seconds"] for row in time_report(pipeline.run(on).metrics)}


@pytest.mark.parametrize("work", [compute, rest])
def test_a_slow_operator_is_where_the_time_goes(work: Any, on: Any) -> None:
    pipeline = Pipeline("slow", options=OPTIONS).source(range(PACKETS), name="read")
    spent = seconds(pipeline.map(work, name="work").sink(lambda n: None, name="write"), on)
    assert spent["work"]["operator"] >= AT_LEAST
    assert spent["write"]["waiting"] > 0.3 * AT_LEAST
    assert spent["read"]["routing"] > 0.1 * AT_LEAST  # it waits for room


def test_a_slow_sink_holds_up_those_before_it(on: Any) -> None:
    pipeline = Pipeline("slow", options=OPTIONS).source(range(PACKETS), name="read")
    spent = seconds(pipeline.map(lambda n: n, name="work").sink(rest, name="write"), on)
    assert spent["write"]["operator"] >= AT_LEAST
    assert spent["work"]["routing"] > 0.1 * AT_LEAST


class Puzzle:
    """Arrives as a number that takes its time to be worked out."""

    def __reduce__(self) -> Any:
        return sum, (range(100_000),)


def test_what_is_hard_to_decode() -> None:
    pipeline = Pipeline("puzzles", options=OPTIONS).source(range(200), name="read")
    pipeline.map(lambda n: Puzzle(), name="make").map(str, name="solve", on="process")
    spent = seconds(pipeline.sink(), None)["solve"]
    assert spent["decoding"] > spent["operator"] + spent["routing"]


def test_a_slow_source_is_what_its_time_goes_to() -> None:
    pipeline = Pipeline("slow").source(map(rest, range(PACKETS)), name="read").sink(name="write")
    spent = seconds(pipeline, "thread")
    assert spent["read"]["operator"] >= AT_LEAST
    assert spent["write"]["waiting"] > 0.3 * AT_LEAST


def test_threads_of_one_task_share_its_time() -> None:
    pipeline = Pipeline("lanes").source(range(PACKETS)).map(rest, name="work", worker_threads=3)
    assert seconds(pipeline.sink(), "thread")["work"]["operator"] >= AT_LEAST / 3


def test_the_table_of_a_job() -> None:
    result = Pipeline("table").source(range(100), name="read").sink(name="write").run()
    text = io.StringIO()
    Console(width=120, file=text).print(time_table(result.metrics))
    for word in ("waiting", "decoding", "operator", "routing", "read", "write", "%"):
        assert word in text.getvalue()


def test_a_job_leaves_flame_graphs(on: Any, tmp_path: Path) -> None:
    folder = tmp_path / "some" / "folder"
    # 1.2 s of work: where all cores are busy, py-spy has to wait for its turn, and misses some
    pipeline = Pipeline("flames", options=OPTIONS).source(range(1200), name="read")
    pipeline.map(compute, name="work", parallelism=2).map(rest, name="rest", worker_threads=2)
    pipeline.sink(name="write").run(on, profile=folder)
    pages = {file.stem: Page(file.read_text()) for file in folder.glob("*.html")}
    assert pages.keys() == {"read", "work", "rest", "write"}
    for stage, page in pages.items():
        assert page.loads == []
        whole = page.seconds[f"flames: {stage}"]
        threads = [name for name in page.seconds if f"-{stage}-" in name]
        assert sum(page.seconds[name] for name in threads) == pytest.approx(whole, rel=0.05)
    assert sum("-work-" in name for name in pages["work"].seconds) == 2
    assert pages["work"].seconds["burn"] > 0.2
    assert pages["rest"].seconds["rest"] > 0.2  # in both threads of the task
    times = json.loads((folder / "times.json").read_text())
    assert [row["stage"] for row in times] == ["read", "work", "rest", "write"]
    assert times[1]["tasks"] == 2


def test_a_job_that_fails_leaves_what_was_seen(tmp_path: Path) -> None:
    def work(n: int) -> int:
        compute(n)
        if n == 800:
            raise LookupError("no more")
        return n

    pipeline = Pipeline("failing").source(range(1000)).map(work, name="work").sink()
    with pytest.raises(JobFailed):
        pipeline.run(profile=tmp_path)
    assert Page((tmp_path / "work.html").read_text()).seconds["burn"] > 0.1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MonitoringError, match="name another folder"):
        Pipeline("nowhere").source(range(10)).sink().run(profile=file / "folder")


JOB = """
name: hot
stages:
  - name: read
    source: "hot:read"
  - name: work
    map: "hot:slow"
    on: process
  - name: write
    sink: collect
"""


def test_sagert_run_shows_where_the_time_goes(tmp_path: Path) -> None:
    (tmp_path / "hot.py").write_text(
        "import time\n"
        "def read():\n    return range(1000)\n"
        "def slow(n):\n    time.sleep(0.001)\n    return n\n"
    )
    (tmp_path / "hot.yaml").write_text(JOB)
    command = [Path(sys.executable).with_name("sagert"), "run", "hot.yaml"]
    done = subprocess.run(
        [*command, "--profile", "seen", "--prometheus-port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "where the time goes" in done.stdout
    assert "flame graphs are in seen" in done.stdout
    assert "metrics are served at port" in done.stderr
    page = Page((tmp_path / "seen" / "work.html").read_text())
    assert page.seconds["slow"] > 0.2
