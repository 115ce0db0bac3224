"""Shows the result of a job and a table of its stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from sageruntime.cli.console import console
from sageruntime.config import ResultConfig
from sageruntime.job_result import JobResult


def show(result: JobResult, config: ResultConfig, output: Path | None) -> None:
    """Show the result as the job file says, and write it to ``output`` or the file named there."""
    _show_rows(result, config)
    file = output or (Path(config.file) if config.file else None)
    if file is not None:
        file.write_text(json.dumps(_plain(result, config), indent=1) + "\n", "utf-8")
        console.print(f"result written to {file}")
    _show_stages(result)


def _rows(result: JobResult) -> Any:
    return result.sink_results[0] if len(result.sink_results) == 1 else result.sink_results


def _show_rows(result: JobResult, config: ResultConfig) -> None:
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


def _show_stages(result: JobResult) -> None:
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
