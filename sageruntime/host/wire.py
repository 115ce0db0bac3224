"""The wire between a driver and its hosts: commands and events as bytes, in frames."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import cloudpickle
import msgspec

from sageruntime.errors import OperatorError, RemoteError, describe_error
from sageruntime.host.packed_error import PackedError
from sageruntime.runner import commands as do
from sageruntime.runner import events as told
from sageruntime.runner.status import TaskReport

HEADER = struct.Struct(">Q")
"""The length of what follows."""

_decoder = msgspec.msgpack.Decoder(do.AnyCommand)


def encode_command(command: do.Command) -> bytes:
    """A command as bytes."""
    return msgspec.msgpack.encode(command)


def decode_command(data: bytes) -> do.Command:
    """A command from its bytes."""
    command: do.Command = _decoder.decode(data)
    return command


class _Parts(msgspec.Struct):
    """An event in parts that are pickled apart, so that one that cannot be rebuilt harms no other.

    Attributes:
        kind: the event's type.
        attempt: its attempt.
        plain: its fields that always travel.
        error: the exception it carries, packed.
        result: the sink's result, pickled.
    """

    kind: str
    attempt: int
    plain: bytes
    error: bytes | None
    result: bytes | None


_parts = msgspec.msgpack.Decoder(_Parts)


def encode_event(event: told.Event) -> bytes:
    """An event as bytes; never fails: a result that does not pickle becomes an error."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "attempt"}
    error: BaseException | None = fields.pop("error", None)
    result: bytes | None = None
    report: TaskReport | None = fields.get("report")
    if report is not None:
        try:
            result = cloudpickle.dumps(report.result)
        except Exception as cause:
            error = OperatorError(
                f"the result of {report.status.name} does not pickle: {describe_error(cause)}; "
                "return plain data from result(), or run the sink on a thread"
            )
        fields["report"] = report.without_result()
    return msgspec.msgpack.encode(_Parts(
        kind=type(event).__name__,
        attempt=event.attempt,
        plain=pickle.dumps(fields),
        error=None if error is None else pickle.dumps(PackedError.of(error)),
        result=result,
    ))  # fmt: skip


def decode_event(data: bytes) -> told.Event:
    """An event from its bytes."""
    parts = _parts.decode(data)
    kind: Any = getattr(told, parts.kind)
    fields: dict[str, Any] = pickle.loads(parts.plain)
    error = None if parts.error is None else pickle.loads(parts.error).unpack()
    report: TaskReport | None = fields.get("report")
    if report is not None:
        if parts.result is not None:
            try:
                report = report.with_result(cloudpickle.loads(parts.result))
            except Exception as cause:
                error = RemoteError(
                    f"the result of {report.status.name} cannot be rebuilt in this process: "
                    f"{describe_error(cause)}"
                )
                error.__cause__ = cause
        fields["report"] = report if error is None else report.with_error(error)
    elif "error" in kind.__struct_fields__:
        fields["error"] = error
    event: told.Event = kind(attempt=parts.attempt, **fields)
    return event


def frame(data: bytes) -> bytes:
    """Bytes with their length before them."""
    return HEADER.pack(len(data)) + data


class FrameBuffer:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they come and return the frames that are whole."""
        self._data += data
        frames: list[bytes] = []
        start = 0
        while len(self._data) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._data, start)
            end = start + HEADER.size + length
            if len(self._data) < end:
                break
            frames.append(bytes(self._data[start + HEADER.size : end]))
            start = end
        del self._data[:start]
        return frames
