"""From a job file to a pipeline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sageruntime.config import JobConfig, StageConfig
from sageruntime.errors import ConfigError
from sageruntime.factory.operator_factory import OperatorFactory, find_operator
from sageruntime.operator import BaseOperator
from sageruntime.pipeline import Pipeline


def pipeline_of(job: JobConfig, folder: Path) -> Pipeline:
    """The pipeline a job file describes; ``folder`` is where its own modules are.

    Raises:
        OperatorNotFound: a stage names an operator that does not exist.
        PipelineError, InvalidOption: the stages do not fit.
    """
    pipeline = Pipeline(job.name, options=job.task_options(), ray_options=job.ray_options())
    for position, stage in enumerate(job.stages):
        _add(pipeline, stage, position, folder)
    return pipeline


def _add(pipeline: Pipeline, stage: StageConfig, position: int, folder: Path) -> None:
    operator = find_operator(stage.operator, folder)
    options = stage.model_dump(
        include={"name", "parallelism", "on"}, exclude_unset=True, exclude_none=True
    )
    options.update(stage.task_options(pipeline.options))
    if stage.kind == "key_by":
        unused = sorted(options.keys() - {"name"})
        if unused:
            raise ConfigError(
                [f"stages[{position}]: key_by runs in the stage before; it takes no {unused[0]}"]
            )
        options = {}
    getattr(pipeline, stage.kind)(_recipe(operator, stage.arguments), **options)


def _recipe(operator: Any, arguments: dict[str, Any]) -> Any:
    if not arguments:
        return operator
    if isinstance(operator, type) and issubclass(operator, BaseOperator):
        return OperatorFactory(operator, **arguments)
    return partial(operator, **arguments)
