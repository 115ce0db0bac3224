"""Sections of the configuration that are made of declared options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Field, create_model
from pydantic_core import PydanticCustomError

from sageruntime.config import units
from sageruntime.config.section import Section
from sageruntime.core.options import Delay, Option, Options, Seconds, list_options
from sageruntime.errors import InvalidOption

_UNITS = {Seconds: units.Seconds, Delay: units.Delay}


class OptionsSection(Section):
    """A section with declared options."""

    if TYPE_CHECKING:
        # The options are fields that are made at run time, so type checkers cannot know them.
        def __getattr__(self, name: str) -> Any: ...


S = TypeVar("S", bound=OptionsSection)


def with_options(
    options: Iterable[Option], instead: Iterable[Option] = ()
) -> Callable[[type[S]], type[S]]:
    """Add fields for declared options to a section.

    Args:
        options: those that stand in this section.
        instead: those that stand elsewhere for the whole job, and may be given here for a part.
    """
    fields = {
        **{each.name: (_convert_type(each.type), _field(each)) for each in options},
        **{each.name: (_convert_type(each.type) | None, _field_instead(each)) for each in instead},
    }

    def extended(section: type[S]) -> type[S]:
        made: type[S] = create_model(  # type: ignore[call-overload]
            section.__name__,
            __base__=section,
            __doc__=section.__doc__,
            __module__=section.__module__,
            **fields,
        )
        return made

    return extended


def given_options(
    section: OptionsSection, instead_of: Options, at: tuple[int | str, ...] = ()
) -> dict[str, Any]:
    """What a section gives instead of these options, by name.

    A section within it, such as ``retry``, gives some values of a policy; the others stay.

    Args:
        section: the section.
        instead_of: the options that hold where it gives nothing.
        at: where the section is, in what is being validated.

    Raises:
        PydanticCustomError: the values of a policy do not go together.
    """
    given = {}
    for option in list_options(type(instead_of)):
        if option.name not in section.model_fields_set:
            continue
        value = getattr(section, option.name)
        if isinstance(value, Section):
            try:
                changes = value.model_dump(exclude_unset=True)
                value = replace(getattr(instead_of, option.name), **changes)
            except InvalidOption as error:
                raise PydanticCustomError(
                    "policy", "{said}", {"said": str(error), "at": (*at, option.name)}
                ) from error
        if value is not None or _takes_none(option):
            given[option.name] = value
    return given


def _field(option: Option) -> Any:
    default = option.default
    if isinstance(default, Options):
        default = _make_section(type(default))()
    elif isinstance(default, Enum):
        default = default.value
    return Field(default, description=option.meaning)


def _field_instead(option: Option) -> Any:
    path = f"`{option.section}.{option.name}`"
    if isinstance(option.default, Options):
        meaning = f"Instead of those keys of {path} that are given here."
    elif _takes_none(option):
        meaning = f"Instead of {path}; `null` is no limit."
    else:
        meaning = f"Instead of {path}."
    return Field(None, description=meaning)


def _takes_none(option: Option) -> bool:
    return NoneType in get_args(option.type)


def _convert_type(kind: Any) -> Any:
    """What a field of a section takes, for what an option takes."""
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(map(_convert_type, get_args(kind)))]  # noqa: UP007
    if kind in _UNITS:
        return _UNITS[kind]
    if get_origin(kind) is Annotated:
        number, bounds = get_args(kind)
        return Annotated[number, Field(ge=bounds.least)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Literal[tuple(member.value for member in kind)]
    if isinstance(kind, type) and issubclass(kind, Options):
        return _make_section(kind)
    return kind


_SECTIONS: dict[type[Options], type[OptionsSection]] = {}


def _make_section(options: type[Options]) -> type[OptionsSection]:
    """The section for a class of options that is an option itself, such as a policy."""
    if options not in _SECTIONS:

        class Made(OptionsSection):
            __doc__ = (options.__doc__ or "").partition("\n\n")[0]

        Made.__name__ = options.__name__
        _SECTIONS[options] = with_options(list_options(options))(Made)
    return _SECTIONS[options]
