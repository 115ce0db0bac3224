"""Monitor: calls listeners with a measurement at every interval."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How long listeners may take to return from the last measurement.
_LISTENER_GRACE_SECONDS = 1.0


class Monitor(Generic[T]):
    """Measures in a thread of its own, which is started with the first listener.

    A listener that raises is logged and not called again.

    Args:
        name: of the thread.
        measure: makes a measurement.
        interval: seconds between two of them.
        logger: where errors of listeners go.
    """

    def __init__(
        self, name: str, measure: Callable[[], T], interval: float, logger: logging.Logger
    ) -> None:
        self._name = name
        self._measure = measure
        self._interval = interval
        self._logger = logger
        self._listeners: list[Callable[[T], object]] = []
        self._lock = threading.Lock()
        self._is_closed = False
        # Made with the thread: most tasks have no listener.
        self._closing: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def add_listener(self, listener: Callable[[T], object]) -> None:
        """Call ``listener(measurement)`` at every interval, and a last time at the end."""
        with self._lock:
            self._listeners.append(listener)
            if self._thread is None and not self._is_closed:
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._closing,), name=self._name, daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Tell the listeners a last time; may be repeated. One that does not return is left."""
        with self._lock:
            self._is_closed = True
            if self._closing is not None:
                self._closing.set()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LISTENER_GRACE_SECONDS)

    def _run(self, closing: threading.Event) -> None:
        ended = False
        while not ended:
            ended = closing.wait(self._interval)
            measurement = self._measure()
            for listener in list(self._listeners):
                try:
                    listener(measurement)
                except BaseException:  # SystemExit, too, would end the thread
                    self._listeners.remove(listener)
                    self._logger.exception(
                        "%s: the listener %r failed and is not called again", self._name, listener
                    )
