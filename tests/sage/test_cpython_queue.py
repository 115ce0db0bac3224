"""CPython's own queue tests, as shipped with this interpreter, run against SageQueue.

``test.test_queue`` and the queue part of ``test._test_multiprocessing`` are loaded with SageQueue
in the place of ``queue.Queue`` and ``multiprocessing.Queue``. What does not apply is named in
``NOT_APPLICABLE``, with the reason.
"""

from __future__ import annotations

import importlib
import multiprocessing as mp
import queue as standard
import unittest
from typing import Any

import pytest

from sagequeue import ShutDown
from sagequeue.queue import SageQueue

cpython_queue: Any = importlib.import_module("test.test_queue")
cpython_multiprocessing: Any = importlib.import_module("test._test_multiprocessing")

FEEDER = "about the feeder thread; SageQueue has none, and put raises in the caller"
NOT_OURS = "makes a multiprocessing.Queue by name, whatever is under test"

NOT_APPLICABLE = {
    "test_shrinking_queue": "assigns maxsize, which is fixed when shared memory is laid out",
    "test_queue_feeder_donot_stop_onexc": FEEDER,
    "test_queue_feeder_on_queue_feeder_error": FEEDER,
    "test_no_import_lock_contention": NOT_OURS,
    "test_timeout": NOT_OURS,
    "test_closed_queue_put_get_exceptions": NOT_OURS,
}


class StandardNames:
    """The module ``queue``, with the name that versions before 3.13 do not have."""

    Empty = standard.Empty
    Full = standard.Full
    ShutDown = ShutDown


class ThreadCases(cpython_queue.PyQueueTest):  # type: ignore[misc]
    """The tests of ``queue.Queue``."""

    def setUp(self) -> None:
        super().setUp()
        self.made = made = []  # type: ignore[var-annotated]

        class Queue(SageQueue[Any]):  # the tests look at this name
            def __init__(self, maxsize: int = 0) -> None:
                super().__init__(maxsize)
                made.append(self)

        self.type2test = Queue
        self.queue = StandardNames

    def tearDown(self) -> None:
        for queue in self.made:
            queue.close()
        super().tearDown()


class ProcessCases(cpython_multiprocessing._TestQueue, unittest.TestCase):  # type: ignore[misc]
    """The tests of ``multiprocessing.Queue``."""

    TYPE = "processes"
    context: Any

    def setUp(self) -> None:
        super().setUp()
        self.Process = self.context.Process
        self.Event = self.context.Event
        self.Queue = self.JoinableQueue = self.make
        self.made: list[SageQueue[Any]] = []

    def make(self, maxsize: int = 0) -> SageQueue[Any]:
        self.made.append(SageQueue(maxsize))
        return self.made[-1]

    def tearDown(self) -> None:
        for queue in self.made:
            queue.close()
        super().tearDown()


class ForkCases(ProcessCases):
    context = mp.get_context("fork")


class SpawnCases(ProcessCases):
    context = mp.get_context("spawn")


class ForkserverCases(ProcessCases):
    context = mp.get_context("forkserver")


KINDS = (ThreadCases, ForkCases, SpawnCases, ForkserverCases)


def names_of(kind: type[unittest.TestCase]) -> list[str]:
    return list(unittest.defaultTestLoader.getTestCaseNames(kind))


CASES = [
    pytest.param(kind, name, id=f"{kind.__name__}-{name}")
    for kind in KINDS
    for name in names_of(kind)
    if name not in NOT_APPLICABLE
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_cpython(kind: type[unittest.TestCase], name: str) -> None:
    result = unittest.TestResult()
    kind(name).run(result)
    assert result.testsRun == 1
    assert not result.skipped
    for _, text in result.errors + result.failures:
        pytest.fail(text)


def test_what_does_not_apply_exists() -> None:
    existing = {name for kind in KINDS for name in names_of(kind)}
    assert set(NOT_APPLICABLE) <= existing


# collected by pytest through the parametrised test above, not by themselves
for _kind in KINDS:
    _kind.__test__ = False  # type: ignore[attr-defined]
ProcessCases.__test__ = False  # type: ignore[attr-defined]
del _kind
