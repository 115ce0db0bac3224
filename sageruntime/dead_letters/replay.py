"""Sending dead letters again, from the stage that gave them up."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sageruntime.communication.router import Packet
from sageruntime.dead_letters.store import DeadLetterStore, StoredLetter
from sageruntime.errors import DeadLetterStoreError
from sageruntime.factory.operator_factory import OperatorFactory
from sageruntime.factory.task_factory import Host
from sageruntime.operator import BaseOperator, IterableSource
from sageruntime.stage import Stage
from sageruntime.task.error_policy import DeadLetter, ErrorPolicy

if TYPE_CHECKING:
    from sageruntime.job_result import JobResult
    from sageruntime.pipeline import Pipeline

_READ = "dead-letters"
_SEND = "sent-again"


@dataclass
class Replay:
    """What became of letters that were sent again.

    Attributes:
        gone: ids of those whose packets went through the stage that had given them up; they are
            no longer in the store.
        again: ids of those that failed there again, and stay.
        new: how many packets made from them were given up further on, and are in the store now.
        results: of the jobs that did it, one for each stage that letters entered.
    """

    gone: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    new: int = 0
    results: list[JobResult] = field(default_factory=list)


class _SendAgain(BaseOperator):
    """Sends packets that come as payloads, with the key, timestamp and id they have."""

    def process(self, packet: Packet) -> Packet:
        sent: Packet = packet.payload
        return sent


def replay(
    pipeline: Pipeline,
    store: DeadLetterStore,
    ids: Collection[int] | None = None,
    on: Host | None = None,
) -> Replay:
    """Send the packets of dead letters through the rest of the pipeline that gave them up.

    For each stage that letters enter, a job of the stages from there on is run to its end. Then
    the letters whose packets went through are removed, at once with the entry of what failed
    again. A job that is broken off leaves all its letters: some packets may have gone through by
    then, and will again.

    A stage begins without the state it had: a count by key counts what is sent again only.

    Args:
        pipeline: of the name the letters have; operators may have been corrected.
        store: where the letters are.
        ids: which of the pipeline's letters; by default all that can be sent again.
        on: moves every stage to one kind of host.

    Raises:
        DeadLetterStoreError: an id is not there or its packet is not kept; or a stage is gone.
        JobFailed: a task failed.
    """
    letters = store.letters(pipeline.name, ids)
    if ids is None:
        letters = [letter for letter in letters if letter.replayable]
    entries: dict[int, list[StoredLetter]] = {}
    for letter in letters:
        entries.setdefault(_entry_of(letter, pipeline), []).append(letter)
    outcome = Replay()
    for position in sorted(entries):
        _send(pipeline, position, entries[position], store, on, outcome)
    return outcome


def _entry_of(letter: StoredLetter, pipeline: Pipeline) -> int:
    """Where in the pipeline the packet belongs."""
    names = [stage.name for stage in pipeline.stages]
    if letter.stage not in names:
        raise DeadLetterStoreError(
            f"dead letter {letter.id} is of stage {letter.stage!r}, which {pipeline.name} has not: "
            f"it has {', '.join(names)}. Name the stage as it was, or remove the letter"
        )
    return names.index(letter.stage) + letter.is_result


def _send(
    pipeline: Pipeline,
    position: int,
    letters: list[StoredLetter],
    store: DeadLetterStore,
    on: Host | None,
    outcome: Replay,
) -> None:
    packets = [store.packet(letter) for letter in letters]
    result = _rest_of(pipeline, position, packets, on).run()
    sent: dict[int | None, list[StoredLetter]] = {}
    for letter in letters:
        sent.setdefault(letter.packet_id, []).append(letter)
    again: dict[int, DeadLetter] = {}
    new: list[DeadLetter] = []
    for given_up in result.dead_letters:
        packet_id = given_up.packet.id if given_up.packet is not None else None
        same = [old for old in sent.get(packet_id, ()) if _is_again(old, given_up)]
        again.update((old.id, given_up) for old in same)
        if not same:
            new.append(given_up)
    gone = [letter.id for letter in letters if letter.id not in again]
    store.settle(gone, again, pipeline.name, new)
    outcome.gone += gone
    outcome.again += again
    outcome.new += len(new)
    outcome.results.append(result)


def _is_again(old: StoredLetter, new: DeadLetter) -> bool:
    """Whether a packet was given up where it had been before, and not further on."""
    if new.stage == _SEND:  # where results are sent from that had no way out of their stage
        return True
    return (old.stage, old.is_result) == (new.stage, new.is_result)


def _rest_of(pipeline: Pipeline, position: int, packets: list[Packet], on: Host | None) -> Pipeline:
    """The pipeline from a stage on, with the packets to send for a source."""
    options = replace(pipeline.options, error_policy=ErrorPolicy.DEAD_LETTER)
    stages = pipeline.stages[position:]
    if on is not None:
        stages = [replace(stage, host=on) for stage in stages]
    rest = copy.copy(pipeline)
    rest.stages = [
        Stage(_READ, OperatorFactory(IterableSource, packets), 1, "thread", options),
        Stage(_SEND, OperatorFactory(_SendAgain), 1, "thread", options),
        *stages,
    ]
    return rest
