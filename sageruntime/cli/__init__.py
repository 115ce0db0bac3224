"""``sagert``: the command line, one module for each command or group of commands."""

from __future__ import annotations

import typer

from sageruntime.cli import dlq, doctor, queues, run, schema

app = typer.Typer(
    help="Run task pipelines over SageQueue: on threads, on processes, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(run.run)
app.command()(doctor.doctor)
app.command()(schema.schema)
app.add_typer(queues.app, name="queues")
app.add_typer(dlq.app, name="dlq")


def main() -> None:
    """Entry point of ``sagert``."""
    app(prog_name="sagert")
