"""Import paths: ``module:attribute``, for what has no name of its own."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

# Modules that were found in a folder; and who carries them by value, one at a time.
_of_folders: dict[str, ModuleType] = {}
_carrying = threading.RLock()


@contextmanager
def carried_by_value() -> Iterator[None]:
    """Within, what is of modules that were found in a folder is pickled with its code.

    That is for hosts that cannot import them. Where they can, a class is the same for all who
    pickle and unpickle its instances only if it goes by name.
    """
    with _carrying:
        by_value = cloudpickle.list_registry_pickle_by_value()
        modules = [module for name, module in _of_folders.items() if name not in by_value]
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)


def import_attribute(path: str, folder: Path | None = None) -> Any:
    """What ``module:attribute`` or ``module:class.attribute`` leads to.

    Modules are looked for in ``folder``, too, from now on, and by the processes that are started
    from here. Ray, whose nodes may not have it, gets those modules: see :func:`carried_by_value`.

    Raises:
        ImportError: there is no such module; or whatever the module itself raises.
        AttributeError: the module has no such attribute.
    """
    module_name, _, attributes = path.partition(":")
    found: Any = _import(module_name, folder)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _import(module_name: str, folder: Path | None) -> ModuleType:
    if folder is None:
        return importlib.import_module(module_name)
    place = folder.resolve()
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
    module = importlib.import_module(module_name)
    origin = getattr(module, "__file__", None)
    if origin is not None and Path(origin).resolve().is_relative_to(place):
        _of_folders[module.__name__] = module
    return module
