"""``sagert run``: a job from its file to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sageruntime.cli import progress, summary
from sageruntime.cli.console import LogFormat, LogLevel, exit_codes, start_logging
from sageruntime.cli.job_arguments import (
    Format,
    JobFile,
    Level,
    On,
    With,
    checked_host,
    configured_job,
)
from sageruntime.job_file import pipeline_of


def run(
    job_file: JobFile,
    on: On = None,
    with_: With = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the result goes as JSON, instead of the file's.")
    ] = None,
    log_level: Level = LogLevel.WARNING,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Run a job to its end and show its result and a summary."""
    start_logging(log_format, log_level)
    with exit_codes():
        host = checked_host(on)
        job_config = configured_job(job_file, with_)
        pipeline = pipeline_of(job_config, job_file.parent)
        with pipeline.start(host, **job_config.start_options()) as job:
            progress.follow(job)
            result = job.result()
    summary.show(result, job_config.result, output)
