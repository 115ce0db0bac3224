"""Registry: finds operators and task types by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sageruntime.core.import_path import import_attribute
from sageruntime.core.naming import did_you_mean
from sageruntime.errors import RuntimeTaskError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Registry:
    """Finds one kind of thing by name. Nothing is imported before it is asked for.

    A name means, in this order: what this process has registered, what is built in, what an
    installed package has as an entry point of that name.

    Args:
        kind: what messages call it, such as ``"operator"``.
        group: the entry points' group.
        built_in: import paths by name.
        not_found: the error for a name that means nothing.
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, str], not_found: type[RuntimeTaskError]
    ) -> None:
        self.kind = kind
        self.group = group
        self._built_in = dict(built_in)
        self._not_found = not_found
        self._registered: dict[str, Any] = {}

    def register(self, name: str, thing: Any) -> None:
        """Let ``name`` mean ``thing`` in this process."""
        self._registered[name] = thing

    def names(self) -> list[str]:
        """Every name that means something: built-in ones first."""
        installed = (entry_point.name for entry_point in installed_entry_points(self.group))
        return list(dict.fromkeys([*self._built_in, *self._registered, *installed]))

    def find(self, name: str, folder: Path | None = None) -> Any:
        """What ``name`` means: a name of :meth:`names`, or an import path ``module:attribute``.

        Modules of import paths are looked for in ``folder``, too; see
        :func:`~sageruntime.core.import_path.import_attribute`.

        Raises:
            RuntimeTaskError: the registry's error type; nothing has that name, or it cannot be
                imported.
        """
        if name in self._registered:
            return self._registered[name]
        try:
            if name in self._built_in:
                return import_attribute(self._built_in[name])
            for entry_point in installed_entry_points(self.group):
                if entry_point.name == name:
                    return entry_point.load()
            if ":" in name:
                return import_attribute(name, folder)
        except (ImportError, AttributeError) as error:
            raise self._not_found(f"{self.kind} {name!r} leads nowhere: {error}") from error
        raise self._not_found(
            f"no {self.kind} is named {name!r}; one of your own is named module:attribute or by an "
            f"entry point of {self.group}; {did_you_mean(name, self.names())}"
        )


@cache
def installed_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """What the installed packages have in a group; looked up once in each process."""
    from importlib.metadata import entry_points  # late: it takes 20 ms, and few processes need it

    return tuple(entry_points(group=group))
