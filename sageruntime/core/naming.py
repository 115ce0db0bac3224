"""Error messages for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``known: collect, count; did you mean 'count'?``; the question only if a name is near."""
    names = list(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return f"known: {', '.join(names) or 'none'}{question}"
