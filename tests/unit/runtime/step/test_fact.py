"""What a recipe notes is checked where it says it, and kept as JSON can hold it."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.step.fact import MAX_CHARACTERS, MAX_VALUES

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
KEPT = [
    (Path("a/b"), "a/b"),
    (Path("bytes-\udcff"), "bytes-\\udcff"),
    ("half \ud800", "half \\ud800"),
    (NOON, "2024-05-01T12:00:00+00:00"),
    (date(2024, 5, 1), "2024-05-01"),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    (2**1000, 2**1000),
    (True, True),
    (None, None),
    ((1, (2.5, "x")), [1, [2.5, "x"]]),
    ({"b", "a"}, ["a", "b"]),
    ({1: Path("x"), "y": [None]}, {"1": "x", "y": [None]}),
    (range(3), [0, 1, 2]),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.float64("nan"), "nan"),
    (np.longdouble(0.5), 0.5),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.str_("x"), "x"),
    (torch.tensor(2.5), 2.5),
    (torch.tensor([1.0, float("inf")]), [1.0, "inf"]),
    (torch.tensor(1.0, requires_grad=True), 1.0),
    ({"deep": {"paths": [Path("a"), Path("b")]}}, {"deep": {"paths": ["a", "b"]}}),
]


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


REFUSED = [
    (object(), "cannot be kept in a record; got object"),
    (b"bytes", "got bytes"),
    (itertools.count(), "got count"),
    (torch.float32, "got dtype"),
    (print, "got builtin_function_or_method"),
    (1j, "got complex"),
    (Decimal("1.5"), "got Decimal"),
    (endless(), "too large"),
    (10**5000, "is not a number"),
    ("x" * (MAX_CHARACTERS + 1), "too large"),
    (["y" * 1000] * 1001, "too large"),
    (range(MAX_VALUES + 1), "too large"),
    (np.zeros((1000, 1000, 1000), dtype=np.int8), "too large"),
    (torch.zeros(1, device="meta").expand(10**9), "too large"),
    ({"a": [1, {"b": object()}]}, r"fact\.a\[1\]\.b: cannot be kept"),
]


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return StepContext(run_dir=tmp_path, inputs={}, outputs=("model",))


@pytest.mark.parametrize(("value", "kept"), KEPT, ids=lambda value: type(value).__name__)
def test_a_fact_is_kept_as_json_can_hold_it(context: StepContext, value: Any, kept: Any) -> None:
    output = context.output("model")
    output.note(fact=value)
    assert output.facts == {"fact": kept}
    assert json.loads(json.dumps(output.facts, allow_nan=False)) == output.facts
    str(output.facts).encode()


@pytest.mark.parametrize(("value", "what"), REFUSED, ids=lambda value: type(value).__name__)
def test_a_fact_that_no_record_holds_is_refused_at_the_call(
    context: StepContext, value: Any, what: str
) -> None:
    with pytest.raises(StepFailed, match=what) as caught:
        context.output("model").note(fact=value)
    [problem] = caught.value.problems
    assert problem.where == "output model"
    assert problem.key.startswith("fact")
    assert context.output("model").facts == {}


def test_a_fact_is_kept_as_it_was_when_it_was_noted(context: StepContext) -> None:
    losses = [1.0]
    context.output("model").note(losses=losses)
    losses.append(2.0)
    assert context.output("model").facts == {"losses": [1.0]}


def test_figures_may_be_numbers_texts_and_paths(context: StepContext) -> None:
    context.summarise(a=Path("x"), b=np.float32(0.5), c="half \ud800", d=None, e=Fraction(1, 2))
    assert context.figures == {"a": "x", "b": 0.5, "c": "half \\ud800", "d": None, "e": 0.5}
    for value in ([1], {}, torch.zeros(2), 10**5000, object()):
        with pytest.raises(StepFailed, match=r"summary: loss: is not a number"):
            context.summarise(loss=value)


def test_metrics_and_progress_name_what_is_no_number(context: StepContext) -> None:
    with pytest.raises(StepFailed, match=r"metrics of step 3: loss: is not a number"):
        context.metrics.log(3, loss=Path("x"))
    with pytest.raises(StepFailed, match=r"progress: loss: is not a number"):
        context.progress(1, 2, loss="low")
    context.metrics.log(np.int64(4), loss=torch.tensor(0.5))
    context.progress(np.int64(1), np.int64(1), loss=np.float16(0.5))
    context.metrics.close()
    assert context.metrics.history() == [{"step": 4, "loss": 0.5}]
