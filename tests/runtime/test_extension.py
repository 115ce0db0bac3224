"""Extension by others: an installed package's plugin, task types and operator; custom tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sageruntime import (
    BaseOperator,
    BaseTask,
    LocalTask,
    OperatorFactory,
    Packet,
    Pipeline,
    TaskContext,
)
from sageruntime.operator import CollectSink, MapOperator
from sageruntime.plugins import hookimpl
from sageruntime.task.process_task import ProcessTask
from sageruntime.task.ray_task import RayTask

THIRD_PARTY = Path(__file__).parent / "thirdparty"

# Ray's workers cannot import this module: what they need of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the third-party package is installed."""
    folder = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source") / "spices"  # building leaves files behind
    subprocess.run(["cp", "-r", str(THIRD_PARTY), str(copy)], check=True)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--no-index", "--target", str(folder), str(copy),
        ],
        check=True,
        timeout=120,
    )  # fmt: skip
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(script: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """The lines that a script prints."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_installed_plugin_works_in_every_host(installed: dict[str, str], tmp_path: Path) -> None:
    lines = run(
        """
        import os
        from sageruntime import Pipeline

        def identity(text):
            return text

        if __name__ == "__main__":
            pipeline = Pipeline("spiced").source(["rice", "mould"])
            pipeline.map(identity, name="threads").map(identity, name="processes", on="process")
            print("result", pipeline.sink(name="sink").run().sink_result)
            plain = Pipeline("plain", plugins=["no:pepper"]).source(["rice"]).sink().run()
            print("plain", plain.sink_result)
            print("pid", os.getpid())
        """,
        tmp_path,
        installed,
    )
    results = [line.partition(" ")[2] for line in lines if line.startswith("result")]
    assert results == ["['rice pepper(threads) pepper(processes) pepper(sink)']"]
    assert "plain ['rice']" in lines
    (pid,) = (line.split()[1] for line in lines if line.startswith("pid"))
    # monitored where the job is, whatever the host
    for stage in ("source-0", "threads", "processes", "sink"):
        assert f"{pid} {stage} running" in lines or f"{pid} {stage} draining" in lines
        assert f"{pid} {stage} stopped" in lines
    assert not any("stopped" in line and not line.startswith(pid) for line in lines)


def test_installed_task_types_and_operators_have_names(
    installed: dict[str, str], tmp_path: Path
) -> None:
    lines = run(
        """
        from sageruntime import OperatorFactory, Pipeline
        from sageruntime.errors import OperatorNotFound, TaskNotFound

        def identity(text):
            return text

        if __name__ == "__main__":
            grind = OperatorFactory.named("grind", fineness=3)
            for on in ("spiced", "spiced_process"):
                pipeline = Pipeline("spiced", plugins=["no:pepper"]).source(["rice"])
                print(pipeline.map(grind, on=on).sink().run().sink_result)
            for name in ("spice", "moon"):
                try:
                    Pipeline("p").source(["rice"], on=name)
                except TaskNotFound as error:
                    print(error)
            try:
                OperatorFactory.named("grimd")
            except OperatorNotFound as error:
                print(error)
        """,
        tmp_path,
        installed,
    )
    assert lines[:2] == ["['rice salt ground(3)']"] * 2
    known = "known: thread, process, ray, spiced, spiced_process"
    assert lines[2].endswith(f"{known}; did you mean 'spiced'?")
    assert lines[3].endswith(known)
    assert lines[4].endswith("known: collect, count_by_key, grind; did you mean 'grind'?")


def test_job_files_know_them_too(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kitchen.py").write_text(
        textwrap.dedent("""
            from sageruntime import LocalTask
            from sageruntime.plugins import hookimpl
            from sageruntime.service import Service

            class Serving:
                @hookimpl
                def after_process(self, ctx, results):
                    for result in results:
                        result.payload += " served"

            class Slow(LocalTask):
                def custom_process(self, packet):
                    packet.payload += " slowly"
                    return self.operator.process(packet)

            class Oven(Service):
                def __init__(self, heat):
                    self.heat = heat

                def bake(self, food):
                    return f"{food} baked({self.heat})"

            def pantry():
                return ["rice"]
        """)
    )
    (tmp_path / "cooks.py").write_text(
        textwrap.dedent("""
            from sageruntime import BaseOperator

            class Baker(BaseOperator):
                def process(self, packet):
                    packet.payload = self.call_service("oven").bake(packet.payload, timeout=30)
                    return packet
        """)
    )
    (tmp_path / "job.yaml").write_text(
        textwrap.dedent("""
            name: dinner
            plugins: ["kitchen:Serving", "no:pepper"]
            services:
              - {name: oven, service: "kitchen:Oven", with: {heat: 200}, on: process}
            stages:
              - source: kitchen:pantry
              - {map: grind, with: {fineness: 2}, on: spiced_process}
              - {map: "cooks:Baker", on: "kitchen:Slow"}
              - {sink: collect, name: sink}
            result: {file: result.json}
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "sageruntime", "run", "job.yaml"],
        env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = (tmp_path / "result.json").read_text()
    assert "rice salt ground(2) served slowly baked(200) served" in result
    (tmp_path / "job.yaml").write_text(
        'name: x\nplugins: ["kitchen:Nothing"]\nstages: [{source: kitchen:pantry}, {sink: collect}]'
    )
    done = subprocess.run(
        [sys.executable, "-m", "sageruntime", "run", "job.yaml"],
        env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'kitchen:Nothing' leads nowhere" in done.stderr


# The specification's own example, word for word but for what it leaves open.
class CustomTask(LocalTask):
    def __init__(self, runtime_context: TaskContext, operator_factory: Any, **rest: Any) -> None:
        super().__init__(runtime_context, operator_factory, **rest)
        self.calls = 0

    def custom_process(self, packet: Packet) -> Any:
        self.calls += 1
        packet.payload = f"custom {packet.payload}"
        return self.operator.process(packet)


class DirectTask(BaseTask):
    def __init__(self, runtime_context: TaskContext, operator_factory: Any) -> None:
        super().__init__(runtime_context, operator_factory)

    def custom_process(self, packet: Packet) -> Any:
        return self.operator.process(packet)


class CustomProcessTask(ProcessTask):
    def custom_process(self, packet: Packet) -> Any:
        packet.payload = f"custom {packet.payload} of {self.ctx.stage}"
        return self.operator.process(packet)


class CustomRayTask(RayTask):
    def custom_process(self, packet: Packet) -> Any:
        packet.payload = f"custom {packet.payload} of {self.ctx.stage}"
        return self.operator.process(packet)


def test_a_custom_task_by_itself() -> None:
    for task_class in (CustomTask, DirectTask):
        task = task_class(TaskContext("custom"), OperatorFactory(CollectSink))
        task.put_packet(Packet(payload=1))
        task.start_running()
        task.stop(timeout=30)
        expected = "custom 1" if task_class is CustomTask else 1
        assert task.get_report().result == [expected]
        task.cleanup()


def test_custom_tasks_host_stages_by_class(ray_cluster: None) -> None:
    result = (
        Pipeline("custom")
        .source(["a"])
        .map(str, on=CustomRayTask, name="first")
        .map(str, on=CustomTask)
        .map(str, on=CustomProcessTask, name="third", parallelism=2)
        .sink()
        .run()
    )
    assert result.sink_result == ["custom custom custom a of first of third"]
    assert [stage.host for stage in result.stages] == [
        "thread", "ray", "thread", "process", "thread",
    ]  # fmt: skip


class Counting:
    """Says how many packets each process has seen."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def after_process(self, results: list[Packet]) -> None:
        self.count += 1
        for result in results:
            result.payload = (*result.payload, self.count)


class Start(BaseOperator):
    def process(self, packet: Packet) -> Packet:
        packet.payload = (packet.payload,)
        return packet


@pytest.mark.parametrize("on", ["thread", "process", "ray"])
def test_a_pipelines_plugins_go_with_its_tasks(on: Any, ray_cluster: None) -> None:
    pipeline = Pipeline("plugged", plugins=[Counting]).source("ab")
    pipeline.map(Start).map(OperatorFactory(MapOperator, lambda seen: seen)).sink()
    # a class makes one plugin for each task
    assert pipeline.run(on).sink_result == [("a", 1, 1), ("b", 2, 2)]
