"""Watchdog: notices a packet that the operator works on for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator import BaseOperator
from sageruntime.operator.results import Results, packets_of


class GivenUp(Exception):
    """The call that has returned was given up before: its result is not wanted any more."""


class _Call:
    __slots__ = ("given_up", "packets", "until")

    def __init__(self, packets: list[Packet], until: float) -> None:
        self.packets = packets
        self.until = until
        self.given_up = False


class Watchdog:
    """Watches the calls of an operator from a thread of its own.

    Python cannot stop a call: one that is overdue is reported, and its result is dropped should it
    ever come.

    Args:
        seconds: how long a call may take for each packet.
        overdue: gets the packets of a call that takes longer, once, in the watchdog's thread.
        name: of its thread.
    """

    def __init__(self, seconds: float, overdue: Callable[[list[Packet]], None], name: str) -> None:
        self.seconds = seconds
        self._overdue = overdue
        self._calls: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name}-watchdog", daemon=True)
        self._thread.start()

    def over(
        self, process: Callable[[Packet], Any], operator: BaseOperator
    ) -> Callable[[Packet], Any]:
        """``process`` under watch; it raises :class:`GivenUp` when it returns too late."""

        def watched(packet: Packet) -> Any:
            return self._call([packet], lambda: process(packet), operator)

        return watched

    def over_batch(
        self, process: Callable[[list[Packet]], Results], operator: BaseOperator
    ) -> Callable[[list[Packet]], Results]:
        """``process_batch`` under watch, likewise."""

        def watched(packets: list[Packet]) -> Any:
            return self._call(packets, lambda: process(packets), operator)

        return watched

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _call(
        self, packets: list[Packet], process: Callable[[], Any], operator: BaseOperator
    ) -> Any:
        thread = threading.get_ident()
        call = _Call(packets, time.monotonic() + self.seconds * len(packets))
        self._calls[thread] = call
        try:
            result = process()
            if result is not None and type(result) is not Packet:
                result = list(packets_of(result, operator))  # a generator works only now
        except Exception as error:
            if self._end(thread, call):
                raise GivenUp from error
            raise
        if self._end(thread, call):
            raise GivenUp
        return result

    def _end(self, thread: int, call: _Call) -> bool:
        """Whether the call was given up before it ended."""
        with self._lock:
            del self._calls[thread]
            return call.given_up

    def _watch(self) -> None:
        while not self._over.wait(min(self.seconds / 4, 0.5)):
            now = time.monotonic()
            with self._lock:
                late = [c for c in list(self._calls.values()) if now > c.until and not c.given_up]
                for call in late:
                    call.given_up = True
            for call in late:
                self._overdue(call.packets)
