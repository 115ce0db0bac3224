"""What the harness asks of a queue."""

from __future__ import annotations

from typing import Any, ClassVar


class Channel:
    """One queue from a producer process to a consumer process.

    It is made in the consumer's process and passed to the producer's, which calls ``connect``
    before it sends. A peer without batches of its own sends one by one.
    """

    share: ClassVar[float] = 1.0
    """The part of a workload's messages that is enough to time this peer."""

    batches: ClassVar[bool] = False
    """Whether it has calls for many messages."""

    def connect(self) -> None:
        """Called in the producer's process, first of all."""

    def put(self, message: Any) -> None:
        raise NotImplementedError

    def get(self) -> Any:
        raise NotImplementedError

    def put_many(self, messages: list[Any]) -> None:
        raise NotImplementedError

    def get_many(self) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        """Called in the consumer's process, last of all."""
