"""Codecs by name: how items become bytes where the default (typed values and pickle) will not do.

``"pickle"`` handles everything and, like every pickle, runs code when it is loaded: use it among
processes that trust each other. ``"cloudpickle"`` does, too, and carries the code of functions and
classes that the other end cannot import, such as those of a script. ``"raw"`` carries bytes only
and ``"msgpack"`` plain data; both are safe against a hostile other end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagequeue.errors import InvalidOption

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

BUILT_IN = ("pickle", "cloudpickle", "raw", "msgpack")

_registered: dict[str, tuple[Encode, Decode]] = {}


def register_codec(name: str, encode: Encode, decode: Decode) -> None:
    """Make a codec available as ``SageQueue(codec=name)``.

    Register it in every process that uses such a queue, before the queue is opened: only the
    name travels. ``encode`` returns ``bytes``; ``decode`` gets them back.
    """
    if name in BUILT_IN:
        raise InvalidOption(f"codec name {name!r} is built in; choose another name")
    if not name.isascii() or not 0 < len(name) < 32:
        raise InvalidOption(f"codec name {name!r} must be 1 to 31 ASCII characters")
    _registered[name] = (encode, decode)


def custom_codec(name: str) -> tuple[Encode, Decode]:
    """The functions of a codec that is not built into the extension.

    Raises:
        InvalidOption: no codec has that name, or what it needs is not installed.
    """
    if name == "msgpack":
        try:
            import msgspec
        except ImportError as error:
            raise InvalidOption(
                "codec 'msgpack' needs the msgspec package: pip install msgspec"
            ) from error
        return msgspec.msgpack.encode, msgspec.msgpack.decode
    try:
        return _registered[name]
    except KeyError:
        known = ", ".join(sorted({*BUILT_IN, *_registered}))
        raise InvalidOption(
            f"no codec {name!r} in this process; known: {known}. "
            "Call sagequeue.register_codec() before the queue is opened"
        ) from None
