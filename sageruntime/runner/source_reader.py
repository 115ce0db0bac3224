"""SourceReader: the thread that reads a source, and calls all methods of its operator."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from operator import is_not, itemgetter
from queue import SimpleQueue
from typing import Any, NamedTuple

from sageruntime.communication.router import Packet
from sageruntime.core.futures import settle
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

_is_payload = partial(is_not, IDLE)
_second = itemgetter(1)


class SourceReader:
    """Reads a source into a bounded stream of packets.

    A source may block for long, and what it has yielded must not wait for that: so it is read
    in a thread of its own, and the runner sends. Between two yields the reader does what it is
    asked to: a snapshot, a call of another method, a pause.

    Args:
        operator: the source.
        name: of the thread.
        begin: called first in the thread; gives what it counts in.
        limit: packets that may wait for the runner.
        notify: called when as much is there as :meth:`notify_at` has asked for.
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
        # Marks put into the stream and taken out of it: one thread counts each.
        self._marks_put = 0
        self._marks_taken = 0
        self._is_paused = False
        self._is_stopping = False
        self._is_exhausted = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name=f"{name}_0", daemon=True)
        self._thread.start()

    # The runner's side.

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns, called in the reader's thread between two yields."""
        future: Future[Any] = Future()
        self._requests.put(lambda: settle(future, function))
        return future.result()

    def start_reading(self) -> None:
        """Begin to read."""
        self._requests.put(self._read)

    def post(self, function: Callable[[], object]) -> None:
        """Call a function in the reader's thread when the source yields next; do not wait for it.

        What it raises ends the stream.
        """

        def run() -> None:
            try:
                function()
            except BaseException as error:
                self._put(EndOfStream(error))
                self._is_stopping = True

        self._requests.put(run)

    def mark(self, checkpoint: int, snapshot: Callable[[], bytes]) -> None:
        """Put a snapshot of the source into the stream, when it yields next."""
        self.post(lambda: self._put(SnapshotMark(checkpoint, snapshot())))

    def pause(self) -> None:
        """Read nothing more, until :meth:`resume`."""
        self._requests.put(lambda: setattr(self, "_is_paused", True))

    def resume(self) -> None:
        """Go on reading."""
        self._requests.put(lambda: setattr(self, "_is_paused", False))

    def stop(self) -> None:
        """End the stream at the next yield."""

        def run() -> None:
            self._is_stopping, self._is_paused = True, False

        self._requests.put(run)

    def take(self, most: int) -> list[Item]:
        """What is there: some packets, or one mark or end."""
        stream, there = self._stream, min(most, len(self._stream))
        if not self.has_mark:  # then none is among what was there
            items: list[Item] = [stream.popleft() for _ in range(there)]
        else:  # or will be in a moment: it is counted first
            items = []
            while len(items) < there and type(stream[0]) is Packet:
                items.append(stream.popleft())
            if there and not items:
                self._marks_taken += 1
                return [stream.popleft()]
        self.counts.processed += len(items)
        return items

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def has_mark(self) -> bool:
        """Whether a mark or the end is there."""
        return self._marks_put != self._marks_taken

    def notify_at(self, count: int) -> None:
        """Have ``notify`` called when so much is there, or a mark; less than ``limit`` is there."""
        self._requests.put(partial(setattr, self, "_notify_at", count))

    def close(self) -> None:
        """End the thread, after the call in hand."""
        self.stop()
        self._requests.put(self._finish)
        self._thread.join()

    # The reader's side.

    def _run(self) -> None:
        self.counts = self._begin()
        while not self._is_over:
            self._requests.get()()
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
        stream = self._stream
        if self._is_stopping:
            return
        payloads = iter(self._operator.read())
        try:
            while not self._is_exhausted:
                # before the first item, too: the task may be paused from its beginning
                self._serve()
                if self._is_stopping:
                    return
                most = (self._notify_at or self._limit) - len(stream)
                stream.extend(islice(self._packets(payloads), max(1, most)))
                self._notify_if_due()
        finally:
            close = getattr(payloads, "close", None)  # a generator's own clean-up, in its thread
            if close is not None:
                close()

    def _packets(self, payloads: Iterator[Any]) -> Iterator[Packet]:
        """Packets of the next payloads, as long as nothing is requested.

        It is all of parts that run without the interpreter's loop, a packet at a time: each is in
        the stream, where the runner may take it, before the source is asked for the next.
        """
        while_nothing_is_asked = iter(self._requests.empty, False)
        pairs = zip(while_nothing_is_asked, chain(payloads, self._note_end()))
        return map(Packet, filter(_is_payload, map(_second, pairs)))

    def _note_end(self) -> Iterator[Any]:
        self._is_exhausted = True
        yield from ()

    def _serve(self) -> None:
        """Do what is requested, and wait while the task is paused or nothing more has room."""
        requests = self._requests
        while not requests.empty() or self._has_to_wait():
            requests.get()()
            self._notify_if_due()

    def _has_to_wait(self) -> bool:
        # until the runner asks for more, having sent nearly all: each time the two change places
        # takes as long as a hundred packets do
        is_full = len(self._stream) >= self._limit and not self._is_stopping
        return self._is_paused or is_full

    def _notify_if_due(self) -> None:
        if self._notify_at and len(self._stream) >= self._notify_at:
            self._notify_at = 0
            self._notify()

    def _put(self, item: SnapshotMark | EndOfStream) -> None:
        self._marks_put += 1
        self._stream.append(item)
        self._notify_at = 0
        self._notify()
