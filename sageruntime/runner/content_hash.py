"""content_hash: a hash of an object's content that is the same in every process."""

from __future__ import annotations

from typing import Any, ClassVar

from joblib.hashing import NumpyHasher  # type: ignore[import-untyped]


class _Hasher(NumpyHasher):  # type: ignore[misc]
    """joblib's, which sorts sets and dicts, for frozen sets as well."""

    dispatch: ClassVar[dict[type, Any]] = {
        **NumpyHasher.dispatch,
        frozenset: NumpyHasher.dispatch[set],
    }


def content_hash(thing: Any) -> str:
    """The hash. A pickle would not do: the order of a set differs between processes.

    Raises:
        Exception: what pickling the object raises.
    """
    return str(_Hasher("md5").hash(thing))
