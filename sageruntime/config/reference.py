"""The JSON schema of job files, and the table of all options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sageruntime.config.job import JobConfig


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **JobConfig.model_json_schema(),
    }


def options_table() -> str:
    """Every option of a job file, as a Markdown table."""
    schema = JobConfig.model_json_schema()
    properties = schema["properties"]
    schema["properties"] = {"name": properties.pop("name"), **properties}
    schema["properties"]["stages"] = schema["properties"].pop("stages")
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for row in _rows(schema, schema["$defs"], "", {}):
        lines.append(f"| {' | '.join(row)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _rows(
    section: dict[str, Any], sections: dict[str, Any], prefix: str, seen: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """Name, kind of value, default and meaning of each option of a section.

    ``seen`` maps the sections listed before to their paths.
    """
    for key, option in section["properties"].items():
        path, inner = f"{prefix}{key}", option
        if option.get("type") == "array" and "$ref" in option["items"]:
            path, inner = f"{path}[]", option["items"]
        inner = next((part for part in inner.get("anyOf", ()) if "$ref" in part), inner)
        reference = inner.get("$ref", "").rpartition("/")[2]
        meaning = " ".join(option.get("description", "").split())
        if reference in seen:
            yield f"`{path}`", f"as `{seen[reference]}`", "", meaning
        elif reference:
            seen[reference] = path
            yield from _rows(sections[reference], sections, f"{path}.", seen)
        else:
            required = key in section.get("required", ())
            yield f"`{path}`", _kind(option), "required" if required else _default(option), meaning


def _kind(option: dict[str, Any]) -> str:
    """What values an option takes, in a few words."""
    if "unit" in option:
        return str(option["unit"])
    if "anyOf" in option:
        return " or ".join(_kind(part) for part in option["anyOf"] if part.get("type") != "null")
    if "enum" in option or "const" in option:
        return ", ".join(_literal(value) for value in option.get("enum", [option.get("const")]))
    kind = {"array": "list", "object": "mapping", "boolean": "`true`, `false`", "string": "text"}
    name = kind.get(option["type"], option["type"])
    return f"{name} from {option['minimum']}" if "minimum" in option else name


def _default(option: dict[str, Any]) -> str:
    value = option.get("default")
    if option.get("unit") == "time" and value is not None:
        return f"`{value:g}s`"
    return _literal(value)


def _literal(value: Any) -> str:
    """A value as it is written in YAML; nothing for what is empty."""
    if value in (None, [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
