"""Values with a unit: ``30s``, ``500ms``, ``1GB``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field, TypeAdapter, WithJsonSchema

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = r"(\d+(?:\.\d+)?) ?(ms|s|m|h)"
_SIZE = r"\d+(\.\d+)? ?([kKmMgGtTpP]i?)?[bB]?"

_BYTE_SIZE = TypeAdapter(ByteSize)


def _seconds(value: Any) -> Any:
    """``"30s"``, ``"500ms"``, ``"2m"``, ``"1h"`` or a number of seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(_TIME, value)
    if match is None:
        raise ValueError(f"{value!r} is no time; expected a number with ms, s, m or h, such as 30s")
    return float(match[1]) * _SECONDS[match[2]]


def _bytes(value: Any) -> Any:
    """``"1GB"``, ``"512MiB"`` or a number of bytes."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(_SIZE, value) is None:
        raise ValueError(
            f"{value!r} is no size; expected a number with kB, MB, GB, KiB, MiB or GiB, such as 1GB"
        )
    return int(_BYTE_SIZE.validate_python(value))


def _schema(unit: str, pattern: str, number: dict[str, Any]) -> WithJsonSchema:
    text = {"type": "string", "pattern": f"^{pattern}$"}
    return WithJsonSchema({"anyOf": [number, text], "unit": unit})


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(gt=0),
    _schema("size", _SIZE, {"type": "integer", "exclusiveMinimum": 0}),
]
"""A size above 0: an int of bytes, or text with a unit."""

Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, allow_inf_nan=False),
    _schema("time", _TIME, {"type": "number", "exclusiveMinimum": 0}),
]
"""A time above 0: a number of seconds, or text with a unit."""

Delay = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, allow_inf_nan=False),
    _schema("time", _TIME, {"type": "number", "minimum": 0}),
]
"""A time from 0."""
