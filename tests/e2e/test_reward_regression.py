"""reward/regression on a toy: it learns to rate, resumes to the bit, and refuses early."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from card import card, fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.steps.blocks.data.toy_truth import Truth, load_truth
from nemotron_style.steps.blocks.reward.model import RewardModel
from nemotron_style.steps.reward.regression.config import Config
from nemotron_style.steps.reward.regression.recipe import run
from nonfinite import fail_at_every_spot

STEPS = 24


def draw_answer(truth: Truth, draw: random.Random) -> tuple[list[dict], dict[str, int]]:
    """An answered conversation and its true attributes."""
    noun = draw.choice(list(truth.nouns))
    prompt = truth.prompt(noun, draw.choice(truth.contexts))
    words = truth.fitting(noun) if draw.random() < 0.5 else truth.adjectives
    response = truth.response(noun, draw.sample(words, draw.randint(1, 4)))
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return messages, truth.score(prompt, response)


def rated_rows(truth: Truth, count: int, *, seed: int) -> list[dict]:
    """Rows of which every fifth rates verbosity alone."""
    draw = random.Random(seed)
    rows = []
    for place in range(count):
        messages, label = draw_answer(truth, draw)
        kept = label if place % 5 else {"verbosity": label["verbosity"]}
        rows.append({"messages": messages, "attributes": kept})
    return rows


def pair_rows(truth: Truth, count: int, *, seed: int) -> list[dict]:
    """Pairs whose better side has the higher verbosity."""
    draw, rows = random.Random(seed), []
    while len(rows) < count:
        sides = [draw_answer(truth, draw) for _ in range(2)]
        sides.sort(key=lambda side: side[1]["verbosity"])
        if sides[0][1]["verbosity"] < sides[1][1]["verbosity"]:
            rows.append({"chosen": sides[1][0], "rejected": sides[0][0]})
    return rows


def write(path: Path, rows: list[dict]) -> SimpleNamespace:
    path.mkdir(parents=True, exist_ok=True)
    (path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return SimpleNamespace(path=path, facts={})


def settings(**model: object) -> Config:
    rm = {"max_steps": STEPS, "val_check_interval": 12, "save_interval": 9}
    values = {
        "global_batch_size": 32,
        "micro_batch_size": 32,
        "data": {"sample": True},
        "optim": {"name": "adamw", "lr": 5e-3},
        **model,
    }
    return Config.model_validate_json(
        json.dumps({"trainer": {"precision": "32", "rm": rm}, "model": values})
    )


def context(toy, path: Path, *, rows=None, held=None, **more: object) -> StepContext:
    truth = load_truth(toy.truth.path)
    inputs = {
        "model": SimpleNamespace(path=toy.model.path, facts={}),
        "data": write(path / "in", rows or rated_rows(truth, 512, seed=1)),
        "validation": write(path / "held", held or rated_rows(truth, 100, seed=2)),
    }
    return StepContext(run_dir=path / "run", inputs=inputs, outputs=("model",), **more)


def lines(ctx: StepContext) -> list[dict]:
    """The metrics without what the clock decides."""
    text = (ctx.run_dir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in text]
    return [{k: v for k, v in one.items() if k != "tokens_per_second"} for one in kept]


def digest(ctx: StepContext) -> str:
    return ctx.output("model").facts["weights_digest"]


@pytest.fixture(scope="module")
def trained(small_toy, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    torch.set_num_threads(1)
    ctx = context(small_toy, tmp_path_factory.mktemp("trained"))
    run(settings(), ctx)
    return ctx


def test_it_learns_what_answers_are_worth(trained: StepContext) -> None:
    figures = trained.figures
    assert figures["validation_pairwise_accuracy_verbosity"] > 0.9
    assert figures["validation_r2_verbosity"] > 0.5
    assert figures["validation_pairwise_accuracy_helpfulness"] > 0.6
    losses = [line["train_regression_loss"] for line in lines(trained) if "train_loss" in line]
    assert losses[0] == pytest.approx(1.0, abs=0.4)  # the head begins by saying the mean
    assert losses[-1] < 0.6 * losses[0]
    assert (trained.run_dir / "plots" / "regression.png").is_file()
    assert (trained.run_dir / "plots" / "loss.png").is_file()
    table = (trained.run_dir / "samples" / "samples.md").read_text()
    assert "| conversation | in the data | before | after " in table
    assert "verbosity" in table


def test_what_is_produced_says_what_was_measured(small_toy, trained: StepContext) -> None:
    model = RewardModel.load(trained.output("model").path)
    rows = rated_rows(load_truth(small_toy.truth.path), 100, seed=2)
    found = model.score([row["messages"] for row in rows])
    errors = [
        (one.attributes["verbosity"] - row["attributes"]["verbosity"]) ** 2
        for one, row in zip(found, rows, strict=True)
    ]
    mean = sum(errors) / len(errors)
    assert mean == pytest.approx(trained.figures["validation_mse_verbosity"], rel=1e-4)
    assert trained.output("model").facts["outputs"] == ["helpfulness", "verbosity"]


@pytest.mark.parametrize("step", [5, 20])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    small_toy, trained: StepContext, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    first = context(small_toy, tmp_path, stop=stop)

    def watch(done: int, _total: int, **_figures: float) -> None:
        stop.requested = done >= step

    monkeypatch.setattr(first, "progress", watch)
    with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
        run(settings(), first)
    second = context(small_toy, tmp_path, attempt=2)
    run(settings(), second)
    assert lines(second) == lines(trained)
    assert digest(second) == digest(trained)


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    small_toy, trained: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(done: int, _total: int, **_figures: float) -> None:
        if done == 14:  # after the checkpoint of step 9, with more steps in the metrics
            raise Killed

    first = context(small_toy, tmp_path)
    monkeypatch.setattr(first, "progress", die)
    with pytest.raises(Killed):
        run(settings(), first)
    second = context(small_toy, tmp_path, attempt=2)
    run(settings(), second)
    assert lines(second) == lines(trained)
    assert digest(second) == digest(trained)


def test_pairs_make_one_output_that_orders_them(small_toy, tmp_path: Path) -> None:
    truth = load_truth(small_toy.truth.path)
    rows, held = (pair_rows(truth, count, seed=seed) for count, seed in ((512, 3), (100, 4)))
    ctx = context(small_toy, tmp_path, rows=rows, held=held)
    run(settings(reward_model_type="binary_ranking"), ctx)
    assert ctx.figures["validation_pair_accuracy"] > 0.9
    model = RewardModel.load(ctx.output("model").path)
    assert model.outputs == ("reward",)
    better, worse = (model.score([row[side] for row in held]) for side in ("chosen", "rejected"))
    right = sum(one.score > other.score for one, other in zip(better, worse, strict=True))
    assert right / len(held) == ctx.figures["validation_pair_accuracy"]


def test_ratings_and_pairs_may_stand_together_and_the_score_alone_be_produced(
    small_toy, tmp_path: Path
) -> None:
    truth = load_truth(small_toy.truth.path)
    rows = rated_rows(truth, 256, seed=1) + pair_rows(truth, 256, seed=3)
    ctx = context(small_toy, tmp_path, rows=rows, held=rows[:40] + rows[-40:])
    weights = {"helpfulness": 0.0, "verbosity": 2.0}
    regression = {"merge_attributes": True, "attribute_weights": weights}
    run(settings(regression=regression), ctx)
    assert {"validation_pair_accuracy", "validation_r2_verbosity"} <= set(ctx.figures)
    model = RewardModel.load(ctx.output("model").path)
    assert model.outputs == ("score",)
    found = model.score([row["messages"] for row in rows[:20]])
    assert all(one.score == pytest.approx(one.attributes["score"]) for one in found)


BAD = {
    "too long": ({"messages": "long", "attributes": {"verbosity": 1}}, r"rows\.jsonl:2: .*longer"),
    "another name": ({"attributes": {"verbostiy": 1}}, r"rows\.jsonl:2: verbostiy: .*verbosity"),
    "a pair": ({"pair": True}, r"rows\.jsonl:2: the row is of the other sort"),
}


@pytest.mark.parametrize("name", BAD)
def test_rows_are_refused_with_their_line(small_toy, tmp_path: Path, name: str) -> None:
    row, told = BAD[name]
    truth = load_truth(small_toy.truth.path)
    rows = rated_rows(truth, 40, seed=1)
    rows[1] = {**rows[1], **row} if "pair" not in row else pair_rows(truth, 1, seed=1)[0]
    if row.get("messages") == "long":
        said = {"role": "assistant", "content": "The river is " + "deep and " * 80 + "calm."}
        rows[1]["messages"] = [rows[0]["messages"][0], said]
    names = {"attributes": ["helpfulness", "verbosity"]}
    with pytest.raises(InputError, match=told):
        run(
            settings(regression=names, reward_model_type="regression"),
            context(small_toy, tmp_path, rows=rows),
        )


def test_another_number_of_processes_is_refused(small_toy, tmp_path: Path) -> None:
    config = settings().model_copy(
        update={"trainer": settings().trainer.model_copy(update={"devices": 2})}
    )
    with pytest.raises(InputError, match="another number of processes"):
        run(config, context(small_toy, tmp_path))


def test_nothing_that_is_not_finite_is_kept_and_the_run_goes_on(small_toy, tmp_path: Path) -> None:
    rm = {"max_steps": 2, "val_check_interval": 1, "save_interval": 1}
    config = settings().model_dump(mode="json")
    config["trainer"]["rm"] |= rm
    rows = rated_rows(load_truth(small_toy.truth.path), 40, seed=1)

    def train(path: Path = tmp_path / "hit") -> StepContext:
        ctx = context(small_toy, path, rows=rows, held=rows[:8])
        run(Config.model_validate_json(json.dumps(config)), ctx)
        return ctx

    fail_at_every_spot(train, tmp_path / "hit" / "run", last=2)
    assert digest(train()) == digest(train(tmp_path))


def test_it_trains_on_a_card_as_on_the_cpu(small_toy, trained: StepContext, tmp_path: Path) -> None:
    ctx = context(small_toy, tmp_path)
    with card():
        run(settings(), ctx)
    for ours, theirs in zip(lines(ctx), lines(trained), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_mix_of_devices_ends_the_run(small_toy, tmp_path: Path) -> None:
    fail_where_devices_mix(lambda: run(settings(), context(small_toy, tmp_path)))
