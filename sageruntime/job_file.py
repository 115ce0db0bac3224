"""From a job file to a pipeline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sageruntime.config import JobConfig, StageConfig
from sageruntime.config.job import PARTITIONERS
from sageruntime.config.options import given_options
from sageruntime.config.service import ServiceConfig
from sageruntime.core.import_path import import_attribute
from sageruntime.errors import ConfigError, OperatorNotFound
from sageruntime.factory.task_factory import TaskType, find_task
from sageruntime.operator import BaseOperator
from sageruntime.operator.operator_factory import OperatorFactory, find_operator
from sageruntime.pipeline import Pipeline
from sageruntime.plugins.plugin_factory import find_plugin


def build_pipeline(job: JobConfig, folder: Path) -> Pipeline:
    """The pipeline a job file describes; ``folder`` is where its own modules are.

    Raises:
        ConfigError: an import path leads nowhere.
        OperatorNotFound: a stage names an operator that does not exist.
        PluginError: a plugin cannot be imported.
        TaskNotFound: there is no such task type.
        PipelineError, InvalidOption: the stages do not fit.
    """
    pipeline = Pipeline(
        job.name,
        options=job.task_options(),
        ray_options=job.ray_options(),
        plugins=[find_plugin(name, folder) for name in job.plugins],
    )
    for position, service in enumerate(job.services):
        _add_service(pipeline, service, position, folder)
    for position, stage in enumerate(job.stages):
        _add(pipeline, stage, position, folder)
    return pipeline


def _add(pipeline: Pipeline, stage: StageConfig, position: int, folder: Path) -> None:
    where = f"stages[{position}]"
    try:
        operator = find_operator(stage.operator, folder)
    except OperatorNotFound as error:
        raise OperatorNotFound(f"{where}.{stage.kind}: {error}") from error
    options = stage.model_dump(
        include={"name", "parallelism"}, exclude_unset=True, exclude_none=True
    )
    if stage.on is not None:
        options["on"] = _task_type(stage.on, folder)
    options.update(given_options(stage, pipeline.options))
    if stage.kind == "key_by":
        unused = sorted({*options, *(["partition"] if stage.partition else [])} - {"name"})
        if unused:
            raise ConfigError(
                [f"{where}: key_by runs in the stage before; it takes no {unused[0]}"]
            )
        options = {}
    if stage.partition is not None:
        pipeline.partition_by(_partitioner(stage.partition, where, folder))
    getattr(pipeline, stage.kind)(_bind_arguments(operator, stage.arguments), **options)


def _add_service(pipeline: Pipeline, service: ServiceConfig, position: int, folder: Path) -> None:
    make = _imported(service.service, f"services[{position}].service", folder)
    pipeline.service(
        service.name,
        partial(make, **service.arguments) if service.arguments else make,
        on=_task_type(service.on or "thread", folder),
        **service.service_options(pipeline.options),
    )


def _task_type(name: str, folder: Path) -> TaskType:
    return find_task(name, folder) if ":" in name else name


def _partitioner(name: str, where: str, folder: Path) -> Any:
    if name in PARTITIONERS:
        return PARTITIONERS[name]()
    found = _imported(name, f"{where}.partition", folder)
    return found() if isinstance(found, type) else found


def _imported(path: str, where: str, folder: Path) -> Any:
    try:
        return import_attribute(path, folder)
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"{where}: {path!r} leads nowhere: {error}"]) from error


def _bind_arguments(operator: Any, arguments: dict[str, Any]) -> Any:
    if not arguments:
        return operator
    if isinstance(operator, type) and issubclass(operator, BaseOperator):
        return OperatorFactory(operator, **arguments)
    return partial(operator, **arguments)
