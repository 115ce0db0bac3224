"""``sagert run``: a job from its file to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml

from sageruntime.cli import progress, summary
from sageruntime.cli.console import LogFormat, LogLevel, exit_codes, start_logging
from sageruntime.config import JobLoader, load_job
from sageruntime.errors import ConfigError
from sageruntime.factory.task_factory import Host
from sageruntime.job_file import pipeline_of


def run(
    job_file: Annotated[Path, typer.Argument(help="The job, as YAML.")],
    on: Annotated[
        str | None, typer.Option(help="Where every stage runs: thread, process or ray.")
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="STAGE.KEY=VALUE",
            help="An argument of a stage, instead of the file's.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the result goes as JSON, instead of the file's.")
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="SAGERT_LOG_LEVEL", help="From which level on to log.")
    ] = LogLevel.WARNING,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar="SAGERT_LOG_FORMAT", help="json: stderr has log records only."),
    ] = LogFormat.TEXT,
) -> None:
    """Run a job to its end and show its result and a summary."""
    start_logging(log_format, log_level)
    with exit_codes():
        if on is not None and on not in get_args(Host):
            raise ConfigError([f"--on {on}: expected one of {', '.join(get_args(Host))}"])
        job_config = load_job(job_file, dict(_argument(text) for text in with_ or ()))
        pipeline = pipeline_of(job_config, job_file.parent)
        with pipeline.start(on, **job_config.start_options()) as job:  # type: ignore[arg-type]
            progress.follow(job)
            result = job.result()
    summary.show(result, job_config.result, output)


def _argument(text: str) -> tuple[tuple[str, str], Any]:
    target, equals, value = text.partition("=")
    stage, dot, key = target.partition(".")
    if not equals or not dot:
        raise ConfigError([f"--with {text}: expected STAGE.KEY=VALUE, such as read.folder=docs"])
    return (stage, key), yaml.load(value, Loader=JobLoader)
