"""Puts and gets by the one build of sagequeue that is on the path; prints messages a second.

    python put_get.py PROCESSES BYTES MESSAGES

In one process its own CPU time counts; from one to another, the time from the first message to the
last, each process pinned to a core.
"""

from __future__ import annotations

import os
import sys
import time

from sagequeue import SageQueue

BURST = 200


def in_one_process(message: bytes, messages: int) -> float:
    with SageQueue(maxsize=2 * BURST) as queue:
        begun = time.process_time()
        for _ in range(messages // BURST):
            for _ in range(BURST):
                queue.put(message)
            for _ in range(BURST):
                queue.get()
        return messages // BURST * BURST / (time.process_time() - begun)


def between_two(message: bytes, messages: int) -> float:
    first, last = 0, max(os.sched_getaffinity(0))
    over, end = os.pipe()
    with SageQueue(maxsize=1000) as queue:
        if os.fork() == 0:
            os.close(end)
            os.sched_setaffinity(0, {first})
            for _ in range(messages):
                queue.put(message)
            os.read(over, 1)  # without recovery, who leaves takes its chunks along
            os._exit(0)
        os.sched_setaffinity(0, {last})
        queue.get()
        begun = time.perf_counter()
        for _ in range(messages - 1):
            queue.get()
        seconds = time.perf_counter() - begun
        os.close(end)
        os.wait()
        return (messages - 1) / seconds


if __name__ == "__main__":
    processes, size, count = map(int, sys.argv[1:])
    run = in_one_process if processes == 1 else between_two
    print(run(bytes(size), count))
