"""A hash of keys that is the same in every process, Python version and hash seed."""

from __future__ import annotations

from decimal import Decimal
from numbers import Number
from typing import Any
from zlib import crc32

from sageruntime.errors import UnstableKey

_HASH_MASK = (1 << 64) - 1


def stable_hash(key: Any) -> int:
    """A number from 0 to 2**32 - 1; equal keys have equal hashes (``1 == 1.0 == True``).

    Numbers are those of the standard library and of numpy.

    Raises:
        UnstableKey: the key is not ``None``, a number, ``str``, ``bytes`` or a tuple of those.
    """
    if isinstance(key, str):
        return crc32(str.encode(key, "utf-8", "surrogatepass"))
    if isinstance(key, bytes):
        return crc32(key)
    if isinstance(key, Number) and not _is_nan(key):
        # Python defines the hash of numbers by value, without a seed, equal across their types.
        return crc32((hash(key) & _HASH_MASK).to_bytes(8, "little"))
    if key is None:
        return 0
    if isinstance(key, tuple):
        return crc32(b"".join(stable_hash(part).to_bytes(4, "little") for part in key))
    raise UnstableKey(
        f"key {key!r} of type {type(key).__qualname__} has no stable hash; expected None, a number "
        "other than NaN, str, bytes or a tuple of those. Return one of them from key_by, such as "
        "str(key)"
    )


def instance_for(key: Any, parallelism: int) -> int:
    """Which of a stage's instances the packets of a key go to; UnstableKey as of a hash."""
    return stable_hash(key) % parallelism


def _is_nan(number: Number) -> bool:
    # a signalling NaN cannot even be compared
    return number.is_nan() if isinstance(number, Decimal) else bool(number != number)
