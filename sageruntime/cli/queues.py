"""``sagert queues``: the shared-memory queues of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

import sagequeue
from sageruntime.cli.console import console, exit_codes

app = typer.Typer(help="Look at and clean up the queues of this machine.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The queue's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command("ls")
def list_(as_json: AsJson = False) -> None:
    """List the queues, with who takes part in them."""
    queues = sagequeue.list_queues()
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in queues], indent=1))
        return
    table = Table()
    for column in ("queue", "state", "mode", "waiting", "leases", "in memory", "pids"):
        table.add_column(column, overflow="fold")
    for info in queues:
        table.add_row(
            info.name,
            info.state,
            info.mode,
            str(info.waiting),
            str(info.leases),
            decimal(info.bytes_in_memory),
            " ".join(map(str, info.pids)),
        )
    console.print(table)


@app.command()
def inspect(name: Name, as_json: AsJson = False) -> None:
    """Show all there is to know of one queue."""
    with exit_codes():
        info = asdict(sagequeue.inspect_queue(name))
    if as_json:
        typer.echo(json.dumps(info, indent=1))
        return
    table = Table(show_header=False)
    for key, value in info.items():
        table.add_row(key, " ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    console.print(table)


@app.command("rm")
def remove(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Also one in use, which is shut down, or a broken one.")
    ] = False,
) -> None:
    """Remove a queue and what waits in it."""
    with exit_codes():
        sagequeue.remove_queue(name, force)


@app.command()
def prune() -> None:
    """Remove the queues whose participants are all dead."""
    for name in sagequeue.prune_queues():
        console.print(f"removed {name}", highlight=False)
