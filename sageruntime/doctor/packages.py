"""What has to be built and installed: the extension, the packages it was made for, Ray."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sageruntime.doctor.check import Check, failed, ok, warning

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTION = "sagequeue"
_EXTENSIONS = ("sagequeue._shared", "sagequeue._object")


def extension() -> Check:
    """The compiled queues."""
    name = "extension"
    try:
        files = [str(import_module(module).__file__) for module in _EXTENSIONS]
    except ImportError as error:
        return failed(
            name,
            f"cannot be imported: {error}",
            "build it for this Python: pip install --force-reinstall --no-deps sagequeue, or "
            "pip install -e . in a checkout; it needs a C11 compiler and Python's headers",
        )
    return ok(name, files[0])


def packages() -> Check:
    """The Python and the packages that this version was made for."""
    name = "packages"
    from importlib.metadata import PackageNotFoundError, metadata, version

    from packaging.specifiers import SpecifierSet

    try:
        python = metadata(_DISTRIBUTION)["Requires-Python"]
    except PackageNotFoundError:
        return warning(
            name, f"{_DISTRIBUTION} is not installed, so nothing is known", "pip install ."
        )
    wrong = []
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        wrong.append(f"Python {platform.python_version()}, and {python} is needed")
    requirements = _requirements("")
    for requirement in requirements:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                wrong.append(f"{requirement.name} {found}, and {requirement.specifier} is needed")
    if wrong:
        return failed(name, "; ".join(wrong), f"pip install --upgrade {_DISTRIBUTION}")
    shown = ("numpy", "cloudpickle")
    return ok(name, ", ".join(f"{package} {version(package)}" for package in shown))


def ray_installed() -> Check:
    """Ray, without importing it, which takes a second."""
    if find_spec("ray") is None:
        return failed("ray", "is not installed", f"pip install '{_DISTRIBUTION}[ray]'")
    return ok("ray", "is installed")


def ray() -> Check:
    """Ray, which only stages on Ray need."""
    from importlib.metadata import version

    there = ray_installed()
    if there.remedy:
        return warning("ray", f"{there.found}; stages on Ray cannot run", there.remedy)
    try:
        import_module("ray")
    except Exception as error:  # whatever its initialisation raises
        return failed("ray", f"cannot be imported: {error}", f"pip install '{_DISTRIBUTION}[ray]'")
    found = version("ray")
    for requirement in _requirements("ray"):
        if requirement.name == "ray" and not requirement.specifier.contains(found):
            return failed(
                "ray",
                f"{found}, and {requirement.specifier} is needed",
                f"pip install '{_DISTRIBUTION}[ray]'",
            )
    return ok("ray", found)


def _requirements(extra: str) -> list[Requirement]:
    """What an extra, or without one the package itself, needs here."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        texts = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    found = map(Requirement, texts)
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
