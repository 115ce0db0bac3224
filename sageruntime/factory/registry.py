"""Operators by name: built-in ones by their own, all others by import path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import cloudpickle

from sageruntime.errors import OperatorNotFound
from sageruntime.operator import CollectSink, CountByKey

_registered: dict[str, Any] = {"collect": CollectSink, "count_by_key": CountByKey}


def register_operator(name: str, operator: Any) -> None:
    """Make a function or operator class known to job files as ``name``."""
    _registered[name] = operator


def find_operator(name: str, folder: Path | None = None) -> Any:
    """What ``name`` stands for: a registered name, or an import path ``module:attribute``.

    Modules are looked for in ``folder``, too. Those found there travel to other processes by
    value: their hosts need no copy.

    Raises:
        OperatorNotFound: it stands for nothing; the message says what is known.
    """
    if name in _registered:
        return _registered[name]
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise OperatorNotFound(
            f"no operator is registered as {name!r}; known: {', '.join(sorted(_registered))}. "
            "An operator of your own is named module:attribute"
        )
    try:
        found: Any = _import(module_name, folder)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise OperatorNotFound(f"{name!r} leads nowhere: {error}") from error
    return found


def _import(module_name: str, folder: Path | None) -> Any:
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
