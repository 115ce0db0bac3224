"""The package as a whole: what it exports, and which modules know of which."""

from __future__ import annotations

import inspect
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

import sageruntime
from sageruntime import errors

ERRORS = [
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and not name.startswith("_")
]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_exported(name: str) -> None:
    assert getattr(sageruntime, name) is getattr(errors, name)
    assert name in sageruntime.__all__


def test_what_is_exported_is_there() -> None:
    assert sorted(sageruntime.__all__) == sorted(set(sageruntime.__all__))
    for name in sageruntime.__all__:
        assert hasattr(sageruntime, name)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports in functions and those for types only count, too."""
    graph = grimp.build_graph("sageruntime", cache_dir=None, exclude_type_checking_imports=False)
    modules = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
