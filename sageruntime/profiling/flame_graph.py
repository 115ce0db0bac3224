"""A flame graph as one HTML page that needs nothing else."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from html import escape
from importlib.resources import files

from sageruntime.profiling.stack_profile import Frame, StackProfile

# Of the whole: narrower frames cannot be seen, and would only make the page large.
_SMALLEST_SHARE = 0.0005


class _Node:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.children: defaultdict[Frame, _Node] = defaultdict(_Node)


def flame_graph(title: str, profile: StackProfile) -> str:
    """The page: callers above callees, each as wide as the time it took."""
    root = _Node()
    for stack, seconds in profile.seconds.items():
        node = root
        node.seconds += seconds
        for frame in stack:
            node = node.children[frame]
            node.seconds += seconds
    smallest = _SMALLEST_SHARE * root.seconds
    graph = "".join(_boxes(Frame(title, "all samples"), root, 1.0, smallest))
    page = (files("sageruntime.profiling") / "flame_graph.html").read_text("utf-8")
    return page.replace("{{title}}", escape(title)).replace("{{graph}}", graph)


def _boxes(frame: Frame, node: _Node, share: float, smallest: float) -> Iterator[str]:
    hue = zlib.crc32(frame.place.rpartition(":")[0].encode()) % 60  # one for each file
    yield (
        f'<div class="box" style="width:{share:.3%}"><p style="background:hsl({hue} 85% 68%)" '
        f'data-place="{escape(frame.place)}" data-seconds="{node.seconds:.4f}">'
        f'{escape(frame.function)}</p><div class="row">'
    )
    for callee, child in sorted(node.children.items(), key=lambda item: -item[1].seconds):
        if child.seconds > smallest:
            yield from _boxes(callee, child, child.seconds / node.seconds, smallest)
    yield "</div></div>"
