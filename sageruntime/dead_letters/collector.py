"""DeadLetterCollector: takes the dead letters of a running job out of the queue of its tasks."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from sagequeue.errors import ShutDown
from sagequeue.protocol import Queue
from sageruntime.errors import DeadLetterStoreError

if TYPE_CHECKING:
    from sageruntime.dead_letters.letter import DeadLetter
    from sageruntime.dead_letters.store import DeadLetterStore

_logger = logging.getLogger("sageruntime.dead_letters")


class DeadLetterCollector:
    """The queue that tasks put dead letters in, and the thread that takes them out of it.

    Args:
        queue: for the tasks; it is closed with the collector.
        job: whose letters they are.
        store: where they go, and which is closed with the collector; without one they are kept
            here.

    Attributes:
        queue: for the tasks.
        letters: those that are in no store: all if there is none, or what one did not take.
    """

    def __init__(self, queue: Queue[DeadLetter], job: str, store: DeadLetterStore | None) -> None:
        self.queue = queue
        self.letters: list[DeadLetter] = []
        self._job = job
        self._store = store
        self._thread = threading.Thread(target=self._collect, name=queue.name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take what is left and give the queue and the store back; may be repeated."""
        if self._thread.is_alive():
            self.queue.shutdown()
        self._thread.join()
        self.queue.close()
        if self._store is not None:
            self._store.close()

    def _collect(self) -> None:
        while True:
            try:
                letters = self.queue.get_many()
            except ShutDown:
                return
            if not self._stored(letters):
                self.letters += letters

    def _stored(self, letters: list[DeadLetter]) -> bool:
        if self._store is None:
            return False
        try:
            self._store.add(self._job, letters)
        except DeadLetterStoreError as error:
            # tasks must not block because the disk is full
            _logger.error("%d dead letters are in the job's result only: %s", len(letters), error)
            return False
        return True
