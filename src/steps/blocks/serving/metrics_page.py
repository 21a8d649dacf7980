"""Counters, gauges and histograms, told as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Labels = tuple[tuple[str, str], ...]


@dataclass
class Metric:
    """One family: its name, its help, its kind."""

    name: str
    text: str
    kind: str = "counter"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def render(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} {self.kind}"
        yield from self.samples()

    def samples(self) -> Iterator[str]:
        raise NotImplementedError


@dataclass
class Count(Metric):
    """A number for every combination of labels; it only grows."""

    values: Counter[Labels] = field(default_factory=Counter)

    def add(self, number: float = 1, **labels: str) -> None:
        with self.lock:
            self.values[tuple(sorted(labels.items()))] += number  # type: ignore[assignment]

    def total(self, **labels: str) -> float:
        """The sum over all combinations that have these labels."""
        wanted = set(labels.items())
        with self.lock:
            return sum(value for key, value in self.values.items() if wanted <= set(key))

    def samples(self) -> Iterator[str]:
        with self.lock:
            values = dict(self.values)
        for labels, value in sorted(values.items()):
            yield f"{self.name}{show_labels(dict(labels))} {show_number(value)}"


@dataclass
class Gauge(Metric):
    """A number that is looked up when it is asked for."""

    read: Callable[[], float] = lambda: 0.0
    kind: str = "gauge"

    def samples(self) -> Iterator[str]:
        yield f"{self.name} {show_number(self.read())}"


@dataclass
class Histogram(Metric):
    """How many observations lie at or below each of ``bounds`` (ascending)."""

    bounds: Sequence[float] = ()
    kind: str = "histogram"
    sum: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        with self.lock:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def samples(self) -> Iterator[str]:
        with self.lock:
            counts, total = list(self.counts), self.sum
        below = 0
        for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
            below += count
            yield f"{self.name}_bucket{show_labels({'le': show_number(bound)})} {below}"
        yield f"{self.name}_sum {show_number(total)}"
        yield f"{self.name}_count {below}"


def render(metrics: Sequence[Metric]) -> str:
    """The whole page."""
    return "\n".join(line for metric in metrics for line in metric.render()) + "\n"


def show_labels(labels: Mapping[str, str]) -> str:
    """``{name="value",...}``, or nothing."""
    told = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()]
    return "{" + ",".join(told) + "}" if told else ""


def show_number(value: float) -> str:
    """A number as the format spells it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if float(value).is_integer() else repr(float(value))
