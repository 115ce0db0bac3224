"""Import paths: ``module:attribute``, for what has no name of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle


def import_attribute(path: str, folder: Path | None = None) -> Any:
    """What ``module:attribute`` or ``module:class.attribute`` leads to.

    Modules are looked for in ``folder``, too. Those found there travel to other processes by
    value: their hosts need no copy.

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
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    finally:
        sys.path.remove(str(folder))
    origin = getattr(module, "__file__", None)
    if origin is not None and Path(origin).resolve().is_relative_to(folder.resolve()):
        cloudpickle.register_pickle_by_value(module)
    return module
