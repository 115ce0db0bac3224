"""Packets that an operator hangs on, in jobs that go back to a checkpoint for them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from sageruntime import CheckpointOptions, Packet, Pipeline, RestartPolicy, TaskOptions
from sageruntime.errors import JobFailed, ProcessingTimeout
from sageruntime.task.hung_packets import HungPackets

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import it


def slow_at(word: str) -> str:
    """Hangs on some words."""
    if word.startswith("hang"):
        time.sleep(1000)
    return word


WORDS = ["a", "hang 1", "b", "a", "hang 2", "c", "hang 1", "d"]


def careful(on: Any, source: Any, policy: str, restarts: int = 0) -> Pipeline:
    options = TaskOptions(
        processing_timeout=0.3, error_policy=policy, batch_size=1,  # type: ignore[arg-type]
        restart=RestartPolicy(max_restarts=restarts, backoff=0.0),
    )  # fmt: skip
    return (
        Pipeline("careful", options=options)
        .source(source)
        .key_by(lambda word: word)
        .map(slow_at, on=on, parallelism=2)
        .sink()
    )


@pytest.mark.parametrize("on", ["process", "ray"])
def test_each_is_dealt_with_once_and_no_restart_is_counted(
    on: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    pipeline = careful(on, WORDS, "dead_letter")
    result = pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db", interval=0.1))
    assert sorted(result.sink_result) == ["a", "a", "b", "c", "d"]
    letters = Counter(letter.packet.payload for letter in result.dead_letters)
    assert letters == {"hang 1": 2, "hang 2": 1}


def test_under_the_policy_fail_it_is_tried_again(tmp_path: Path) -> None:
    pipeline = careful("process", WORDS, "fail", restarts=1)
    with pytest.raises(JobFailed) as failure:
        pipeline.run(checkpoint=CheckpointOptions(tmp_path / "c.db"))
    cause = failure.value.__cause__
    assert cause is not None
    assert isinstance(cause.__cause__, ProcessingTimeout)


def test_one_that_is_not_the_same_when_it_comes_again_ends_the_job(tmp_path: Path) -> None:
    """Each time it would be a new one, for ever."""

    def source() -> Iterator[str]:
        yield from ("a", f"hang {time.time_ns()}")

    with pytest.raises(JobFailed, match="SIGKILL"):
        careful("process", source, "skip", restarts=2).run(
            checkpoint=CheckpointOptions(tmp_path / "c.db")
        )


def packets(*payloads: str) -> list[Packet]:
    return [Packet(payload) for payload in payloads]


def rest(hung: HungPackets, *payloads: str) -> str:
    return "".join(packet.payload for packet in hung.rest_of(packets(*payloads)))


def test_as_many_are_left_out_as_were_hung_on() -> None:
    hung = HungPackets(anew=True)
    hung.add(map(hung.name_of, packets("x", "y", "x")))
    for _ in range(2):  # each attempt anew
        hung.begin()
        assert hung.due
        assert rest(hung, *"axbx") == "ab"
        assert rest(hung, *"xay") == "xa"
        assert not hung.due


def test_what_a_complete_checkpoint_holds_is_not_left_out_again() -> None:
    hung = HungPackets(anew=True)
    hung.add(map(hung.name_of, packets("x", "y", "x")))
    hung.begin()
    assert rest(hung, *"xa") == "a"
    snapshot = hung.left_out()
    assert rest(hung, *"y") == ""
    hung.settle(snapshot)
    hung.settle(hung.left_out())  # the next checkpoint holds no more of it than came since
    hung.begin()
    assert rest(hung, *"yxx") == "yx"


def test_who_learns_of_them_begins_with_all() -> None:
    hung = HungPackets(anew=False)
    one, other = packets("x", "x")
    hung.add([hung.name_of(one)])
    hosted = HungPackets(anew=True)
    hosted.learn(hung)
    assert hosted.rest_of([other, one]) == [other]
