"""The queues of this machine, seen from outside: who takes part in them, and what is left over."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from sagequeue._shared import birth_of, look_at, remove_segment
from sagequeue.errors import (
    CorruptSegment,
    ForeignSegment,
    IncompatibleSegment,
    InvalidOption,
    QueueExists,
    QueueNotFound,
)
from sagequeue.queue import checked_name

State = Literal["live", "stale", "foreign", "incompatible", "corrupt"]

# Paths are plain strings here: pathlib keeps the name of every queue for ever on Python 3.12.
_DIRECTORY = "/dev/shm"
_PREFIX = "sagequeue-"


@dataclass(frozen=True)
class QueueInfo:
    """A queue as it looks at this moment.

    Attributes:
        state: ``"live"``: it has live participants; ``"stale"``: all participants are dead;
            ``"foreign"``: another user's, not looked into; ``"incompatible"``: of another
            version; ``"corrupt"``.
        waiting: items to get.
        leases: items claimed and not released.
        pids: live participants, one for each handle.
        dead_pids: dead participants that are not settled yet.
        bytes_reserved: size of the segments; most of it is never touched.
        bytes_in_memory: what they take.
        message_segments: messages too large for a chunk, each in a segment of its own.
    """

    name: str
    state: State
    bytes_reserved: int
    bytes_in_memory: int
    message_segments: int
    mode: str = ""
    codec: str = ""
    maxsize: int = 0
    capacity: int = 0
    waiting: int = 0
    leases: int = 0
    chunk_bytes_held: int = 0
    pids: tuple[int, ...] = ()
    dead_pids: tuple[int, ...] = ()
    shut_down: bool = False


def list_queues() -> list[QueueInfo]:
    """All queues of this machine, by name."""
    files = _files_beginning_with(_PREFIX)
    names = {os.path.basename(file).partition(".")[0] for file in files}
    found = []
    for name in sorted(names):
        try:
            found.append(inspect_queue(name.removeprefix(_PREFIX)))
        except (QueueNotFound, InvalidOption):
            continue  # gone since, or no queue's name
    return found


def inspect_queue(name: str) -> QueueInfo:
    """Look at one queue without taking part in it.

    Raises:
        InvalidOption: no queue can have that name.
        QueueNotFound: there is none.
    """
    files = _files_of(checked_name(name))
    reserved, in_memory = 0, 0
    for file in files:
        try:
            status = os.stat(file)
        except FileNotFoundError:
            continue
        reserved += status.st_size
        in_memory += status.st_blocks * 512
    sizes = (reserved, in_memory, len(files) - os.path.exists(files[0]))
    try:
        seen = look_at(name)
    except QueueNotFound:
        if not any(os.path.exists(file) for file in files):
            raise
        return QueueInfo(name, "stale", *sizes)  # messages whose queue is gone
    except ForeignSegment:
        return QueueInfo(name, "foreign", *sizes)
    except IncompatibleSegment:
        return QueueInfo(name, "incompatible", *sizes)
    except CorruptSegment:
        return QueueInfo(name, "corrupt", *sizes)
    return QueueInfo(name, "live" if seen["pids"] else "stale", *sizes, **seen)


def remove_queue(name: str, force: bool = False) -> None:
    """Remove a queue with the items in it.

    Args:
        name: the queue's name.
        force: also one that is in use: it is shut down, which ends the waits of its participants.

    Raises:
        QueueNotFound: there is none.
        QueueExists: it is in use.
        ForeignSegment: it belongs to another user.
    """
    info = inspect_queue(name)
    if info.state == "foreign":
        raise ForeignSegment(f"queue {name!r} belongs to another user and is not touched")
    try:
        remove_segment(name, force)
    except QueueExists:
        raise QueueExists(
            f"queue {name!r} is in use by {', '.join(map(str, info.pids)) or 'another process'}; "
            "stop them, or remove it by force"
        ) from None
    except QueueNotFound:
        pass  # only messages are left
    _remove_leftovers(name)


def _remove_leftovers(name: str) -> None:
    """Messages of a queue that is gone; those of a newer one with its name bear another number."""
    files = _message_files(name)
    birth = birth_of(name)  # after the files were listed: a queue made since then has none of them
    for file in files:
        number = os.path.basename(file).partition(".")[2]
        if birth is not None and number.startswith(birth):
            continue
        with suppress(FileNotFoundError):
            if os.stat(file).st_uid == os.geteuid():
                os.unlink(file)


def prune_queues(prefix: str = "") -> list[str]:
    """Remove the stale queues of this user whose names begin so; their names."""
    removed = []
    for info in list_queues():
        if info.state == "stale" and info.name.startswith(prefix):
            try:
                remove_queue(info.name)
            except (QueueExists, QueueNotFound, ForeignSegment):
                continue  # another process has removed it
            removed.append(info.name)
    return removed


def _files_of(name: str) -> list[str]:
    """The queue's own segment, then those of its messages."""
    return [f"{_DIRECTORY}/{_PREFIX}{name}", *_message_files(name)]


def _message_files(name: str) -> list[str]:
    return _files_beginning_with(f"{_PREFIX}{name}.")


def _files_beginning_with(prefix: str) -> list[str]:
    try:
        names = os.listdir(_DIRECTORY)
    except FileNotFoundError:
        return []
    return [f"{_DIRECTORY}/{name}" for name in names if name.startswith(prefix)]
