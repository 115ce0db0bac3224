"""The main job: its result equals a plain count, wherever it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOB = ROOT / "examples" / "wordcount.yaml"

sys.path.insert(0, str(ROOT / "examples"))

from wordcount import text_files, words  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the standard library: the sources of the module packages with most text."""
    folder = tmp_path_factory.mktemp("texts")
    sources = [path for path in text_files() if path.parent.name in ("asyncio", "json", "email")]
    assert len(sources) > 40
    for path in sources:
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (folder / "not-text.bin").write_bytes(b"ignored")
    (folder / "latin.txt").write_bytes("größe naïve größe".encode("latin-1"))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, object]]:
    counts: Counter[str] = Counter()
    for path in text_files(str(folder)):
        counts.update(words(path.read_text(encoding="utf-8", errors="replace")))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"word": word, "count": count} for word, count in ranked]


@pytest.mark.parametrize("on", ["thread", "process", "ray", None])
def test_the_count_equals_a_plain_one(
    folder: Path, expected: list[dict[str, object]], tmp_path: Path, on: str | None
) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", "sageruntime", "run", str(JOB), "--output", str(output)]
    command += ["--with", f"read.folder={folder}", "--with", "top.top=0"]
    if on is not None:
        command += ["--on", on]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text()) == expected
    for shown in ("wordcount", "packets/s", "p50", "p99", "errors", "count"):
        assert shown in done.stdout
