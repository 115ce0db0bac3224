"""create_plugins: the plugins of a task, in the process it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sageruntime.core.import_path import import_attribute
from sageruntime.core.registry import installed_entry_points
from sageruntime.errors import PluginError

if TYPE_CHECKING:
    from sageruntime.plugins.plugins import Plugins

_GROUP = "sageruntime.plugins"
_LEFT_OUT = "no:"


def create_plugins(given: Sequence[Any], logger: logging.Logger) -> Plugins | None:
    """The plugins that are given, then those of installed packages; None if there are none.

    Args:
        given: plugins, classes of plugins, import paths ``module:attribute``; and ``no:NAME``
            leaves out the installed plugin of that name.
        logger: where errors of monitoring hooks go.

    Raises:
        PluginError: one cannot be imported, or is not a plugin.
    """
    plugins = [*_given(given), *_installed(given)]
    if not plugins:
        return None
    from sageruntime.plugins.plugins import Plugins  # imported late: pluggy takes a while to import

    return Plugins(plugins, logger)


def find_plugin(name: str, folder: Path | None = None) -> Any:
    """The plugin at an import path; ``no:NAME`` is returned as it is.

    Args:
        name: the import path.
        folder: where to look for modules, too; those found there travel by value.

    Raises:
        PluginError: it cannot be imported.
    """
    if name.startswith(_LEFT_OUT):
        return name
    try:
        return import_attribute(name, folder)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"plugin {name!r} leads nowhere: {error}") from error


def _given(given: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for number, plugin in enumerate(given):
        if isinstance(plugin, str):
            if not plugin.startswith(_LEFT_OUT):
                yield plugin, find_plugin(plugin)
        else:
            name = getattr(plugin, "__qualname__", type(plugin).__qualname__)
            yield f"{name} (number {number} of those given)", plugin


def _installed(given: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for entry_point in installed_entry_points(_GROUP):
        if f"{_LEFT_OUT}{entry_point.name}" in given:
            continue
        try:
            plugin = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"plugin {entry_point.name} is installed ({entry_point.value}) and cannot be "
                f"loaded: {error}. Leave it out by plugins=['{_LEFT_OUT}{entry_point.name}']"
            ) from error
        if not any(plugin is one for one in given):
            yield entry_point.name, plugin
