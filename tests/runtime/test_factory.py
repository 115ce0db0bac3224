"""Factories and registries: operators and task types by name, class and import path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sageruntime import LocalTask, OperatorFactory, Packet, Pipeline, TaskContext
from sageruntime.core.import_path import import_attribute
from sageruntime.core.registry import Registry
from sageruntime.errors import (
    InvalidOption,
    OperatorError,
    OperatorNotFound,
    PluginError,
    TaskNotFound,
)
from sageruntime.factory import find_operator, register_operator
from sageruntime.factory.task_factory import (
    choose_scope,
    create_task,
    find_host,
    find_task,
    register_task,
)
from sageruntime.operator import CollectSink, CountByKey, MapOperator
from sageruntime.plugins.plugin_factory import find_plugin
from sageruntime.task.process_task import ProcessTask


class Upper(MapOperator):
    def __init__(self) -> None:
        super().__init__(str.upper)


def test_operators_have_names() -> None:
    assert find_operator("collect") is CollectSink
    assert find_operator("count_by_key") is CountByKey
    assert find_operator(f"{__name__}:Upper") is Upper
    register_operator("upper", Upper)
    assert find_operator("upper") is Upper
    pipeline = Pipeline("named").source("ab").map(OperatorFactory.named("upper"))
    assert pipeline.sink(OperatorFactory.named("collect")).run().sink_result == ["A", "B"]


def test_arguments_of_named_operators() -> None:
    factory = OperatorFactory.named("sageruntime.operator:MapOperator", len)
    operator = factory.create_operator(TaskContext("x"))
    assert operator.process(Packet("abc")).payload == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colect", r"no operator is named 'colect'; .*sageruntime.operators; "
                   r"known: collect, count_by_key.*; did you mean 'collect'\?"),
        ("zzz", r"known: collect, count_by_key[^?]*$"),
        ("nowhere:x", "leads nowhere: No module named 'nowhere'"),
        ("sageruntime:x", "leads nowhere: .*has no attribute 'x'"),
        ("sageruntime.operator:MapOperator.x", "leads nowhere: .*has no attribute 'x'"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(OperatorNotFound, match=message):
        find_operator(name)


def test_a_name_that_is_no_operator() -> None:
    with pytest.raises(OperatorError, match="expected an operator class"):
        OperatorFactory.named("sageruntime.stage:__doc__")


def test_modules_beside_a_file(tmp_path: Path) -> None:
    (tmp_path / "beside_a_file.py").write_text("class Here:\n    there = 5\n")
    assert import_attribute("beside_a_file:Here.there", tmp_path) == 5
    with pytest.raises(ImportError):
        import_attribute("beside_another_file:Here", tmp_path)


class Mine(LocalTask):
    pass


class Sandboxed(ProcessTask):
    host = "sandbox"


def test_task_types_have_names() -> None:
    assert find_task("thread") is LocalTask
    assert find_task("process") is ProcessTask
    assert find_task(Mine) is Mine
    assert find_task(f"{__name__}:Mine") is Mine
    register_task("mine", Mine)
    task = create_task("mine", TaskContext("t"), OperatorFactory(CollectSink), worker_threads=2)
    assert type(task) is Mine
    assert task.options.worker_threads == 2
    task.cleanup()


def test_where_task_types_run() -> None:
    assert [find_host(on) for on in ("thread", "process", "ray", Mine, Sandboxed)] == [
        "thread", "process", "ray", "thread", "sandbox",
    ]  # fmt: skip
    assert choose_scope("thread", Mine) == "thread"
    assert choose_scope("thread", Sandboxed, Mine) == "machine"
    assert choose_scope(Sandboxed, "ray") == "cluster"


@pytest.mark.parametrize(
    ("on", "error", "message"),
    [
        ("proces", TaskNotFound, "known: thread, process, ray.*; did you mean 'process'"),
        ("nowhere:Task", TaskNotFound, "leads nowhere"),
        (f"{__name__}:Upper", InvalidOption, "expected a subclass of BaseTask"),
        (Upper, InvalidOption, "expected a subclass of BaseTask"),
        (5, InvalidOption, "expected a subclass of BaseTask"),
    ],
)
def test_task_types_that_are_none(on: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pipeline("p").source([1], on=on)


def test_plugins_are_found_by_import_path() -> None:
    assert find_plugin(f"{__name__}:Upper") is Upper
    assert find_plugin("no:pepper") == "no:pepper"
    with pytest.raises(PluginError, match="leads nowhere"):
        find_plugin("nowhere:plugin")


def test_what_is_registered_comes_before_what_is_built_in() -> None:
    registry = Registry("thing", "no.such.group", {"a": "math:pi", "b": "math:e"}, OperatorNotFound)
    registry.register("c", 3)
    assert registry.names() == ["a", "b", "c"]
    registry.register("a", 1)
    assert registry.find("a") == 1
    assert registry.names() == ["a", "b", "c"]
