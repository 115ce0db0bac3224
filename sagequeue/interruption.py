"""Telling the exception of a signal handler from an error of the code that it interrupted."""

from __future__ import annotations

import inspect
from itertools import pairwise
from types import FrameType


def is_interruption(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C or came out of a signal handler.

    The type does not tell: a handler may raise anything, such as a program's own timeout by
    ``signal.alarm``. The traceback does: it leads through the handler.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    traceback = None if error is None else error.__traceback__
    while traceback is not None:
        if _is_signal_handler(traceback.tb_frame):
            return True
        traceback = traceback.tb_next
    return False


def _is_signal_handler(frame: FrameType) -> bool:
    """Whether its arguments are a number and the frame of its caller, which it has interrupted."""
    interrupted = frame.f_back
    if interrupted is None:
        return False
    code, variables = frame.f_code, frame.f_locals
    arguments = [variables.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & inspect.CO_VARARGS:
        name = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        arguments += variables.get(name, ())
    return any(
        isinstance(number, int) and caller is interrupted for number, caller in pairwise(arguments)
    )


def raise_interruption(error: BaseException) -> None:
    """Raise the interruption that a codec took for an error of the item; else return.

    Args:
        error: what the codec raised, from the exception that it met.
    """
    cause = error.__cause__
    if cause is not None and is_interruption(cause):
        context = cause.__context__
        try:
            raise cause
        finally:
            cause.__context__ = context  # and not the codec's error, whose cause it is
