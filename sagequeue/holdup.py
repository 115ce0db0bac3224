"""Saying who keeps a queue waiting."""

from __future__ import annotations

import logging
from pathlib import Path

_STATES = {
    "T": "is stopped, by SIGSTOP or a terminal",
    "t": "is stopped by a debugger",
    "Z": "has just died",
}


def report_holdup(queue: str, pid: int) -> None:
    """Log that a participant has been in the middle of a short step for a second.

    Args:
        queue: the queue's name.
        pid: the participant's process, as its own pid namespace numbers it.
    """
    logging.getLogger("sagequeue").warning(
        "queue %r waits for process %d, which is in the middle of putting or taking a message, or "
        "of settling what a dead participant left, and %s; the queue goes on when that process "
        "does, or when it is killed",
        queue,
        pid,
        _state_of(pid, queue),
    )


def _state_of(pid: int, queue: str) -> str:
    """What the process is doing, as the second half of a sentence."""
    try:
        segment = str(Path(f"/dev/shm/sagequeue-{queue}").stat().st_ino)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        maps = []
    if not any(line.split()[4] == segment for line in maps):
        return "has this number in a pid namespace (a container) other than ours"
    letter = status.rpartition(")")[2].split()[0]
    return _STATES.get(letter, "gets no processor: its cgroup may be frozen, or the machine busy")
