"""Arguments shared by the commands that run a job file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from sageruntime.cli.console import LogFormat, LogLevel
from sageruntime.config import JobConfig, JobLoader, load_job
from sageruntime.errors import ConfigError, InvalidOption
from sageruntime.factory.task_factory import check_task_type

JobFile = Annotated[Path, typer.Argument(help="The job, as YAML.")]
On = Annotated[
    str | None,
    typer.Option("--on", help="Where all stages run: thread, process, ray, or a task type."),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="STAGE.KEY=VALUE",
        help="An argument of a stage, instead of the file's.",
    ),
]
Level = Annotated[
    LogLevel,
    typer.Option("--log-level", envvar="SAGERT_LOG_LEVEL", help="From which level on to log."),
]
Format = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", envvar="SAGERT_LOG_FORMAT", help="json: stderr has log records only."
    ),
]


def checked_host(on: str | None) -> str | None:
    """``--on``, if it names a task type.

    Raises:
        ConfigError: it names none.
    """
    if on is not None:
        try:
            check_task_type(on)
        except InvalidOption as error:
            raise ConfigError([f"--on {on}: {error}"]) from error
    return on


def configured_job(job_file: Path, with_: Iterable[str] | None) -> JobConfig:
    """The job of a file, with the arguments of ``--with``.

    Raises:
        ConfigError: the file or an argument is wrong.
    """
    return load_job(job_file, dict(_argument(text) for text in with_ or ()))


def _argument(text: str) -> tuple[tuple[str, str], Any]:
    target, equals, value = text.partition("=")
    stage, dot, key = target.partition(".")
    if not equals or not dot:
        raise ConfigError([f"--with {text}: expected STAGE.KEY=VALUE, such as read.folder=docs"])
    return (stage, key), yaml.load(value, Loader=JobLoader)
