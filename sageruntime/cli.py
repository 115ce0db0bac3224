"""``sagert``: the command line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sageruntime import queues_cli
from sageruntime.config import JobLoader, ResultConfig, load_job
from sageruntime.errors import ConfigError, JobFailed, RuntimeTaskError
from sageruntime.factory.task_factory import Host
from sageruntime.job import Job
from sageruntime.job_file import pipeline_of
from sageruntime.job_result import JobResult

app = typer.Typer(
    help="Run task pipelines over SageQueue: on threads, on processes, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(queues_cli.app, name="queues")

console = Console()
errors = Console(stderr=True)

_REFRESH_SECONDS = 0.1


@app.command()
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
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what tasks do.")] = False,
) -> None:
    """Run a job to its end and show its result and a summary."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_path=False)],
    )
    try:
        if on is not None and on not in get_args(Host):
            raise ConfigError([f"--on {on}: expected one of {', '.join(get_args(Host))}"])
        job_config = load_job(job_file, dict(_argument(text) for text in with_ or ()))
        pipeline = pipeline_of(job_config, job_file.parent)
        with pipeline.start(on) as job:  # type: ignore[arg-type]
            _follow(job)
            result = job.result()
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]: nothing was kept")
        raise typer.Exit(130) from None
    except JobFailed as error:
        errors.print(f"[red]failed[/]: {error}", highlight=False)
        raise typer.Exit(1) from None
    except RuntimeTaskError as error:
        errors.print(f"[red]error[/]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    _show_result(result, job_config.result)
    file = output or (Path(job_config.result.file) if job_config.result.file else None)
    if file is not None:
        file.write_text(json.dumps(_plain(result, job_config.result), indent=1) + "\n", "utf-8")
        console.print(f"result written to {file}")
    _show_summary(result)


def main() -> None:
    """Entry point of ``sagert``."""
    app(prog_name="sagert")


def _argument(text: str) -> tuple[tuple[str, str], Any]:
    target, equals, value = text.partition("=")
    stage, dot, key = target.partition(".")
    if not equals or not dot:
        raise ConfigError([f"--with {text}: expected STAGE.KEY=VALUE, such as read.folder=docs"])
    return (stage, key), yaml.load(value, Loader=JobLoader)


def _follow(job: Job) -> None:
    """Show how far the job is, until it is over."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        bars = [
            progress.add_task(f"{stage.name} ({stage.host})", total=stage.total, rate="")
            for stage in job.progress()
        ]
        over = False
        while not over:
            over = job.wait(_REFRESH_SECONDS)
            for bar, stage in zip(bars, job.progress(), strict=True):
                elapsed = progress.tasks[bar].elapsed or 1.0
                progress.update(
                    bar,
                    completed=stage.packets,
                    total=stage.total,
                    rate=f"{stage.packets / max(elapsed, 1e-9):,.0f}/s",
                )


def _rows(result: JobResult) -> Any:
    return result.sink_results[0] if len(result.sink_results) == 1 else result.sink_results


def _show_result(result: JobResult, config: ResultConfig) -> None:
    rows = _rows(result)
    if not config.columns or not isinstance(rows, list):
        return
    table = Table(title=result.name)
    for column in config.columns:
        table.add_column(column)
    for row in rows[: config.rows]:
        table.add_row(*map(str, row))
    console.print(table)


def _plain(result: JobResult, config: ResultConfig) -> Any:
    rows = _rows(result)
    if config.columns and isinstance(rows, list):
        return [dict(zip(config.columns, row, strict=True)) for row in rows]
    return rows


def _show_summary(result: JobResult) -> None:
    table = Table(title=f"{result.seconds:.2f} s, {result.packets_per_second:,.0f} packets/s")
    for column in ("stage", "on", "packets", "packets/s", "p50", "p99", "errors"):
        left = column in ("stage", "on")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for stage in result.stages:
        table.add_row(
            stage.name,
            f"{stage.host} x {stage.parallelism}",
            f"{stage.packets:,}",
            f"{stage.packets / result.seconds:,.0f}",
            _milliseconds(stage.p50),
            _milliseconds(stage.p99),
            str(stage.errors),
        )
    console.print(table)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:,.1f} ms"
