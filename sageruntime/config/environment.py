"""Settings from environment variables: ``SAGERT_PERFORMANCE__BATCH_SIZE=50``."""

from __future__ import annotations

import os
from typing import Any

import yaml
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from sageruntime.config.job_yaml import JobLoader
from sageruntime.config.settings import Settings
from sageruntime.errors import ConfigError

_PREFIX = "SAGERT_"
_DELIMITER = "__"


class _EnvironmentSettings(Settings, BaseSettings):
    """The settings, for pydantic-settings to look for."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER, strict=True
    )


class _Source(EnvSettingsSource):
    """Reads numbers and text as such, lists and mappings as YAML, of which JSON is a part."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Parse as YAML. Text that is not YAML stays text, and validation rejects it."""
        try:
            return yaml.load(value, Loader=JobLoader)
        except yaml.YAMLError:
            return value


def from_environment() -> dict[str, Any]:
    """The settings that the environment gives, as nested as in a file; not validated.

    Raises:
        ConfigError: a variable names a section that does not exist.
    """
    unknown = [
        f"{name}: there is no section {_sections(name)[0]!r}; expected one of "
        f"{', '.join(Settings.model_fields)}"
        for name in sorted(os.environ)
        if name.startswith(_PREFIX)
        and len(_sections(name)) > 1
        and _sections(name)[0] not in Settings.model_fields
    ]
    if unknown:
        raise ConfigError(unknown)
    return _Source(_EnvironmentSettings)()


def list_variables(location: tuple[int | str, ...]) -> list[str]:
    """The variable that gives the value at ``location``, or those that give parts of it."""
    names = {name.upper(): name for name in os.environ}
    for length in range(len(location), 0, -1):
        if (name := variable_name(location[:length])) in names:
            return [names[name]]
    within = variable_name(location) + _DELIMITER
    return [names[name] for name in sorted(names) if name.startswith(within)]


def variable_name(location: tuple[int | str, ...]) -> str:
    """How a setting is called in the environment."""
    return _PREFIX + _DELIMITER.join(map(str, location)).upper()


def _sections(name: str) -> list[str]:
    return name.removeprefix(_PREFIX).lower().split(_DELIMITER)
