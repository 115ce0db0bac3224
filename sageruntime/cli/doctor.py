"""``sagert doctor``: whether this machine has what tasks need."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sageruntime.cli.console import console
from sageruntime.doctor import Outcome, examine

_COLOURS = {Outcome.OK: "green", Outcome.WARNING: "yellow", Outcome.FAILED: "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Look at this machine; end with 1 if something that tasks need does not work."""
    checks = examine()
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        table = Table()
        for column in ("check", "outcome", "found", "remedy"):
            table.add_column(column, overflow="fold")
        for check in checks:
            colour = _COLOURS[check.outcome]
            outcome = f"[{colour}]{check.outcome.value}[/]"
            table.add_row(check.name, outcome, escape(check.found), escape(check.remedy))
        console.print(table)
    if any(check.outcome is Outcome.FAILED for check in checks):
        raise typer.Exit(1)
