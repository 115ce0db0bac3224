"""SourceReader: the thread that reads a source, and calls all methods of its operator."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from sageruntime.communication.router import Packet
from sageruntime.metrics import ThreadCounts
from sageruntime.operator import IDLE, SourceOperator


class SnapshotMark(NamedTuple):
    """Stands in the stream where a checkpoint divides it.

    Attributes:
        checkpoint: its number.
        state: what the source's snapshot returned, pickled.
    """

    checkpoint: int
    state: bytes


class EndOfStream(NamedTuple):
    """The source has been read to its end.

    Attributes:
        error: what it raised, if it did.
    """

    error: BaseException | None = None


Item = Packet | SnapshotMark | EndOfStream


class _Call(NamedTuple):
    function: Callable[[], Any]
    future: Future[Any]


class SourceReader:
    """Reads a source into a bounded stream of packets.

    A source may block for long, and what it has yielded must be sent on meanwhile: so it is read
    in a thread of its own, and the runner sends. Between two yields the reader does what it is
    asked to: a snapshot, a call of another method, a pause.

    Args:
        operator: the source.
        name: of the thread.
        begin: called first in the thread; gives what it counts in.
        limit: packets that may wait for the runner.
        notify: called when as much is there as :meth:`await_packets` has asked for.
    """

    def __init__(
        self,
        operator: SourceOperator,
        name: str,
        begin: Callable[[], ThreadCounts],
        limit: int,
        notify: Callable[[], None],
    ) -> None:
        self._operator = operator
        self._begin = begin
        self._limit = limit
        self._notify = notify
        self._stream: deque[Item] = deque()
        self._requests: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._notify_at = 0
        self._room = threading.Event()
        self._is_reading = False
        self._is_paused = False
        self._is_stopping = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name=f"{name}_0", daemon=True)
        self._thread.start()

    # The runner's side.

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns, called in the reader's thread between two yields."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._request(run)
        return future.result()

    def start_reading(self) -> None:
        """Begin to read."""
        self._request(self._read)

    def post(self, function: Callable[[], None]) -> None:
        """Call a function in the reader's thread between two yields; it must not raise."""
        self._request(function)

    def mark(self, checkpoint: int, snapshot: Callable[[], bytes]) -> None:
        """Put a snapshot of the source into the stream, when it yields next."""

        def run() -> None:
            try:
                self._put(SnapshotMark(checkpoint, snapshot()))
            except BaseException as error:
                self._put(EndOfStream(error))
                self._is_stopping = True

        self._request(run)

    def pause(self) -> None:
        """Read nothing more, until :meth:`resume`."""
        self._request(lambda: setattr(self, "_is_paused", True))

    def resume(self) -> None:
        """Go on reading."""
        self._request(lambda: setattr(self, "_is_paused", False))

    def stop(self) -> None:
        """End the stream at the next yield."""

        def run() -> None:
            self._is_stopping, self._is_paused = True, False

        self._request(run)

    def take(self, most: int) -> list[Item]:
        """What is there: some packets, or one mark or end."""
        stream = self._stream
        if not stream:
            return []
        if type(stream[0]) is not Packet:
            return [stream.popleft()]
        items: list[Item] = []
        while stream and len(items) < most and type(stream[0]) is Packet:
            items.append(stream.popleft())
        self._room.set()
        return items

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def has_mark(self) -> bool:
        """Whether a mark or the end is behind the packets that are there."""
        stream = self._stream
        return bool(stream) and type(stream[-1]) is not Packet

    def notify_at(self, count: int) -> bool:
        """Have ``notify`` called once when so much is there; False when it is there already."""
        self._notify_at = count
        if len(self._stream) < count:
            return True
        self._notify_at = 0
        return False

    def close(self) -> None:
        """End the thread, after the call in hand."""
        self.stop()
        self._request(self._finish)
        self._thread.join()

    # The reader's side.

    def _request(self, request: Callable[[], None]) -> None:
        self._requests.put(request)
        self._room.set()

    def _run(self) -> None:
        self.counts = self._begin()
        while not self._is_over:
            self._requests.get()()
        self.counts.cpu_seconds()
        self.counts.end()

    def _finish(self) -> None:
        self._is_over = True

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            self._read_all()
        except BaseException as raised:
            error = raised
        self._put(EndOfStream(error))

    def _read_all(self) -> None:
        stream, requests, counts = self._stream, self._requests, self.counts
        if self._is_stopping:
            return
        payloads = iter(self._operator.read())
        try:
            while True:
                # before the first item, too: the task may be paused from its beginning
                if not requests.empty():
                    self._serve()
                if self._is_stopping:
                    return
                try:
                    payload = next(payloads)
                except StopIteration:
                    return
                if payload is not IDLE:
                    stream.append(Packet(payload))
                    counts.processed += 1
                    waiting = len(stream)
                    if self._notify_at and waiting >= self._notify_at:
                        self._notify_at = 0
                        self._notify()
                    if waiting >= self._limit:
                        self._await_room()
        finally:
            close = getattr(payloads, "close", None)  # a generator's own clean-up, in its thread
            if close is not None:
                close()

    def _serve(self) -> None:
        while True:
            try:
                request = self._requests.get(block=self._is_paused)
            except Empty:
                return
            request()

    def _await_room(self) -> None:
        while len(self._stream) >= self._limit and self._requests.empty():
            self._room.clear()
            if len(self._stream) >= self._limit and self._requests.empty():
                self._room.wait()

    def _put(self, item: SnapshotMark | EndOfStream) -> None:
        self._stream.append(item)
        self._notify_at = 0
        self._notify()
