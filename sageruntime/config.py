"""Job files: YAML that names the stages of a pipeline and the options of its tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from sageruntime.errors import ConfigError

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_BYTE_SIZE = TypeAdapter(ByteSize)

KINDS = ("source", "map", "filter", "flat_map", "key_by", "sink")


def _seconds(value: Any) -> Any:
    """``"30s"``, ``"500ms"``, ``"2m"``, ``"1h"`` or a number of seconds."""
    if isinstance(value, str):
        number = value.rstrip("msh")
        unit = value[len(number) :]
        try:
            return float(number) * _SECONDS[unit]
        except (KeyError, ValueError):
            raise ValueError(
                f"{value!r} is no time; expected a number with ms, s, m or h, such as 30s"
            ) from None
    return value


def _bytes(value: Any) -> Any:
    """``"1GB"``, ``"512MiB"`` or a number of bytes."""
    return int(_BYTE_SIZE.validate_python(value)) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class JobLoader(yaml.SafeLoader):
    """YAML as of version 1.2: ``on`` is a key like any other; only true and false are booleans."""


JobLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
JobLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)


class _Section(BaseModel):
    """No unknown keys, no guessing of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LocalTaskConfig(_Section):
    """``task.local``: how every task works, whatever its host."""

    max_buffer_size: int = Field(30_000, ge=1)
    queue_maxsize: int = Field(50_000, ge=1)
    worker_threads: int = Field(1, ge=1)


class RayTaskConfig(_Section):
    """``task.ray``: the actors of stages on Ray."""

    lifetime: Literal["detached"] | None = None
    resources: dict[str, float] = Field(default_factory=dict)
    memory: Bytes | None = None


class TaskConfig(_Section):
    """``task``: options by kind of host."""

    local: LocalTaskConfig = LocalTaskConfig()
    ray: RayTaskConfig = RayTaskConfig()


class PerformanceConfig(_Section):
    """``performance``: batches and how often tasks report."""

    batch_processing: bool = True
    batch_size: int = Field(100, ge=1)
    monitoring_interval: Seconds = 0.2


class StageConfig(_Section):
    """One of ``stages``: exactly one of the kinds, and how it runs."""

    source: str | None = None
    map: str | None = None
    filter: str | None = None
    flat_map: str | None = None
    key_by: str | None = None
    sink: str | None = None
    name: str | None = None
    parallelism: int = Field(1, ge=1)
    on: Literal["thread", "process", "ray"] | None = None
    worker_threads: int | None = Field(None, ge=1)
    error_policy: Literal["fail", "skip", "dead_letter"] | None = None
    arguments: dict[str, Any] = Field(default_factory=dict, alias="with")

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def operator(self) -> str:
        """The operator's registered name or import path."""
        return str(getattr(self, self.kind))

    def model_post_init(self, context: Any) -> None:
        """Check that it is one kind of stage."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a stage has exactly one of {', '.join(KINDS)}; this one has "
                f"{', '.join(given) or 'none'}"
            )


class ResultConfig(_Section):
    """``result``: what becomes of the sink's result."""

    columns: list[str] = Field(default_factory=list)
    rows: int = Field(20, ge=1)
    file: str | None = None


class JobConfig(_Section):
    """A whole job file."""

    name: str
    stages: list[StageConfig] = Field(min_length=2)
    task: TaskConfig = TaskConfig()
    performance: PerformanceConfig = PerformanceConfig()
    result: ResultConfig = ResultConfig()


def load_job(path: Path, arguments: Mapping[tuple[str, str], Any] | None = None) -> JobConfig:
    """Read and check a job file.

    Args:
        path: the file.
        arguments: values for ``with`` of stages, by stage name and key, that take the place of
            the file's.

    Raises:
        ConfigError: the file cannot be read or is not a valid job; every mistake has its line
            and its path in the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=JobLoader)
        data = yaml.load(text, Loader=JobLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is not YAML: {error}"]) from error
    try:
        job = JobConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            [
                f"{path}:{_line_of(root, problem['loc'])}: "
                f"{_path_of(problem['loc'])}: {_remedy(problem)}"
                for problem in error.errors()
            ]
        ) from error
    for (stage_name, key), value in (arguments or {}).items():
        _stage_named(path, job, stage_name).arguments[key] = value
    return job


def _stage_named(path: Path, job: JobConfig, name: str) -> StageConfig:
    for stage in job.stages:
        if stage.name == name:
            return stage
    names = ", ".join(stage.name for stage in job.stages if stage.name)
    raise ConfigError([f"{path}: no stage is named {name!r}; there are: {names}"])


def _path_of(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path or "the file"


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line of the innermost node on the way that exists."""
    line = node.start_mark.line + 1 if node is not None else 1
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = [(item, item) for item in node.value[step : step + 1]]
        else:
            break
        if not found:
            break
        key, node = found[0]
        line = key.start_mark.line + 1
    return line


def _remedy(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; correct its spelling or remove it"
    if problem["type"] == "missing":
        return "is required; add it"
    return f"{problem['msg']}; got {problem['input']!r}"
