"""Lifecycle: the state of a task, the legal transitions, and who is told of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from sageruntime.core.state import NEXT_STATES, TaskState

Listener = Callable[[Any], object]
"""Is given the task whose state has changed."""

# How long join() waits for listeners to return, when the task has ended.
_LISTENER_GRACE_SECONDS = 1.0


class Lifecycle:
    """The state of one task. The driver's loop changes it; any thread may read it.

    Listeners are code of users: they are called in a thread of their own, one transition after the
    other, so that one that raises or does not return harms nothing.

    Args:
        task: what the listeners get.
        name: its name.
        logger: where transitions and errors of listeners go.
    """

    def __init__(self, task: object, name: str, logger: logging.Logger) -> None:
        self._task = task
        self._name = name
        self._logger = logger
        self._state = TaskState.CREATED
        self._ended = threading.Event()
        self._adding = threading.Lock()
        self._watchers: list[Callable[[TaskState], object]] = []
        self._dispatcher: _Dispatcher | None = None

    @property
    def state(self) -> TaskState:
        """The task's state; within a listener, the one that it is told of."""
        told = None if self._dispatcher is None else self._dispatcher.told
        return self._state if told is None else told

    @property
    def present(self) -> TaskState:
        """The task's state at this moment, also within a listener."""
        return self._state

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener(task)`` after each transition, in a thread for listeners."""
        with self._adding:
            if self._dispatcher is None:
                self._dispatcher = _Dispatcher(self._task, self._name, self._logger)
        self._dispatcher.add(listener)
        if self._state.ended:  # it may have, before there was anybody to tell
            self._dispatcher.tell(self._state)

    def watch(self, watcher: Callable[[TaskState], object]) -> None:
        """Call a function of ours after each transition, in the driver's loop; it must not wait."""
        self._watchers.append(watcher)

    def join(self, timeout: float | None) -> bool:
        """Wait until the task has ended and its listeners know; return whether it has ended."""
        ended = self._ended.wait(timeout)
        if ended and timeout != 0.0 and self._dispatcher is not None:
            self._dispatcher.wait(_LISTENER_GRACE_SECONDS)
        return ended

    def advance(self, state: TaskState) -> bool:
        """Make a transition if it is legal, and return whether it was."""
        if state not in NEXT_STATES[self._state]:
            return False
        self._state = state
        self._logger.debug("%s is %s", self._name, state.value)
        if self._dispatcher is not None:
            self._dispatcher.tell(state)
        if state.ended:
            self._ended.set()
        for watcher in self._watchers:
            watcher(state)
        return True


class _Dispatcher:
    """The thread that calls listeners."""

    def __init__(self, task: object, name: str, logger: logging.Logger) -> None:
        self._task = task
        self._name = name
        self._logger = logger
        self._listeners: list[Listener] = []
        self._transitions: SimpleQueue[TaskState] = SimpleQueue()
        self._told: TaskState | None = None
        self._has_told_all = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-listeners", daemon=True)
        self._thread.start()

    @property
    def told(self) -> TaskState | None:
        """What the listener is told of that asks; None in any other thread."""
        return self._told if threading.current_thread() is self._thread else None

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def tell(self, state: TaskState) -> None:
        self._transitions.put(state)

    def wait(self, timeout: float) -> None:
        """Wait until the listeners have been told of the last state."""
        if self._thread is not threading.current_thread():
            self._has_told_all.wait(timeout)

    def _run(self) -> None:
        while self._told is None or not self._told.ended:
            self._told = self._transitions.get()
            for listener in list(self._listeners):
                try:
                    listener(self._task)
                except BaseException:  # SystemExit, too, would end the thread
                    self._logger.exception(
                        "%s: the listener %s failed", self._name, _name_of(listener)
                    )
        self._has_told_all.set()


def _name_of(listener: Listener) -> str:
    name: str = getattr(listener, "__qualname__", "") or repr(listener)
    return name
