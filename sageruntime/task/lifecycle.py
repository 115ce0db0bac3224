"""Lifecycle: the state of a task, the legal ways between states, and who is told of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from sageruntime.errors import TaskStateError
from sageruntime.task.state import NEXT_STATES, TaskState

Listener = Callable[[Any], object]
"""Is given the task whose state has changed."""


class Lifecycle:
    """Base of what has the states of a task. Any thread may call it.

    Args:
        name: who it is, in messages.
        logger: where it says what state it is in.
    """

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self.name = name
        self.logger = logger
        self._state = TaskState.CREATED
        self._changed = threading.Condition(threading.RLock())
        self._listeners: list[Listener] = []
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def state(self) -> TaskState:
        """Where the task is in its life."""
        return self._state

    @property
    def is_running(self) -> bool:
        """Whether the task has been started and has not ended."""
        return not (self._state is TaskState.CREATED or self._state.ended)

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(task)`` after each change of state, in the thread that made it."""
        self._listeners.append(listener)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the task has ended; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.ended, timeout)

    def _on_end(self) -> None:
        """The task is about to be in its last state."""

    def _advance(
        self, state: TaskState, result: Any = None, error: BaseException | None = None
    ) -> bool:
        """Go to ``state`` if that is legal, tell the listeners, and return whether it was."""
        with self._changed:
            if state not in NEXT_STATES[self._state]:
                return False
            if state.ended:
                self._on_end()
            self._result = result
            self._error = error
            self._state = state
            self._changed.notify_all()
        self.logger.debug("%s is %s", self.name, state.value)
        for listener in self._listeners:
            listener(self)
        return True

    def _check_alive(self, what: str) -> None:
        if self._state.ended:
            raise TaskStateError(f"{self.name} is {self._state.value} and cannot be {what}")

    def _check_started(self, what: str) -> None:
        if self._state is TaskState.CREATED:
            raise TaskStateError(f"{self.name} is {self._state.value} and cannot be {what}")

    def _describe_error(self) -> str | None:
        return None if self._error is None else f"{type(self._error).__name__}: {self._error}"
