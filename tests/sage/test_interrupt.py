"""Ctrl-C and close() come out of every call that waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sagequeue import QueueClosed
from sagequeue.queue import SageQueue

WAITS = {
    "get": "queue.get()",
    "get_many": "queue.get_many()",
    "put": "queue.put_many([1, 2]); queue.put(3)",
    "put_many": "queue.put_many([1, 2, 3])",
    "put_large": "queue.put_many([1, 2]); queue.put(bytes(1 << 20))",
    "iterate": "list(queue)",
    "join": "queue.put(1); queue.join()",
}


@pytest.mark.parametrize("waiting", WAITS)
def test_ctrl_c(waiting: str) -> None:
    # a shell may have started us with SIGINT ignored, which children inherit
    script = textwrap.dedent(f"""
        import signal
        from sagequeue import SageQueue
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with SageQueue(2) as queue:
            print(queue.name, flush=True)
            {WAITS[waiting]}
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    time.sleep(0.2)  # so that it waits; before, Ctrl-C has nothing to interrupt
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert not os.path.exists(f"/dev/shm/sagequeue-{name}")


@pytest.mark.parametrize("waiting", WAITS)
def test_close_from_another_thread(waiting: str) -> None:
    queue: SageQueue[object] = SageQueue(2)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            exec(WAITS[waiting], {"queue": queue})
        except QueueClosed as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)  # so that it waits; closed before, it only learns sooner
    queue.close()
    thread.join(20)
    assert len(outcome) == 1
    assert not os.path.exists(f"/dev/shm/sagequeue-{queue.name}")


def test_a_signal_handler_that_returns_lets_the_call_go_on() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        with SageQueue[str]() as queue:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            timer = threading.Timer(0.3, lambda: queue.put("came"))
            timer.start()
            assert queue.get() == "came"
            timer.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen == [signal.SIGALRM]
