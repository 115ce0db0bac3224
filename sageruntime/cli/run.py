"""``sagert run``: a job from its file to its end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from sageruntime.cli import progress, summary
from sageruntime.cli.console import (
    LogFormat,
    LogLevel,
    console,
    errors,
    exit_codes,
    start_logging,
)
from sageruntime.cli.job_arguments import (
    Format,
    JobFile,
    Level,
    On,
    With,
    checked_host,
    configured_job,
)
from sageruntime.job_file import build_pipeline
from sageruntime.profiling import time_table
from sageruntime.recovery import CheckpointOptions
from sageruntime.recovery.stores import open_store
from sageruntime.tracing import Tracing


def run(
    job_file: JobFile,
    on: On = None,
    with_: With = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the result goes as JSON, instead of the file's.")
    ] = None,
    prometheus_port: Annotated[
        int | None,
        typer.Option(help="Serve metrics for Prometheus at this port; 0 is any that is free."),
    ] = None,
    prometheus_address: Annotated[
        str | None,
        typer.Option(help="At this address of this machine, instead of 127.0.0.1."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Show where the time goes; flame graphs of all stages go to this folder.",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Make OpenTelemetry spans; the function makes each process's TracerProvider.",
        ),
    ] = None,
    log_level: Level = LogLevel.WARNING,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Run a job to its end and show its result and a summary."""
    start_logging(log_format, log_level)
    with exit_codes():
        host = checked_host(on)
        job_config = configured_job(job_file, with_)
        pipeline = build_pipeline(job_config, job_file.parent)
        given = {
            "prometheus_port": prometheus_port,
            "prometheus_address": prometheus_address,
            "profile": profile,
            "tracing": None if trace is None else Tracing(trace),
        }
        options = job_config.start_options()
        options.update((name, value) for name, value in given.items() if value is not None)
        try:
            with pipeline.start(host, **options) as job:
                if job.prometheus_port is not None:
                    errors.print(f"metrics are served at port {job.prometheus_port}")
                progress.follow(job)
                result = job.result()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept(pipeline.name, options.get("checkpoint"))) from None
    summary.show(result, job_config.result, output)
    letters = job_config.dead_letters.file
    if letters is not None and result.errors:
        console.print(f"for dead letters: sagert dlq ls {letters}", highlight=False)
    if profile is not None:
        console.print(time_table(result.metrics))
        console.print(f"flame graphs are in {profile}", highlight=False)


def _kept(job: str, checkpoint: CheckpointOptions | None) -> str:
    """What an interrupted job has left, in words."""
    latest = None
    if checkpoint is not None:
        with closing(open_store(checkpoint)) as store:
            latest = store.latest(job)
    return "nothing was kept" if latest is None else f"the next run goes on from {latest}"
