"""The examples of docs/extending.md and docs/services.md print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

EXAMPLE = re.compile(r"```python\n((?:(?!```).)*)```\n\n((?:    [^\n]*\n)+)", re.DOTALL)


def examples() -> list[object]:
    found = []
    for name in ("extending.md", "services.md"):
        for number, match in enumerate(EXAMPLE.finditer((DOCS / name).read_text("utf-8"))):
            found.append(pytest.param(*match.groups(), id=f"{name}-{number}"))
    assert len(found) == 5
    return found


@pytest.mark.parametrize(("code", "output"), examples())
def test_an_example(code: str, output: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    expected = [line.strip() for line in output.splitlines()]
    # states are printed by several threads, in any order
    printed = [line for line in done.stdout.splitlines() if line and " is " not in line]
    assert printed == expected
