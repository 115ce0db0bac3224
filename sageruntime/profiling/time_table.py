"""Where the time of each stage goes: as a table to look at, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sageruntime.metrics import JobMetrics, StageMetrics, TimeSpent

if TYPE_CHECKING:
    from rich.table import Table

_ACTIVITIES = TimeSpent.__struct_fields__


def time_table(metrics: JobMetrics) -> Table:
    """Seconds and shares of the worker loops' time, stage by stage."""
    from rich.table import Table

    table = Table(title="where the time goes")
    table.add_column("stage")
    table.add_column("tasks", justify="right")
    for activity in _ACTIVITIES:
        table.add_column(activity, justify="right", no_wrap=True)
    for stage in metrics.stages:
        cells = (_cell(getattr(stage.time_spent, activity), stage) for activity in _ACTIVITIES)
        table.add_row(stage.stage, f"{stage.host} x {len(stage.tasks)}", *cells)
    return table


def time_report(metrics: JobMetrics) -> list[dict[str, Any]]:
    """The same as plain data: ``seconds`` and ``share`` (0 to 1) of each activity by stage."""
    return [
        {
            "stage": stage.stage,
            "host": stage.host,
            "tasks": len(stage.tasks),
            "seconds": {name: getattr(stage.time_spent, name) for name in _ACTIVITIES},
            "share": {name: _share(getattr(stage.time_spent, name), stage) for name in _ACTIVITIES},
        }
        for stage in metrics.stages
    ]


def _cell(seconds: float, stage: StageMetrics) -> str:
    return f"{seconds:,.2f} s {_share(seconds, stage):4.0%}"


def _share(seconds: float, stage: StageMetrics) -> float:
    return seconds / (stage.time_spent.total or 1.0)
