"""Mailbox: everything that reaches a runner but the data itself."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sagequeue.protocol import Queue

M = TypeVar("M")
T = TypeVar("T")


class Mailbox(Generic[M]):
    """Mails for one runner. Any thread posts; the runner's thread takes.

    The runner waits for data and for mails at once: a mail wakes it from its wait for data. The
    model is the mailbox of Flink's tasks (FLIP-27 and its ``MailboxProcessor``).
    """

    def __init__(self) -> None:
        self._mails: queue.SimpleQueue[M] = queue.SimpleQueue()
        self._data: Queue[Any] | None = None
        self.is_empty: Callable[[], bool] = self._mails.empty
        """Whether no mail waits; asked before each message, so it is the queue's own method."""

    def post(self, mail: M) -> None:
        """Send a mail."""
        self._mails.put(mail)
        data = self._data
        if data is not None:
            data.wakeup()

    def take(self, timeout: float | None = 0.0) -> M | None:
        """The next mail; None when none comes within ``timeout`` seconds. None waits for one."""
        try:
            return self._mails.get(timeout != 0.0, timeout)
        except queue.Empty:
            return None

    def wait_for_data(self, data: Queue[Any], take: Callable[[], T]) -> T | None:
        """What ``take`` takes of a queue; None when a mail is there already.

        Raises what ``take`` raises: :class:`~sagequeue.errors.Empty` when a mail has come.
        """
        self._data = data
        try:
            return take() if self.is_empty() else None  # a mail before the line above woke nobody
        finally:
            self._data = None
