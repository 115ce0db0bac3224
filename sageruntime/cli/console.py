"""Consoles, logging and exit codes of the commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import typer
from rich.console import Console

from sagequeue import QueueError
from sageruntime import logs
from sageruntime.errors import JobFailed, RuntimeTaskError

console = Console()
errors = Console(stderr=True)

_logger = logging.getLogger("sageruntime.cli")


class LogFormat(str, Enum):
    """What log records look like on stderr."""

    TEXT = "text"
    JSON = "json"


class LogLevel(str, Enum):
    """From which level on records are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _ConsoleHandler(logging.Handler):
    """Prints records above whatever the console shows live."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        errors.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def start_logging(log_format: LogFormat, level: LogLevel) -> None:
    """Let the records of all loggers come out on stderr."""
    if log_format is LogFormat.JSON:
        # stderr has nothing but records then
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logs.json_formatter())
        errors.quiet = True
    else:
        handler = _ConsoleHandler()
        handler.setFormatter(logs.text_formatter())
    handler.addFilter(logs.TaskFilter())
    logging.basicConfig(level=level.value.upper(), handlers=[handler])


@contextmanager
def exit_codes() -> Iterator[None]:
    """End with 1 when a job fails, with 2 when it cannot be run, with 130 on Ctrl-C.

    The text of a KeyboardInterrupt, if it has one, says what was kept.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _print_error("[yellow]interrupted[/]", str(interrupt) or "what was begun is left off")
        raise typer.Exit(130) from None
    except JobFailed as error:
        _print_error("[red]failed[/]", str(error))
        raise typer.Exit(1) from None
    except (RuntimeTaskError, QueueError) as error:
        _print_error("[red]error[/]", str(error))
        raise typer.Exit(2) from None


def _print_error(how: str, what: str) -> None:
    if errors.quiet:
        _logger.error(what)
    else:
        errors.print(f"{how}: ", end="")
        errors.print(what, markup=False, highlight=False, soft_wrap=True)
