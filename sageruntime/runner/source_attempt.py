"""SourceAttempt: an attempt of a task that reads a source."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sageruntime.communication.router import Packet
from sageruntime.operator import BaseOperator
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.attempt import Attempt, AttemptOwner, Mail, SourceReady
from sageruntime.runner.invoker import (
    Retries,
    call_plainly,
)
from sageruntime.runner.source_reader import EndOfStream, SnapshotMark, SourceReader


class SourceAttempt(Attempt):
    """Reads a source and sends what it yields, in full batches or after a short while.

    Args:
        reader: reads the source.
    """

    def __init__(
        self, runner: AttemptOwner, operator: BaseOperator, retries: Retries, reader: SourceReader
    ) -> None:
        super().__init__(runner, operator, retries)
        self._reader = reader
        # the reader waits when it has read so much ahead
        self._size = min(self._options.packets_per_batch, self._options.max_buffer_size)
        self._is_released = False
        self._is_read = False
        # Whether something was read and may not have been sent, and when it has to be.
        self._is_unsent = False
        self._flush_at = 0.0

    def carry_out(self, command: do.Command) -> None:
        if isinstance(command, do.Pause):
            self._reader.pause()
        elif isinstance(command, do.Resume):
            self._reader.resume()
        elif isinstance(command, do.Stop):
            self._reader.stop()
        elif isinstance(command, do.TakeCheckpoint):
            self._reader.mark(command.checkpoint, self._pickled_state)
        elif isinstance(command, do.Release):
            self._is_released = True
        else:
            super().carry_out(command)

    def _process_input(self) -> None:
        self.total = self._call(self.operator.total)  # type: ignore[attr-defined]
        if self.runner.is_paused:
            self._reader.pause()
        if self.runner.is_draining:
            self._reader.stop()
        self._reader.start_reading()
        while not self._is_read:
            self._send_some()
        self._take_mails(0.0)
        self._router.flush()
        if self.runner.coordinated:
            self._tell(told.Exhausted)
            while not self._is_released:
                self._send_some()

    def _send_some(self) -> None:
        """Send what the source has yielded, if it is enough or has waited long enough."""
        reader, size = self._reader, self._size
        if not self._mailbox.is_empty():
            self._take_mails(0.0)
        if len(reader) < size:
            self._await(size)
        self._send(reader.take(size))
        if self._is_unsent and time.monotonic() >= self._flush_at:
            self._flush()

    def _await(self, count: int) -> None:
        """Wait until so much is there, or what there is has waited for long enough.

        Once the source is released, nothing comes any more.
        """
        reader = self._reader
        while len(reader) < count and not reader.has_mark and not self._is_released:
            if len(reader) and not self._is_unsent:
                self._expect_flush()
            left = max(0.0, self._flush_at - time.monotonic()) if self._is_unsent else None
            if left == 0.0:
                return
            # a first packet, so that its time begins; then as many as are asked for
            wanted = count if self._is_unsent else 1
            reader.notify_at(wanted)
            # what came before that was asked for is not told: the source may block from now on
            if len(reader) < wanted and not reader.has_mark:
                self._take_mails(left)

    def _expect_flush(self) -> None:
        self._is_unsent = True
        self._flush_at = time.monotonic() + self._options.flush_interval

    def _flush(self) -> None:
        self._router.flush()
        self._is_unsent = False

    def _send(self, items: list[Any]) -> None:
        if not items:
            return
        first = items[0]
        if type(first) is Packet:
            self._metrics.processed += len(items)
            if not self._is_unsent:
                self._expect_flush()
            tracer = self.runner.tracer
            if tracer is None:
                self._router.route_batch(items)
            else:
                with tracer.reading(items):
                    self._router.route_batch(items)
        elif isinstance(first, EndOfStream):
            if first.error is not None:
                raise first.error
            self._is_read = True
        else:
            assert isinstance(first, SnapshotMark)
            self._snapshot_number = first.checkpoint
            self._router.pass_barrier(first.checkpoint)
            self._tell(
                told.SnapshotTaken, checkpoint=first.checkpoint, state=first.state, skipped={}
            )

    def _on_checkpoint_completed(self) -> None:
        # the source may be silent for long, and what it has yielded is to be sent
        self._reader.post(self.operator.checkpoint_completed)

    def _receive(self, mail: Mail) -> None:
        if not isinstance(mail, SourceReady):
            super()._receive(mail)

    def _is_idle(self) -> bool:
        return self._is_read  # otherwise it waits for the source

    def _call(self, function: Callable[[], Any]) -> Any:
        return self._reader.call(lambda: call_plainly(self.operator, function))

    def _join(self) -> None:
        self._reader.stop()

    def leave(self) -> None:
        self._reader.close()
