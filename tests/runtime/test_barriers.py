"""Alignment: what is held back for barriers, message by message."""

from __future__ import annotations

from sageruntime.communication.router import Barrier, Packet, PacketBatch
from sageruntime.runner.alignment import Alignment
from sageruntime.runner.inbox import Delivery


def batch(sender: str, packets: int = 1) -> Delivery:
    return Delivery(PacketBatch([Packet(n) for n in range(packets)], sender=sender))


def test_a_sender_is_held_back_behind_its_barrier_until_all_have_come() -> None:
    alignment = Alignment(2, 10)
    assert alignment.note(Barrier(1, "a")) == []
    assert alignment.holds_back("a")
    assert not alignment.holds_back("b")
    held = batch("a")
    assert alignment.hold(held)
    assert not alignment.is_complete(set())
    alignment.note(Barrier(1, "b"))
    assert alignment.is_complete(set())
    assert alignment.release() == [held]
    assert not alignment.holds_back("a")


def test_a_sender_that_has_ended_needs_no_barrier() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    assert alignment.is_complete({"b"})


def test_no_more_than_the_limit_is_held_back() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    assert alignment.hold(batch("a", 6))
    assert not alignment.hold(batch("a", 5))
    assert alignment.held == 6
    assert len(alignment.release()) == 2, "what has no room is not lost"


def test_barriers_of_a_checkpoint_that_was_given_up_hold_nobody_back() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    held = batch("a")
    alignment.hold(held)
    assert alignment.abort(1) == [held]
    alignment.note(Barrier(1, "b"))
    assert not alignment.holds_back("b")
    assert alignment.abort(2) == []  # before any of its barriers
    alignment.note(Barrier(2, "a"))
    assert not alignment.holds_back("a")
    alignment.note(Barrier(3, "a"))
    assert alignment.holds_back("a")


def test_a_newer_barrier_ends_the_wait_for_an_older_one() -> None:
    alignment = Alignment(2, 10)
    alignment.note(Barrier(1, "a"))
    held = batch("a")
    alignment.hold(held)
    assert alignment.note(Barrier(2, "b")) == [held]
    assert alignment.checkpoint == 2
    assert alignment.note(Barrier(1, "b")) == [], "an older one is ignored"
    assert alignment.checkpoint == 2
