"""``sagert schema``: what a job file may hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sageruntime.config.reference import job_schema, options_table


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A table of all options, for reading.")
    ] = False,
) -> None:
    """Print the JSON schema of job files, for editors."""
    typer.echo(options_table() if markdown else json.dumps(job_schema(), indent=1), nl=not markdown)
