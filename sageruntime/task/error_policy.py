"""What becomes of a packet an operator fails on."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import NoReturn

import msgspec

from sagequeue.errors import EncodeError
from sagequeue.protocol import Queue
from sageruntime.communication.router import Packet
from sageruntime.context import TaskContext
from sageruntime.errors import InvalidOption, PacketError
from sageruntime.metrics import TaskMetrics
from sageruntime.recovery.policies import RetryPolicy


class ErrorPolicy(str, Enum):
    """Where a packet goes when its operator raises."""

    FAIL = "fail"
    """The task fails, and with it the job."""
    SKIP = "skip"
    """The packet is left out."""
    RETRY = "retry"
    """The operator gets the packet again, a few times; see
    :class:`~sageruntime.recovery.RetryPolicy`."""
    DEAD_LETTER = "dead_letter"
    """The packet goes to the dead-letter queue with the error."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        allowed = ", ".join(policy.value for policy in cls)
        raise InvalidOption(f"error_policy={value!r} is not allowed; expected one of {allowed}")


class DeadLetter(msgspec.Struct):
    """A packet that could not be processed, and why.

    Attributes:
        packet: the packet; None for a message that could not be decoded.
        task: the task that gave it up.
        stage: the stage the task belongs to.
        error: the error's type and message.
        traceback: where it was raised.
        is_result: whether the packet is a result of the task that could not be sent on, and not
            one that the operator failed on.
        is_repr: whether the payload could not be encoded and is its ``repr`` now.
        failed_at: when, in nanoseconds since the epoch.
    """

    packet: Packet | None
    task: str
    stage: str
    error: str
    traceback: str
    is_result: bool = False
    is_repr: bool = False
    failed_at: int = msgspec.field(default_factory=time.time_ns)


Again = Callable[[Packet], list[Packet]]
"""Calls the operator once more."""

OnError = Callable[[TaskContext, Packet | None, Exception], None]
"""Is told of a packet that failed for good; None stands for a message that cannot be decoded."""


class ErrorHandler:
    """Counts errors, logs the first of each type in full, and applies the policy.

    Any thread may call it.

    Args:
        ctx: the task.
        policy: what becomes of a packet.
        retry: how the policy ``retry`` tries again, and what follows then.
        metrics: where errors are counted.
        dead_letters: where dead letters go.
        wait: waits for some seconds, or less when the task is to stop.
        on_error: is told of each error before the policy is applied.

    Raises:
        InvalidOption: dead letters are asked for and there is no queue for them.
    """

    def __init__(
        self,
        ctx: TaskContext,
        policy: ErrorPolicy,
        retry: RetryPolicy,
        metrics: TaskMetrics,
        dead_letters: Queue[DeadLetter] | None,
        wait: Callable[[float], None],
        on_error: OnError | None = None,
    ) -> None:
        self._retry = retry if policy is ErrorPolicy.RETRY else None
        self._policy = ErrorPolicy(retry.then) if policy is ErrorPolicy.RETRY else policy
        if self._policy is ErrorPolicy.DEAD_LETTER and dead_letters is None:
            raise InvalidOption(
                f"{ctx.name}: error_policy='dead_letter' needs a queue; pass dead_letters="
            )
        self._ctx = ctx
        self._metrics = metrics
        self._dead_letters = dead_letters
        self._wait = wait
        self._on_error = on_error
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def deal_with(self, packet: Packet, error: Exception, again: Again) -> list[Packet] | None:
        """Try the packet again if the policy says so, else :meth:`handle` it.

        Args:
            packet: the one that failed.
            error: how.
            again: calls the operator once more and returns its results.

        Returns:
            The results, if it went well after all; None otherwise.

        Raises:
            PacketError: the policy is ``fail``.
        """
        if self._retry is not None:
            try:
                return self._try_again(packet, error, self._retry, again)
            except Exception as last:
                error = last
        self.handle(packet, error)
        return None

    def _try_again(
        self, packet: Packet, error: Exception, policy: RetryPolicy, again: Again
    ) -> list[Packet]:
        import tenacity  # only where something fails

        first = True

        def attempt() -> list[Packet]:
            nonlocal first
            if first:
                first = False
                raise error
            self._metrics.retries += 1
            return again(packet)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(policy.attempts),
            wait=tenacity.wait_exponential(policy.backoff, policy.max_backoff),
            sleep=self._wait,
            reraise=True,
        )
        results: list[Packet] = retrying(attempt)
        return results

    def reject(self, packet: Packet, error: Exception) -> None:
        """Deal with a result that cannot be sent on, as :meth:`handle` does with packets."""
        self.handle(packet, error, is_result=True)

    def handle(self, packet: Packet | None, error: Exception, is_result: bool = False) -> None:
        """Deal with one packet, or with a message that could not be decoded into packets.

        Raises:
            PacketError: the policy is ``fail``.
        """
        kind = type(error).__name__
        with self._lock:
            self._metrics.errors += 1
            self._seen[kind] += 1
            first = self._seen[kind] == 1
        if self._on_error is not None:
            self._on_error(self._ctx, packet, error)
        which = f"packet {packet.id}" if packet is not None else "a message"
        if self._policy is ErrorPolicy.FAIL:
            raise PacketError(
                f"{self._ctx.name} failed on {which}: {kind}: {error}",
                None if packet is None else packet.id,
            ) from error
        if first:
            self._ctx.logger.error(
                "%s failed on %s: %s: %s; policy %s, more errors of this type are only counted",
                self._ctx.name, which, kind, error, self._policy.value,
                exc_info=error, extra={"packet": packet.id} if packet is not None else None,
            )  # fmt: skip
        if self._dead_letters is not None and self._policy is ErrorPolicy.DEAD_LETTER:
            _post(self._dead_letters, self._letter(packet, error, is_result))

    def summarise(self) -> None:
        """Log how many errors of each type there were, if any."""
        with self._lock:
            if self._seen:
                counts = ", ".join(f"{kind}: {n}" for kind, n in self._seen.most_common())
                self._ctx.logger.warning("%s had errors: %s", self._ctx.name, counts)

    def _letter(self, packet: Packet | None, error: Exception, is_result: bool) -> DeadLetter:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        what = f"{type(error).__name__}: {error}"
        return DeadLetter(packet, self._ctx.name, self._ctx.stage, what, trace, is_result)


def _post(queue: Queue[DeadLetter], letter: DeadLetter) -> None:
    try:
        queue.put(letter)
    except EncodeError:
        if letter.packet is None:
            raise
        letter.packet.payload = repr(letter.packet.payload)
        letter.packet.key = repr(letter.packet.key)
        letter.is_repr = True
        queue.put(letter)
