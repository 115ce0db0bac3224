"""FolderCheckpointStore: checkpoints as files of a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from sagequeue.closing import Closing
from sageruntime.errors import CheckpointError
from sageruntime.recovery.checkpoint import Checkpoint

_NUMBERED = re.compile(r"(\d{12})\.checkpoint")


class FolderCheckpointStore(Closing):
    """See :class:`~sageruntime.recovery.CheckpointStore`.

    ``folder/job/number.checkpoint`` is a checkpoint in MessagePack. A file is written under
    another name, synchronised and renamed: one that bears a number is whole.

    Args:
        folder: where the files are; made when it is missing.
        keep: how many checkpoints of a job are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, job: str, checkpoint: Checkpoint) -> None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        folder = self.folder / job
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{checkpoint.number:012}.checkpoint"
            unfinished = file.with_suffix(".unfinished")
            with unfinished.open("wb") as stream:
                stream.write(msgspec.msgpack.encode(checkpoint))
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.rename(file)
            _synchronise(folder)
            for old in self._files(job)[: -self.keep]:
                old.unlink()
        except OSError as error:
            raise self._error(folder, error) from error

    def latest(self, job: str) -> Checkpoint | None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        files = self._files(job)
        if not files:
            return None
        try:
            return msgspec.msgpack.decode(files[-1].read_bytes(), type=Checkpoint)
        except (OSError, msgspec.DecodeError) as error:
            raise self._error(files[-1], error) from error

    def clear(self, job: str) -> None:
        """See :class:`~sageruntime.recovery.CheckpointStore`."""
        try:
            for file in self._files(job):
                file.unlink()
        except OSError as error:
            raise self._error(self.folder / job, error) from error

    def close(self) -> None:
        """Nothing is held open."""

    def _files(self, job: str) -> list[Path]:
        """The checkpoints of a job, the latest last."""
        folder = self.folder / job
        if not folder.is_dir():
            return []
        return sorted(file for file in folder.iterdir() if _NUMBERED.fullmatch(file.name))

    @staticmethod
    def _error(path: Path, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint store {path} cannot be used: {error}; it must be a folder of ours "
            "that can be written"
        )


def _synchronise(folder: Path) -> None:
    """Make a rename in the folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
