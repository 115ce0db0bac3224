"""Counts as callers give them: whole numbers of any kind, numpy's too."""

from __future__ import annotations

import operator
import sys
from typing import SupportsIndex

from sagequeue.errors import InvalidOption


def count_of(option: str, value: SupportsIndex) -> int:
    """The value of an option as an ``int``.

    Raises:
        InvalidOption: it is no whole number (``True`` and ``False`` are not), or none that a
            machine could count to.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise InvalidOption(f"{option}={value!r} is not allowed; expected a whole number") from None
    if count > sys.maxsize:
        raise InvalidOption(f"{option}={count} is not allowed; expected at most {sys.maxsize}")
    return count


def most_of(max_items: SupportsIndex) -> int:
    """How many items a call may take at most, where it was told.

    Raises:
        InvalidOption: it is no whole number, or less than 1.
    """
    try:
        most = 0 if isinstance(max_items, bool) else operator.index(max_items)
    except TypeError:
        most = 0
    if most < 1:
        raise InvalidOption(
            f"max_items must be a whole number of at least 1, or None, not {max_items!r}"
        )
    return min(most, sys.maxsize)
