"""Errors on their way between processes: type, causes and traceback survive."""

from __future__ import annotations

from dataclasses import dataclass

import cloudpickle

from sageruntime.errors import RemoteError, describe_error, format_traceback


class RemoteTraceback(Exception):
    """The cause of an error of another process: its traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class PackedError:
    """An error and its chain of causes, outermost first, each as a pickle and as text."""

    pickles: list[bytes]
    texts: list[str]
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> PackedError:
        """Pack an error; this never fails."""
        chain: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and not any(link is known for known in chain):
            chain.append(link)
            link = link.__cause__
        return cls(
            [_dumps(link) for link in chain],
            [describe_error(link) for link in chain],
            format_traceback(error),
        )

    def unpack(self) -> BaseException:
        """The error with its causes; a :class:`RemoteError` for what cannot be rebuilt here."""
        below: BaseException = RemoteTraceback(self.trace)
        for data, text in zip(reversed(self.pickles), reversed(self.texts)):
            error = _loads(data, text)
            error.__cause__ = below
            below = error
        return below


def _dumps(error: BaseException) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # its text stands for it
        return b""
    return data


def _loads(data: bytes, text: str) -> BaseException:
    try:
        error = cloudpickle.loads(data)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a constructor of its own, or a module that is not here
        return RemoteError(text)
    return error if isinstance(error, BaseException) else RemoteError(text)
