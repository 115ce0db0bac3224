"""Sending dead letters again, from the stage that gave them up."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sageruntime.communication.router import Packet
from sageruntime.core.policies import ErrorPolicy
from sageruntime.core.task_options import TaskOptions
from sageruntime.dead_letters.letter import DeadLetter
from sageruntime.dead_letters.store import DeadLetterStore, StoredLetter
from sageruntime.errors import DeadLetterStoreError
from sageruntime.factory.task_factory import TaskType
from sageruntime.operator import BaseOperator, IterableSource
from sageruntime.operator.operator_factory import OperatorFactory
from sageruntime.stage import Stage

if TYPE_CHECKING:
    from sageruntime.job_result import JobResult
    from sageruntime.pipeline import Pipeline

_READ = "dead-letters"
_SEND = "sent-again"


@dataclass
class Replay:
    """The outcome of a replay.

    Attributes:
        gone: ids of letters whose packets passed the stage that had given them up; they are no
            longer in the store.
        again: ids of letters whose packets failed there again; they stay in the store.
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
    on: TaskType | None = None,
) -> Replay:
    """Send the packets of dead letters through the rest of the pipeline that gave them up.

    For each stage that letters enter, a job of the stages from there on is run to its end. Then
    the letters whose packets went through are removed, at once with the entry of what failed
    again. A job that is broken off leaves all its letters: some packets may have gone through by
    then, and will again.

    The stage entered makes a letter of each packet that fails, whatever its error policy; those
    after it do as theirs say. A stage begins without the state it had: a count by key counts what
    is sent again only.

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
        entries.setdefault(_find_entry(letter, pipeline), []).append(letter)
    outcome = Replay()
    for position in sorted(entries):
        _send(pipeline, position, entries[position], store, on, outcome)
    return outcome


def _find_entry(letter: StoredLetter, pipeline: Pipeline) -> int:
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
    on: TaskType | None,
    outcome: Replay,
) -> None:
    rest = _build_rest(pipeline, position, [store.packet(letter) for letter in letters], on)
    result = rest.run()
    entry = rest.stages[2].name
    sent: dict[int | None, list[StoredLetter]] = {}
    for letter in letters:
        sent.setdefault(letter.packet_id, []).append(letter)
    again: dict[int, DeadLetter] = {}
    new: list[DeadLetter] = []
    for given_up in result.dead_letters:
        if given_up.packet is None and given_up.stage == entry:
            # whose packets were in that message is not known: all stay
            again = {letter.id: given_up for letter in letters} | again
            continue
        packet_id = given_up.packet.id if given_up.packet is not None else None
        same = [old.id for old in sent.get(packet_id, ()) if _is_again(old, given_up)]
        again.update(dict.fromkeys(same, given_up))
        if not same:
            new.append(given_up)
    gone = [letter.id for letter in letters if letter.id not in again]
    store.record_replay(pipeline.name, gone, again, new)
    outcome.gone += gone
    outcome.again += again
    outcome.new += len(new)
    outcome.results.append(result)


def _is_again(old: StoredLetter, new: DeadLetter) -> bool:
    """Whether a packet was given up where it had been before, and not further on."""
    # a result that could not be sent on is sent by the stage _SEND now, so its stage differs
    return new.stage == _SEND or (old.stage, old.is_result) == (new.stage, new.is_result)


def _build_rest(
    pipeline: Pipeline, position: int, packets: list[Packet], on: TaskType | None
) -> Pipeline:
    """The pipeline from a stage on, with the packets to send for a source."""
    options = replace(pipeline.options, error_policy=ErrorPolicy.DEAD_LETTER)
    stages = pipeline.stages[position:]
    if on is not None:
        stages = [replace(stage, on=on) for stage in stages]
    rest = copy.copy(pipeline)
    rest.stages = [
        Stage(_READ, OperatorFactory(IterableSource, packets), 1, "thread", options),
        Stage(_SEND, OperatorFactory(_SendAgain), 1, "thread", options),
        replace(stages[0], options=_keep_failures(stages[0].options)),
        *stages[1:],
    ]
    return rest


def _keep_failures(options: TaskOptions) -> TaskOptions:
    """The same, with a letter for each packet that fails: then it is known which went through."""
    if options.error_policy is ErrorPolicy.RETRY:
        return replace(options, retry=replace(options.retry, then="dead_letter"))
    return replace(options, error_policy=ErrorPolicy.DEAD_LETTER)
