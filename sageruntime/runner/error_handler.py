"""ErrorHandler: counts the errors of packets, reports them, and applies the error policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sagequeue.errors import EncodeError, Full, QueueClosed, QueueError, ShutDown
from sagequeue.protocol import Queue
from sageruntime.communication.router import Packet
from sageruntime.context import TaskContext
from sageruntime.core.policies import ErrorPolicy
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.errors import (
    InvalidOption,
    PacketError,
    TaskCancelled,
    describe_error,
    format_traceback,
    where_raised,
)
from sageruntime.metrics import TaskMetrics

OnError = Callable[[TaskContext, Packet | None, Exception], None]
"""Is told of a packet that failed for good; None stands for one that cannot be decoded."""

# How soon a task that waits for room for a dead letter notices that it is to stop.
_INTERRUPT_SECONDS = 0.1


class ErrorHandler:
    """Deals with packets that failed for good. The runner's thread calls it, nobody else.

    Args:
        ctx: the task.
        policy: what becomes of a packet that was tried as often as it may be.
        metrics: where errors are counted.
        dead_letters: where dead letters go.
        is_interrupted: whether the task is to stop.
        on_error: is told of each error before the policy is applied.

    Raises:
        InvalidOption: dead letters are asked for and there is no queue for them.
    """

    def __init__(
        self,
        ctx: TaskContext,
        policy: ErrorPolicy,
        metrics: TaskMetrics,
        dead_letters: Queue[DeadLetter] | None,
        is_interrupted: Callable[[], bool],
        on_error: OnError | None = None,
    ) -> None:
        self._policy = policy
        if self._policy is ErrorPolicy.DEAD_LETTER and dead_letters is None:
            raise InvalidOption(
                f"{ctx.name}: error_policy='dead_letter' needs a queue; pass dead_letters="
            )
        self._ctx = ctx
        self._metrics = metrics
        self._dead_letters = dead_letters
        self._is_interrupted = is_interrupted
        self._on_error = on_error
        self._seen: Counter[str] = Counter()

    def reject(self, packet: Packet, error: Exception) -> None:
        """Deal with a result that cannot be sent on, as :meth:`handle` does with packets."""
        self.handle(packet, error, is_result=True)

    def handle(
        self,
        packet: Packet | None,
        error: Exception,
        *,
        is_result: bool = False,
        raw: bytes | None = None,
    ) -> None:
        """Deal with one packet.

        Args:
            packet: the packet; None for one that cannot be decoded.
            error: how it failed.
            is_result: whether it is a result of the task that cannot be sent on.
            raw: the bytes of one that cannot be decoded.

        Raises:
            PacketError: the policy is ``fail``.
            TaskCancelled: the task is to leave off.
        """
        if self._is_interrupted():
            # it comes again, or the task is being ended: then this is a consequence, most likely
            raise TaskCancelled(f"{self._ctx.name} leaves off") from error
        kind, text = type(error).__name__, describe_error(error)
        self._metrics.errors += 1
        self._seen[kind] += 1
        if self._on_error is not None:
            self._on_error(self._ctx, packet, error)
        which = f"packet {packet.id}" if packet is not None else "a packet that cannot be decoded"
        if self._policy is ErrorPolicy.FAIL:
            place = where_raised(error)
            raise PacketError(
                f"{self._ctx.name} failed on {which}: {text}" + (place and f" ({place})"),
                None if packet is None else packet.id,
            ) from error
        if self._seen[kind] == 1:
            self._ctx.logger.error(
                "%s failed on %s: %s; policy %s, more errors of this type are only counted",
                self._ctx.name, which, text, self._policy.value,
                exc_info=error, extra={"packet": packet.id} if packet is not None else None,
            )  # fmt: skip
        if self._dead_letters is not None and self._policy is ErrorPolicy.DEAD_LETTER:
            trace, ctx = format_traceback(error), self._ctx
            letter = DeadLetter(packet, ctx.name, ctx.stage, text, trace, is_result, raw=raw)
            self._post(self._dead_letters, letter)

    def summarise(self) -> None:
        """Log how many errors of each type there were, if any."""
        if self._seen:
            counts = ", ".join(f"{kind}: {n}" for kind, n in self._seen.most_common())
            self._ctx.logger.warning("%s had errors: %s", self._ctx.name, counts)

    def _post(self, queue: Queue[DeadLetter], letter: DeadLetter) -> None:
        """Put a dead letter, waiting for room as long as the task goes on."""
        while True:
            try:
                queue.put(letter, timeout=_INTERRUPT_SECONDS)
                return
            except EncodeError:
                if letter.is_repr or letter.packet is None:
                    raise
                letter = letter.with_repr()
            except Full:
                if self._is_interrupted():
                    return  # the packet comes again, or the job is being ended
            except (ShutDown, QueueClosed):
                self._ctx.logger.error(
                    "%s: nobody takes dead letters any more; lost: %s", self._ctx.name, letter.error
                )
                return
            except QueueError as error:
                self._ctx.logger.error(
                    "%s: a dead letter (%s) is lost: %s", self._ctx.name, letter.error, error
                )
                return
