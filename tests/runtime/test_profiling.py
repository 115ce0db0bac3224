"""Profiles: what the flame graphs show and where the time table says the time goes."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from html.parser import HTMLParser

import pytest

from sageruntime.profiling import Frame, StackProfile, flame_graph
from sageruntime.profiling.sampler import Sampler


class Page(HTMLParser):
    """The frames of a flame graph with their seconds, and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.loads: list[str] = []
        self._frame: float | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [str(values[name]) for name in ("src", "href") if name in values]
        if "data-seconds" in values:
            self._frame = float(values["data-seconds"] or 0)

    def handle_data(self, data: str) -> None:
        if self._frame is not None:
            self.seconds[data] = self.seconds.get(data, 0.0) + self._frame
            self._frame = None


def test_a_flame_graph_is_as_wide_as_the_time() -> None:
    main, parse, score = Frame("main", "a.py:1"), Frame("<parse>", "a.py:5"), Frame("s", "b.py:9")
    profile = StackProfile({(main, parse): 1.0, (main, score): 2.5, (main,): 0.5})
    page = Page(flame_graph("work & play", profile))
    assert page.seconds == {"work & play": 4.0, "main": 4.0, "<parse>": 1.0, "s": 2.5}
    assert page.loads == []


def test_what_cannot_be_seen_is_left_out() -> None:
    profile = StackProfile({(Frame("long", "a.py:1"),): 100.0, (Frame("short", "a.py:2"),): 0.01})
    assert "short" not in Page(flame_graph("work", profile)).seconds


def test_a_flame_graph_of_nothing() -> None:
    assert Page(flame_graph("work", StackProfile())).seconds == {"work": 0.0}


def test_profiles_add_up() -> None:
    frame, task = Frame("f", "a.py:1"), Frame("task-0", "task")
    profile = StackProfile.merged([StackProfile({(frame,): 1.0}), StackProfile({(frame,): 2.0})])
    assert profile.seconds == {(frame,): 3.0}
    assert profile.total == 3.0
    assert pickle.loads(pickle.dumps(profile.under(task))).seconds == {(task, frame): 3.0}


class Burner:
    def burn(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass


def test_threads_are_sampled_side_by_side() -> None:
    sampler = Sampler()
    took: Counter[str] = Counter()
    lock = threading.Lock()

    def work(seconds: float) -> None:
        sampler.begin()
        for _ in range(10):
            begun = time.perf_counter()
            Burner().burn(seconds)
            burnt = time.perf_counter()
            time.sleep(seconds)
            slept = time.perf_counter()
            with lock:
                took["Burner.burn"] += burnt - begun
                took["sleep"] += slept - burnt
                took[threading.current_thread().name] += slept - begun

    threads = [
        threading.Thread(target=work, args=(seconds,), name=name)
        for name, seconds in (("short", 0.01), ("long", 0.02))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    profile = pickle.loads(pickle.dumps(sampler.profile()))
    page = Page(flame_graph("work", profile))
    for name, seconds in took.items():
        assert page.seconds[name] == pytest.approx(seconds, rel=0.1)
    outermost = {stack[1].function for stack in profile.seconds}
    assert outermost <= {"Burner.burn", "sleep", "work"}  # not how the thread was started
