"""Where commands print to, and how they end when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from sagequeue import QueueError
from sageruntime.errors import JobFailed, RuntimeTaskError

console = Console()
errors = Console(stderr=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """End with 1 when a job fails, with 2 when it cannot be run, with 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]: nothing was kept")
        raise typer.Exit(130) from None
    except JobFailed as error:
        errors.print(f"[red]failed[/]: {error}", highlight=False)
        raise typer.Exit(1) from None
    except (RuntimeTaskError, QueueError) as error:
        errors.print(f"[red]error[/]: {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
