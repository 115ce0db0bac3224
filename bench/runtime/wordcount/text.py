"""The text: lines of the Python standard library's modules."""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from functools import cache
from pathlib import Path

_LINES = 120_000
_WORD = re.compile(r"[^\W\d_]\w*")


def words(line: str) -> list[str]:
    """The words of a line, in lower case."""
    return _WORD.findall(line.lower())


@cache
def lines() -> list[str]:
    """They are the same in every process, which reads them for itself."""
    text: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_text(encoding="utf-8").splitlines()
    return text[:_LINES]


@cache
def answer() -> dict[str, int]:
    """How often each word is there."""
    return dict(Counter(word for line in lines() for word in words(line)))


@cache
def word_total() -> int:
    """How many words there are."""
    return sum(answer().values())
