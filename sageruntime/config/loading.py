"""Reading configuration: from a file and the environment to checked values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sageruntime.config.environment import from_environment, list_variables
from sageruntime.config.job import JobConfig, StageConfig
from sageruntime.config.job_yaml import JobLoader, find_line
from sageruntime.config.settings import Settings
from sageruntime.errors import ConfigError

Location = tuple[int | str, ...]
Model = TypeVar("Model", bound=Settings)


def load_job(path: Path, arguments: Mapping[tuple[str, str], Any] | None = None) -> JobConfig:
    """Read and check a job file; what the environment says overrides it.

    Args:
        path: the file.
        arguments: values for ``with`` of stages, by stage name and key, that take the place of
            the file's.

    Raises:
        ConfigError: the file cannot be read or is not a valid job; every mistake has its line
            and its path in the file, or the environment variable it comes from.
    """
    job = _load(path, JobConfig)
    for (stage_name, key), value in (arguments or {}).items():
        _stage_named(path, job, stage_name).arguments[key] = value
    return job


def load_settings(path: Path | None = None) -> Settings:
    """Settings for a pipeline written in Python: from a file without stages and the environment.

    Raises:
        ConfigError: as of :func:`load_job`.
    """
    return _load(path, Settings)


def _load(path: Path | None, model: type[Model]) -> Model:
    root, data = _read(path) if path is not None else (None, {})
    environment = from_environment()
    try:
        return model.model_validate(_merged(data, environment) if isinstance(data, dict) else data)
    except ValidationError as error:
        raise ConfigError(
            [_describe(problem, path, root, environment) for problem in error.errors()]
        ) from error


def _read(path: Path) -> tuple[yaml.Node | None, Any]:
    """The file as nodes, which know their lines, and as data."""
    try:
        loader = JobLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        return root, loader.construct_document(root) if root is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{path}:{line}: is not YAML: {error.problem}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is not YAML: {error}"]) from error


def _merged(below: Any, above: Any) -> Any:
    """``above`` over ``below``, key by key."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _describe(
    problem: Mapping[str, Any], path: Path | None, root: yaml.Node | None, environment: Any
) -> str:
    """A mistake: where it is, and what to do."""
    location = problem["loc"] + tuple(problem.get("ctx", {}).get("at", ()))
    what = f"{_format_path(location)}: {_remedy(problem)}"
    if _is_in(environment, location):
        return f"environment variable {', '.join(list_variables(location))}: {what}"
    return what if path is None else f"{path}:{find_line(root, location)}: {what}"


def _is_in(data: Any, location: Location) -> bool:
    for step in location:
        if not isinstance(data, dict):
            break
        if step not in data:
            return False
        data = data[step]
    return bool(location)


def _format_path(location: Location) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path or "the file"


def _remedy(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; correct its spelling or remove it"
    if problem["type"] == "missing":
        return "is required; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], (dict, list)):
        return str(message)
    return f"{message}; got {problem['input']!r}"


def _stage_named(path: Path, job: JobConfig, name: str) -> StageConfig:
    for stage in job.stages:
        if stage.name == name:
            return stage
    names = ", ".join(stage.name for stage in job.stages if stage.name)
    raise ConfigError([f"{path}: no stage is named {name!r}; there are: {names}"])
