"""FolderCheckpointStore: checkpoints as files of a folder."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import msgspec

from sagequeue.closing import Closing
from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint
from sageruntime.recovery.damage import DamagedCheckpoint, newest_intact

_CHECKSUM = struct.Struct(">I")
_NUMBERED = re.compile(r"\d{12}\.checkpoint")
_LEFT_OVER = re.compile(r"\d{12}\.(unfinished|damaged)")


class FolderCheckpointStore(Closing):
    """Keeps each checkpoint in a file of a folder.

    ``folder/job/number.checkpoint`` is a CRC-32 and a checkpoint in MessagePack. A file is
    written under another name, synchronised and renamed, so a file with a number is complete. If
    it was damaged later, ``latest`` falls back to the one before, and the next ``save`` renames the
    damaged file to ``number.damaged``.

    Args:
        folder: where the files are; made when it is missing.
        keep: how many checkpoints of a job are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self._damaged: dict[str, list[Path]] = {}

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        folder = self.folder / job
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for damaged in self._damaged.pop(job, ()):  # or it would count as one that is kept
                damaged.rename(damaged.with_suffix(".damaged"))
            file = folder / f"{checkpoint.number:012}.checkpoint"
            unfinished = file.with_suffix(".unfinished")
            with unfinished.open("wb") as stream:
                data = _encode(checkpoint)
                stream.write(_CHECKSUM.pack(zlib.crc32(data)))
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.rename(file)
            _synchronise(folder)
            for old in self._files(job)[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise self._error(folder, error) from error

    def latest(self, job: str) -> Checkpoint | None:
        try:
            checkpoint, self._damaged[job] = newest_intact(job, reversed(self._files(job)), _read)
        except OSError as error:
            raise self._error(self.folder / job, error) from error
        return checkpoint

    def clear(self, job: str) -> None:
        try:
            for file in [*self._files(job), *self._files(job, _LEFT_OVER)]:
                file.unlink()
        except OSError as error:
            raise self._error(self.folder / job, error) from error

    def close(self) -> None:
        """Nothing is held open."""

    def _files(self, job: str, names: re.Pattern[str] = _NUMBERED) -> list[Path]:
        """The checkpoints of a job, the latest last."""
        folder = self.folder / job
        if not folder.is_dir():
            return []
        return sorted(file for file in folder.iterdir() if names.fullmatch(file.name))

    @staticmethod
    def _error(path: Path, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint store {path} cannot be used: {error}; it must be a folder of ours "
            "that can be written"
        )


def _encode(checkpoint: Checkpoint) -> bytes:
    stored = msgspec.to_builtins(checkpoint, builtin_types=(bytes,))
    stored["over"] = stored.pop("is_final")  # its name in the file
    return msgspec.msgpack.encode(stored)


def _read(file: Path) -> Checkpoint:
    with file.open("rb") as stream:
        checksum, data = stream.read(_CHECKSUM.size), stream.read()
    if checksum != _CHECKSUM.pack(zlib.crc32(data)):
        raise DamagedCheckpoint(f"{file} is damaged: its checksum is not that of its content")
    stored = msgspec.msgpack.decode(data)
    is_final = stored.pop("over")
    return Checkpoint(**stored, is_final=is_final)


def _synchronise(folder: Path) -> None:
    """Make a rename in the folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
