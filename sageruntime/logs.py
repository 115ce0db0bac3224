"""Logging: one record for each event, with the task it is about, as text or as JSON.

Records go the ways of :mod:`logging`: an application that configures nothing sees warnings, one
that configures its own handlers gets all records there, with the attributes ``task``, ``stage``
and, where there is one, ``packet``. Records of other processes come out in the job's process.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

# The task and the stage that the calling thread works for.
_working_for: ContextVar[tuple[str, str] | None] = ContextVar("working_for", default=None)


class TaskLogger(logging.Logger):
    """The logger of one task: its records carry the task's name and stage.

    It passes everything on to the logger ``sageruntime.task.<stage>``, where levels and handlers
    are set. It is not kept by :mod:`logging`, so that it goes with its task.
    """

    def __init__(self, task: str, stage: str) -> None:
        super().__init__(f"sageruntime.task.{stage}")
        self.task = task
        self.stage = stage
        self._target = logging.getLogger(self.name)
        self.parent = self._target

    def isEnabledFor(self, level: int) -> bool:
        """As the logger of the stage."""
        return self._target.isEnabledFor(level)

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """A record with the task's name and stage, and the packet that a PacketError is about."""
        record = super().makeRecord(*args, **kwargs)
        record.task, record.stage = self.task, self.stage
        packet = getattr(record.exc_info[1], "packet_id", None) if record.exc_info else None
        if packet is not None:
            record.packet = packet
        return record

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskLogger, (self.task, self.stage)


class TaskFilter(logging.Filter):
    """Gives records of other loggers the task that their thread works for, if any.

    It belongs on handlers, where the records of all loggers pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        task = _working_for.get()
        if task is not None and not hasattr(record, "task"):
            record.task, record.stage = task
        return True


def work_for(task: str, stage: str) -> None:
    """Say that this thread works for a task from now on."""
    _working_for.set((task, stage))


def works_for() -> str | None:
    """The task that this thread works for, if any."""
    task = _working_for.get()
    return None if task is None else task[0]


class RecordSender(logging.Handler):
    """Sends records to another process, where :func:`relay` takes them up.

    Args:
        send: takes a record whose traceback has become text.
    """

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._send = send
        self.addFilter(TaskFilter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(portable(record))
        except (BrokenPipeError, ConnectionResetError):
            return  # the other process has ended
        except Exception:
            self.handleError(record)


def relay(record: logging.LogRecord) -> None:
    """Hand a record of another process to its logger here."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def portable(record: logging.LogRecord) -> logging.LogRecord:
    """A copy of a record that can go to another process: its traceback has become text."""
    record = copy.copy(record)
    record.msg, record.args = record.getMessage(), None
    if record.exc_info:
        record.exc_text = record.exc_text or _formatter.formatException(record.exc_info)
        record.exc_info = None
    return record


def text_formatter() -> logging.Formatter:
    """For people: time, level, task, message."""
    return logging.Formatter(
        "{asctime}.{msecs:03.0f} {levelname:<7} {task}: {message}",
        "%H:%M:%S",
        style="{",
        defaults={"task": "-"},
    )


def json_formatter() -> logging.Formatter:
    """For programs: one JSON object for each record.

    Its fields are ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and where there
    are such: ``task``, ``stage``, ``packet``, ``exc_info`` (a traceback), and what the caller gave
    as ``extra``.
    """
    from pythonjsonlogger.json import JsonFormatter  # not needed by workers

    class Formatter(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {"time": log_data.pop("time"), **log_data}

    return Formatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        json_ensure_ascii=False,
    )


_formatter = logging.Formatter()
