"""Claims of a Ray queue: an item stays with the broker until it is released."""

from __future__ import annotations

import pickle
import threading
import traceback
from typing import Any

import cloudpickle
import pytest

from sagequeue import RayQueue
from sagequeue.errors import DecodeError, Empty, ShutDown
from sagequeue.ray_broker import CALL_BYTES


@pytest.fixture
def queue(ray_cluster: None) -> Any:
    with RayQueue() as made:
        yield made


def test_what_is_not_released_comes_back_before_everything_else(queue: RayQueue[Any]) -> None:
    queue.put_many(["a", "b", "c", "d"])
    first, second = queue.claim("one:1"), queue.claim("one:2")
    other = queue.claim("two:1")
    assert [first.item, second.item, other.item] == ["a", "b", "c"]
    assert first.deliveries == 0
    first.release()
    queue.give_back_claims("one:")
    assert queue.qsize() == 2
    again = queue.claim("one:3")
    assert (again.item, again.deliveries) == ("b", 1)
    assert queue.claim("two:2").item == "d"
    with pytest.raises(Empty):
        queue.claim("two:2", block=False)
    queue.give_back_claims("one:")
    assert queue.claim("one:4", timeout=10).deliveries == 2


def test_a_claim_that_the_dead_had_under_way_takes_nothing(queue: RayQueue[Any]) -> None:
    came: list[BaseException] = []

    def claim() -> None:
        try:
            queue.claim("dead:1", timeout=30)
        except ShutDown as error:
            came.append(error)

    claiming = threading.Thread(target=claim)
    claiming.start()
    while claiming.is_alive():  # until the broker has known of the claim
        queue.give_back_claims("dead:")
        claiming.join(0.05)
    assert len(came) == 1
    queue.put("x")
    assert queue.claim("alive:1", timeout=10).item == "x"


def test_shutdown_ends_claims(queue: RayQueue[Any]) -> None:
    queue.put("x")
    queue.shutdown()
    assert queue.claim("one").item == "x"
    with pytest.raises(ShutDown):
        queue.claim("one")


def test_several_are_released_at_once(queue: RayQueue[Any]) -> None:
    queue.put_many(["a", "b", "c"])
    first, second, third = queue.claim_many("one:1")
    queue.release_many([first, third])
    queue.give_back_claims("one:")
    assert second.item == "b"
    assert [lease.item for lease in queue.claim_many("two:1")] == ["b"]


loads = []


def fail() -> None:
    loads.append("again")
    raise ValueError("no such item")


class Unloadable:
    def __reduce__(self) -> Any:
        return fail, ()


def test_a_lease_whose_item_cannot_be_decoded_stays_the_claimants(queue: RayQueue[Any]) -> None:
    queue.put_many(["a", Unloadable(), "c"])
    first, second, third = queue.claim_many("one:1")
    loads.clear()
    errors = []
    for _ in range(3):
        with pytest.raises(DecodeError, match="release") as caught:
            _ = second.item
        errors.append((caught.value, len(traceback.extract_tb(caught.tb))))
    assert errors[1] == errors[2]
    assert errors[0][0] is errors[1][0]
    assert loads == ["again"]
    data, buffers = errors[0][0].data, errors[0][0].buffers
    assert data is not None
    with pytest.raises(ValueError, match="no such item"):
        pickle.loads(data, buffers=buffers)
    assert [first.item, third.item] == ["a", "c"]
    queue.release_many([first, third])
    queue.give_back_claims("one:")  # it was not released with its error
    again = queue.claim("two:1", block=False)
    assert again.deliveries == 1
    again.release()
    with pytest.raises(Empty):
        queue.claim("two:1", block=False)


def test_get_consumes_what_cannot_be_decoded(queue: RayQueue[Any]) -> None:
    queue.put_many(["a", Unloadable(), "c"])
    assert queue.get_many() == ["a"]
    with pytest.raises(DecodeError, match="consumed") as caught:
        queue.get_many()
    assert caught.value.data == cloudpickle.dumps(Unloadable())
    assert queue.get_many() == ["c"]


def test_a_call_takes_no_more_than_some_mebibytes(queue: RayQueue[Any]) -> None:
    big = bytes(CALL_BYTES // 2 + 1)
    assert queue.put_many([big] * 5) == 5
    assert [len(queue.get_many()) for _ in range(2)] == [2, 2]
    assert queue.claim("one:1").item == big
    queue.put_many([big] * 3)
    assert len(queue.claim_many("one:1")) == 2
    assert len(queue.claim_many("one:1")) == 1
