"""Figures of predictions against closed forms, and the loss of a batch against a sum by hand."""

from __future__ import annotations

import math
import random

import pytest
import torch

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.reward.config import RewardConfig, Scale, merged
from nemotron_style.steps.reward.regression.batch import Targets, mean_squared_error, ranking_loss
from nemotron_style.steps.reward.regression.config import Regression
from nemotron_style.steps.reward.regression.metrics import (
    compare_pairs,
    correlate,
    describe,
    rank,
)
from nemotron_style.steps.reward.regression.row import (
    EncodedRow,
    name_outputs,
    scale_outputs,
    weigh_outputs,
)


def test_a_perfect_prediction() -> None:
    found = describe([(0.0, 0.0), (1.0, 1.0), (4.0, 4.0)])
    assert found == pytest.approx(
        {"mse": 0, "r2": 1, "pearson": 1, "spearman": 1, "pairwise_accuracy": 1}
    )


def test_figures_of_three_points_by_hand() -> None:
    found = describe([(0.0, 1.0), (1.0, 0.0), (2.0, 5.0)])
    assert found["mse"] == pytest.approx((1 + 1 + 9) / 3)
    assert found["r2"] == pytest.approx(1 - 11 / 2)
    assert found["pearson"] == pytest.approx(4 / math.sqrt(2 * 14))
    assert found["spearman"] == pytest.approx(0.5)
    assert found["pairwise_accuracy"] == pytest.approx(2 / 3)


def test_pairs_are_counted_as_by_looking_at_each() -> None:
    draw = random.Random(3)
    points = [(float(draw.randrange(4)), float(draw.randrange(6))) for _ in range(60)]
    pairs = [(a, b) for a in points for b in points if a[0] < b[0]]
    right = sum((a[1] < b[1]) + 0.5 * (a[1] == b[1]) for a, b in pairs)
    assert compare_pairs(points) == pytest.approx(right / len(pairs))


def test_ranks_share_ties_and_constants_have_no_correlation() -> None:
    assert rank([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]
    assert math.isnan(correlate([1.0, 1.0], [0.0, 2.0]))


CONFIG = RewardConfig(
    outputs=("good", "long"),
    weights={"good": 1.0, "long": -0.5},
    scale={"good": Scale(mean=2.0, std=2.0), "long": Scale(mean=0.0, std=1.0)},
    max_sequence_length=8,
    chat=ChatPromptTokens(),
)
ROWS = [
    EncodedRow(([1],), {"good": 4.0, "long": 1.0}),
    EncodedRow(([1],), {"good": 0.0}),
    EncodedRow(([1], [2]), {}, margin=0.25),
    EncodedRow(([1],), {"long": -1.0}),
]
OUTPUTS = [[0.5, 0.0], [0.0, 9.0], [1.0, 0.5], [0.0, 1.0], [7.0, 1.0]]


def losses(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    target = Targets.of(ROWS, CONFIG)
    mse = mean_squared_error(outputs, target, over=target)
    return mse, ranking_loss(outputs, target, config=CONFIG, over=target)


def test_the_loss_is_a_mean_over_ratings_and_one_over_pairs() -> None:
    regression, pairs = losses(torch.tensor(OUTPUTS))
    good = ((0.5 - 1) ** 2 + (0 + 1) ** 2) / 2
    long = ((0 - 1) ** 2 + (1 + 1) ** 2) / 2
    assert float(regression) == pytest.approx((good + long) / 2)
    lead = (2 * 1.0 - 0.5 * 0.5) - (2 * 0.0 - 0.5 * 1.0) - 0.25
    assert float(pairs) == pytest.approx(math.log(1 + math.exp(-lead)))


def test_what_was_not_rated_has_no_gradient() -> None:
    outputs = torch.tensor(OUTPUTS, requires_grad=True)
    losses(outputs)[0].backward()
    zero = outputs.grad == 0
    assert zero.tolist() == [
        [False, False], [False, True], [True, True], [True, True], [True, False],
    ]  # fmt: skip


def test_one_output_may_be_the_score() -> None:
    parts, scale = merged(CONFIG.outputs, CONFIG.weights, CONFIG.scale)
    for outputs in OUTPUTS:
        one = sum(part * value for part, value in zip(parts, outputs, strict=True))
        assert one * scale.std + scale.mean == pytest.approx(CONFIG.rate(outputs).score)


def test_names_weights_and_scales_follow_the_data(tmp_path) -> None:
    assert name_outputs(ROWS, Regression()) == ("good", "long")
    assert name_outputs(ROWS[2:3], Regression()) == ("reward",)
    assert weigh_outputs(("good", "long"), Regression()) == {"good": 0.5, "long": 0.5}
    listed = Regression(attributes=["long", "good"], attribute_weights=[3.0, 1.0])
    names = name_outputs(ROWS, listed)
    assert weigh_outputs(names, listed) == {"long": 3.0, "good": 1.0}
    scale = scale_outputs(ROWS, ("good", "long"), where=tmp_path)
    assert scale["good"] == Scale(mean=2.0, std=2.0)
    with pytest.raises(InputError, match="another number of attributes"):
        name_outputs(ROWS, Regression(num_attributes=9))
    with pytest.raises(InputError, match="one weight for each"):
        weigh_outputs(("good", "long"), Regression(attribute_weights={"good": 1.0}))
    with pytest.raises(InputError, match="rated alike in every row"):
        scale_outputs(ROWS[:1], ("good", "long"), where=tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"attributes": []},
        {"attributes": ["a", "a"]},
        {"attributes": ["a"], "num_attributes": 2},
        {"attribute_weights": [0.0, 0.0]},
        {"attribute_weights": [float("nan")]},
    ],
)
def test_settings_that_contradict_themselves_are_refused(values) -> None:
    with pytest.raises(ValueError, match=r"attributes|zero|finite"):
        Regression(**values)
