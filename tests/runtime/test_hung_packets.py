"""Packets that an operator hangs on, in jobs that go back to a checkpoint for them."""

from __future__ import annotations

import os
import subprocess
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
from sageruntime.runner.skip_list import SkipList

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


def packets(*payloads: Any) -> list[Packet]:
    return [Packet(payload) for payload in payloads]


def rest(skip_list: SkipList, *payloads: str) -> str:
    return "".join(p.payload for p in packets(*payloads) if not skip_list.take_out(p))


def skipping(*payloads: str) -> SkipList:
    skip_list = SkipList(by_content=True)
    for packet in packets(*payloads):
        skip_list.add(skip_list.name_of(packet))
    return skip_list


def test_as_many_are_left_out_as_were_added() -> None:
    skip_list = skipping("x", "y", "x")
    for _ in range(2):  # in each attempt
        skip_list.begin_attempt()
        assert skip_list.is_pending
        assert rest(skip_list, *"axbx") == "ab"
        assert rest(skip_list, *"xay") == "xa"
        assert not skip_list.is_pending


def test_what_a_complete_checkpoint_holds_is_not_left_out_again() -> None:
    skip_list = skipping("x", "y", "x")
    skip_list.begin_attempt()
    assert rest(skip_list, *"xa") == "a"
    snapshot = skip_list.skipped()
    assert rest(skip_list, *"y") == ""
    skip_list.settle(snapshot)
    skip_list.settle(skip_list.skipped())  # the next checkpoint holds no more than came since
    skip_list.begin_attempt()
    assert rest(skip_list, *"yxx") == "yx"


def test_packets_that_are_delivered_again_are_known_by_their_ids() -> None:
    skip_list = SkipList(by_content=False)
    one, other = packets("x", "x")
    skip_list.add(skip_list.name_of(one))
    skip_list.begin_attempt()
    assert [packet for packet in (other, one) if not skip_list.take_out(packet)] == [other]


def test_a_set_has_one_name_in_every_process() -> None:
    """Its order depends on the hashes of its members, which are random in each process."""
    script = (
        "from sageruntime import Packet\nfrom sageruntime.runner.skip_list import SkipList\n"
        "print(SkipList(True).name_of(Packet({'a', 'b', 'c', 'd', 'e'}, key=frozenset('xyz'))))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(3)
    }  # fmt: skip
    assert len(names) == 1
