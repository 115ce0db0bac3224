"""Progress bars of a job."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sageruntime.cli.console import errors
from sageruntime.job import Job

_REFRESH_SECONDS = 0.1


def follow(job: Job) -> None:
    """Show the progress of a job until it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=errors.quiet) as progress:
        bars = [
            progress.add_task(f"{stage.name} ({stage.host})", total=stage.total, rate="")
            for stage in job.progress()
        ]
        ended = False
        while not ended:
            ended = job.wait(_REFRESH_SECONDS)
            for bar, stage in zip(bars, job.progress(), strict=True):
                elapsed = progress.tasks[bar].elapsed or 1.0
                progress.update(
                    bar,
                    completed=stage.packets,
                    total=stage.total,
                    rate=f"{stage.packets / max(elapsed, 1e-9):,.0f}/s",
                )
