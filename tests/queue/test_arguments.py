"""Counts and timeouts: what is one in Python is taken, and all else refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sagequeue import InvalidOption, LocalQueue, ObjectQueue, SageQueue

KINDS: list[Callable[..., Any]] = [ObjectQueue, LocalQueue]
NO_COUNTS = [2.5, 64.0, "3", None, True, [4], 2**70]


@pytest.mark.parametrize("kind", KINDS)
def test_max_items(kind: Callable[..., Any]) -> None:
    queue = kind()
    for most in (np.int64(2), np.uint8(2), 2**64, None):
        queue.put_many([1, 2])
        assert queue.get_many(most) == [1, 2]
    queue.put(1)
    for most in (0, -1, -(2**64), 2.5, "3", True, np.float32(1)):
        with pytest.raises(InvalidOption, match="max_items must be a whole number of at least 1"):
            queue.get_many(most)
    assert queue.get() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_timeouts(kind: Callable[..., Any]) -> None:
    queue = kind(1)
    for timeout in (10**400, math.inf, np.float64(1), 0.5):
        queue.put(1, timeout=timeout)
        assert queue.get(timeout=timeout) == 1
    for timeout in (-(10**400), -1, math.nan, "1", [1]):
        with pytest.raises(InvalidOption, match="timeout"):
            queue.put(1, timeout=timeout)
        with pytest.raises(InvalidOption, match="timeout"):
            queue.get_many(timeout=timeout)


@pytest.mark.parametrize("kind", [*KINDS, SageQueue])
def test_maxsize(kind: Callable[..., Any]) -> None:
    for maxsize in (np.int64(5), -3):
        with kind(maxsize) as queue:
            assert queue.maxsize == max(0, maxsize)
            assert type(queue.maxsize) is int
    for maxsize in NO_COUNTS:
        with pytest.raises(InvalidOption, match="^maxsize="):
            kind(maxsize)


@pytest.mark.parametrize(
    ("option", "good"),
    [("capacity", 128), ("slot_size", 192), ("pool_bytes", 1 << 20), ("max_participants", 4)],
)
def test_counts_among_the_options_of_a_sage_queue(option: str, good: int) -> None:
    options: dict[str, Any] = {option: np.int32(good)}
    with SageQueue[Any](**options) as queue:
        queue.put(1)
        assert getattr(queue, option, good) == good
    for bad in NO_COUNTS:
        if option != "capacity" or bad is not None:
            wrong: dict[str, Any] = {option: bad}
            with pytest.raises(InvalidOption, match=f"^{option}="):
                SageQueue(**wrong)


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        ("recovery_interval", "1"),
        ("recovery_interval", math.nan),
        ("codec", 5),
        ("codec", b"pickle"),
        ("name", 5),
        ("mode", 5),
    ],
)
def test_other_options_of_a_sage_queue(option: str, bad: Any) -> None:
    wrong: dict[str, Any] = {option: bad}
    with pytest.raises(InvalidOption, match=f"^{option}="):
        SageQueue(**wrong)


@pytest.mark.parametrize("shape", [5, np.int64(5), (5,), [5], np.array(5), np.array([5]), (5, 1)])
def test_shapes_of_a_loan(shape: Any) -> None:
    with SageQueue[Any]() as queue:
        with queue.loan(shape, "u1") as lent:
            lent[...] = 7
        assert queue.get().tolist() in ([7] * 5, [[7]] * 5)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        (2.5, "u1", "^shape=2.5 "),
        ((4, 2.5), "u1", "^shape=2.5 "),
        ("55", "u1", "^shape='5' "),
        (True, "u1", "^shape=True "),
        (None, "u1", "^shape=None "),
        (-1, "u1", "^shape=-1 .*0 or more"),
        ((1,) * 13, "u1", "^shape=.*12"),
        (2**63, "u1", "^shape="),
        ((2**40, 2**40), "u1", "^shape=.*bytes"),
        ((0, 2**40, 2**40), "u1", "^shape=.*bytes"),
        (2**61, "f8", "^shape=.*bytes"),
        (5, "nonsense", "^dtype='nonsense' "),
        (5, "S", "plain dtype"),
        (5, object, "plain dtype"),
    ],
)
def test_loans_that_are_none(shape: Any, dtype: Any, said: str) -> None:
    with SageQueue[Any]() as queue:
        with pytest.raises(InvalidOption, match=said), queue.loan(shape, dtype):
            pass
        assert queue.usage().chunks_held == 0


def test_a_loan_has_up_to_twelve_dimensions() -> None:
    with SageQueue[Any]() as queue:
        with queue.loan((1,) * 12, "u1") as lent:
            lent[...] = 3
        assert queue.get().shape == (1,) * 12
