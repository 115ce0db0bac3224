"""content_hash: a hash of an object's content that is the same in every process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any, ClassVar

from joblib.hashing import NumpyHasher  # type: ignore[import-untyped]


class _Hasher(NumpyHasher):  # type: ignore[misc]
    """joblib's, but classes go by their names: the module of one that travelled by value need not
    be here. Sets and dicts are sorted by such hashes of what is in them."""

    def save_set(self, items: Collection[Any]) -> None:
        self.save(sorted(map(content_hash, items)))

    def save_dict(self, items: Mapping[Any, Any]) -> None:
        self.save(sorted((content_hash(key), content_hash(value)) for key, value in items.items()))

    def save_global(self, thing: Any, name: str | None = None, **_: Any) -> None:
        self.save(f"{thing.__module__}.{name or thing.__qualname__}")

    dispatch: ClassVar[dict[type, Any]] = {
        **NumpyHasher.dispatch,
        set: save_set,
        frozenset: save_set,
        dict: save_dict,
        type: save_global,
        FunctionType: save_global,
        BuiltinFunctionType: save_global,
    }


def content_hash(thing: Any) -> str:
    """The hash. A pickle would not do: the order of a set differs between processes.

    Raises:
        Exception: what pickling the object raises.
    """
    return str(_Hasher("md5").hash(thing))
