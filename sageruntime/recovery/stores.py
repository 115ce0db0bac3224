"""open_store: the store that checkpoint options ask for."""

from __future__ import annotations

from pathlib import Path

from sageruntime.recovery.checkpoint import CheckpointOptions, CheckpointStore


def open_store(options: CheckpointOptions) -> CheckpointStore:
    """The store, opened.

    Raises:
        CheckpointError: it cannot be.
    """
    store = options.store
    if not isinstance(store, (str, Path)):
        return store
    kind, colon, path = str(store).partition(":")
    if colon and kind == "folder":
        from sageruntime.recovery.folder_store import FolderCheckpointStore

        return FolderCheckpointStore(path, options.keep)
    from sageruntime.recovery.sqlite_store import SqliteCheckpointStore

    return SqliteCheckpointStore(path if colon and kind == "sqlite" else store, options.keep)
