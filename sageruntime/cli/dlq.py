"""``sagert dlq``: the dead letters of jobs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sageruntime.cli import summary
from sageruntime.cli.console import LogFormat, LogLevel, console, exit_codes, start_logging
from sageruntime.cli.job_arguments import (
    Format,
    JobFile,
    Level,
    On,
    With,
    checked_host,
    configured_job,
)
from sageruntime.dead_letters.store import DeadLetterStore, StoredLetter
from sageruntime.errors import ConfigError
from sageruntime.job_file import build_pipeline
from sageruntime.replay import replay as send_again

app = typer.Typer(
    help="Look at packets that could not be processed, and send them again.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(help="The file of dead letters.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Ids = Annotated[str, typer.Argument(help="Such as 3 or 1,4-7.")]

_SHOWN_CHARACTERS = 60


@app.command("ls")
def list_(
    file: File,
    job: Annotated[str | None, typer.Option(help="Of this job only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the letters."""
    with exit_codes(), DeadLetterStore(file) as store:
        letters = store.letters(job)
    if as_json:
        typer.echo(json.dumps([asdict(letter) for letter in letters], indent=1))
        return
    table = Table()
    for column in ("id", "job", "stage", "when", "tries", "payload", "error"):
        table.add_column(column, overflow="fold")
    for letter in letters:
        table.add_row(
            str(letter.id),
            letter.job,
            letter.stage,
            _when(letter),
            str(letter.tries),
            escape(letter.payload[:_SHOWN_CHARACTERS]),
            escape(letter.error[:_SHOWN_CHARACTERS]),
        )
    console.print(table)


@app.command()
def show(file: File, ids: Ids, as_json: AsJson = False) -> None:
    """Show all there is to know of letters, the traceback included."""
    with exit_codes(), DeadLetterStore(file) as store:
        letters = store.letters(ids=_parsed(ids))
    if as_json:
        typer.echo(json.dumps([asdict(letter) for letter in letters], indent=1))
        return
    for letter in letters:
        packet = "a packet" if letter.packet_id is None else f"packet {letter.packet_id}"
        what = "a result that could not be sent" if letter.is_result else "was not processed"
        again = "can" if letter.replayable else "cannot"
        typer.echo(f"{letter.id}: {packet} of {letter.task}, {what}, {_when(letter)}")
        typer.echo(f"payload: {letter.payload}")
        typer.echo(f"tries: {letter.tries}; it {again} be sent again")
        typer.echo(letter.traceback)


@app.command("rm")
def remove(file: File, ids: Ids) -> None:
    """Remove letters."""
    with exit_codes(), DeadLetterStore(file) as store:
        store.remove(_parsed(ids))


@app.command()
def replay(
    job_file: JobFile,
    ids: Annotated[
        str | None, typer.Option(help="Such as 3 or 1,4-7; all that can be sent, unless given.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="The file of dead letters, instead of the job file's.")
    ] = None,
    on: On = None,
    with_: With = None,
    log_level: Level = LogLevel.WARNING,
    log_format: Format = LogFormat.TEXT,
) -> None:
    """Send the packets of letters to the stage that gave them up, and through those after it.

    A letter is removed when its packet went through. Ends with 1 if a packet was given up again.
    """
    start_logging(log_format, log_level)
    with exit_codes():
        host = checked_host(on)
        config = configured_job(job_file, with_)
        place = file or config.dead_letters.file
        if place is None:
            raise ConfigError(
                [f"{job_file}: dead_letters.file: is not there; add it, or give --file"]
            )
        pipeline = build_pipeline(config, job_file.parent)
        with DeadLetterStore(place) as store:
            outcome = send_again(pipeline, store, None if ids is None else _parsed(ids), host)
    # what was sent again is a part of the job's result, which stays as it is
    shown = config.result.model_copy(update={"file": None})
    for result in outcome.results:
        summary.show(result, shown, None)
    console.print(
        f"{len(outcome.gone)} went through, {len(outcome.again)} failed again, "
        f"{outcome.new} failed further on",
        highlight=False,
    )
    if outcome.again or outcome.new:
        raise typer.Exit(1)


def _parsed(ids: str) -> set[int]:
    """Numbers and ranges of them, with commas between."""
    numbers: set[int] = set()
    for part in ids.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigError([f"{ids!r} are no ids; expected numbers and ranges, such as 1,4-7"])
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def _when(letter: StoredLetter) -> str:
    return datetime.fromtimestamp(letter.failed_at / 1e9).astimezone().isoformat(" ", "seconds")
