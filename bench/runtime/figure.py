"""Figure: what a benchmark of the runtime has measured, and whether that is what was promised."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One case of a figure.

    Attributes:
        case: what was measured.
        samples: of every round.
        unit: theirs.
        ratio: how many times as good ours is, where the case is a peer.
        most: what the median was promised not to exceed.
        least: what the ratio was promised to reach.
    """

    case: str
    samples: Sequence[float]
    unit: str
    ratio: float | None = None
    most: float | None = None
    least: float | None = None

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def kept(self) -> bool:
        """Whether what was promised is so."""
        too_much = self.most is not None and self.median > self.most
        too_little = self.least is not None and (self.ratio or 0.0) < self.least
        return not (too_much or too_little)

    def cells(self) -> tuple[str, ...]:
        """As it stands in a table."""
        middle = f"{_number(self.median)} {self.unit}"
        spread = f"{_number(min(self.samples))} - {_number(max(self.samples))}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        promise = ""
        if self.most is not None:
            promise = f"<= {_number(self.most)} {self.unit}"
        elif self.least is not None:
            promise = f">= {self.least:g}x"
        kept = ("yes" if self.kept else "NO") if promise else ""
        return self.case, middle, spread if len(self.samples) > 1 else "", ratio, promise, kept


@dataclass(frozen=True)
class Figure:
    """One benchmark's rows and what there is to say about them."""

    title: str
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether every promise is kept."""
        return all(row.kept for row in self.rows)

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, caption=self.note or None, title_justify="left")
        for header in _HEADERS:
            table.add_column(header, justify="left" if header in ("", "promised") else "right")
        for row in self.rows:
            table.add_row(*row.cells())
        return table

    def markdown(self) -> Iterator[str]:
        """The lines of the table as it stands in the documentation."""
        yield f"### {self.title}\n"
        yield f"| {' | '.join(_HEADERS)} |"
        yield "|---" * len(_HEADERS) + "|"
        for row in self.rows:
            yield f"| {' | '.join(row.cells())} |"
        yield f"\n{self.note}\n" if self.note else ""


_HEADERS = ("", "median", "min - max", "ours is", "promised", "kept")


def in_turn(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every case once a round, there and back again: what the machine does meanwhile
    meets them all."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            samples[name].append(cases[name]())
    return samples


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(ours, theirs))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
