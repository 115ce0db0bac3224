"""Options: dataclasses whose fields declare their type, meaning and place in job files.

An option is declared once, as a field made with :func:`option`. The check of its value, its key in
job files and its row in the documentation are derived from that declaration.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from sageruntime.errors import InvalidOption

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` on, or only those above it."""

    least: int
    exclusive: bool = False


Count = Annotated[int, Range(1)]
"""How many of something, at least one."""

CountFromTwo = Annotated[int, Range(2)]
"""How many of something, at least two."""

CountFromZero = Annotated[int, Range(0)]
"""How many of something, which may be 0."""

Seconds = Annotated[float, Range(0, exclusive=True)]
"""A time above 0."""

Delay = Annotated[float, Range(0)]
"""A time that may be 0."""


@dataclass(frozen=True)
class Option:
    """A declared option.

    Attributes:
        name: of the field.
        type: what it takes: one of the types above, ``bool``, an enumeration, a ``Literal``, a
            class of options, or a union of them.
        default: its value where nothing is given.
        meaning: one line of Markdown.
        section: the section of a job file it stands in; empty for that of its whole class.
        per_stage: whether a stage of a job file may have its own.
    """

    name: str
    type: Any
    default: Any
    meaning: str
    section: str
    per_stage: bool


def option(default: T, meaning: str, *, section: str = "", per_stage: bool = False) -> T:
    """A field of an :class:`Options` class; see :class:`Option`."""
    metadata = {"meaning": meaning, "section": section, "per_stage": per_stage}
    return field(default=default, metadata=metadata)


class Options:
    """Base of classes of options, which are frozen dataclasses that check their values.

    A subclass may name a ``prefix``, which stands before the names of its options in errors. Its
    docstring is extended by a list of them.

    Raises:
        InvalidOption: a value is out of range.
    """

    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, *, prefix: str = "") -> None:
        cls._prefix = prefix
        declared = [
            f"        {name}: {value.metadata['meaning']}"
            for name, value in vars(cls).items()
            if isinstance(value, Field) and value.metadata
        ]
        if declared:
            cls.__doc__ = "\n".join([f"{(cls.__doc__ or '').rstrip()}\n\n    Options:", *declared])

    def __post_init__(self) -> None:
        for declared in list_options(type(self)):
            value = getattr(self, declared.name)
            if not _fits(value, declared.type):
                raise InvalidOption(
                    f"{self._prefix}{declared.name}={value!r} is not allowed; expected "
                    f"{_expected(declared.type)}"
                )


_options: dict[type[Options], tuple[Option, ...]] = {}


def list_options(options: type[Options]) -> tuple[Option, ...]:
    """The options of a class, in the order in which they are declared."""
    if options not in _options:  # types that are written as text take long to make out
        types = get_type_hints(options, include_extras=True)
        _options[options] = tuple(
            Option(each.name, types[each.name], each.default, **each.metadata)
            for each in fields(options)  # type: ignore[arg-type]  # they are dataclasses
            if each.metadata
        )
    return _options[options]


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Annotated:
        number, bounds = parts
        if isinstance(value, bool) or not isinstance(value, (int, number)):
            return False
        return bool(value > bounds.least if bounds.exclusive else value >= bounds.least)
    return isinstance(value, kind)


def _expected(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_expected(part) for part in parts)
    if origin is Literal:
        return f"{', '.join(parts[:-1])} or {parts[-1]}"
    if origin is Annotated:
        number, bounds = parts
        what = "an int" if number is int else "seconds"
        return f"{what} {'above' if bounds.exclusive else 'from'} {bounds.least}"
    if kind is bool:
        return "True or False"
    return "None" if kind is NoneType else f"a {kind.__name__}"
