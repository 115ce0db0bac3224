"""Import paths: ``module:attribute``."""

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

# Modules that were found in a folder, and a lock around their registration with cloudpickle.
_folder_modules: dict[str, ModuleType] = {}
_registering = threading.RLock()


@contextmanager
def pickled_by_value() -> Iterator[None]:
    """Within this block, objects of modules found in a folder are pickled with their code.

    That is for hosts that cannot import these modules. Hosts that can must get them by name: a
    class pickled by value would be another class there.
    """
    with _registering:
        by_value = cloudpickle.list_registry_pickle_by_value()
        modules = [module for name, module in _folder_modules.items() if name not in by_value]
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
    from here. Ray, whose nodes may not have it, gets those modules: see :func:`pickled_by_value`.

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
        _folder_modules[module.__name__] = module
    return module
