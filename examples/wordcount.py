"""The word count job: read the files of a folder, split them into words, count, show the top."""

from __future__ import annotations

import heapq
import re
import sysconfig
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from sageruntime import Packet, SinkOperator, SourceOperator

TEXT_SUFFIXES = frozenset(
    [
        ".c",
        ".cfg",
        ".h",
        ".html",
        ".ini",
        ".json",
        ".md",
        ".pxd",
        ".py",
        ".pyi",
        ".pyx",
        ".rst",
        ".sh",
        ".toml",
        ".txt",
        ".xml",
        ".yaml",
        ".yml",
    ]
)
WORD = re.compile(r"[^\W\d_]\w*")


def text_files(folder: str | None = None) -> list[Path]:
    """The text and source files under a folder; by default the Python standard library's."""
    root = Path(folder or sysconfig.get_path("stdlib"))
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix in TEXT_SUFFIXES and "site-packages" not in path.parts and path.is_file()
    )


class ReadTexts(SourceOperator):
    """Yields the text of each file; of several instances, each reads its share."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def open(self) -> None:
        self.files = text_files(self.folder)[self.ctx.index :: self.ctx.parallelism]

    def total(self) -> int:
        return len(self.files)

    def read(self) -> Iterator[str]:
        for path in self.files:
            yield path.read_text(encoding="utf-8", errors="replace")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())


def itself(word: str) -> str:
    """A word is its own key."""
    return word


class TopWords(SinkOperator):
    """Keeps the ``top`` most frequent words: a list of (word, count), most frequent first.

    Equally frequent words come in alphabetical order; ``top`` 0 keeps all.
    """

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self.counts: list[tuple[str, int]] = []

    def process(self, packet: Packet) -> None:
        self.counts.append(packet.payload)

    def result(self) -> list[Any]:
        by_word = sorted(self.counts, key=itemgetter(0))
        if self.top == 0:
            return sorted(by_word, key=itemgetter(1), reverse=True)
        return heapq.nlargest(self.top, by_word, key=itemgetter(1))
