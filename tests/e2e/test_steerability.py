"""eval/steerability end to end on a small toy: the figures are those of the samples it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from card import card
from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    load_model,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from nemotron_style.steps.eval.steerability.config import Config
from nemotron_style.steps.eval.steerability.recipe import run


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "seed": 1,
        "trainer": {"precision": "32"},
        "data": {"max_prompts": 6},
        "sampling": {"max_new_tokens": 40, "num_samples": 2},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Config.model_validate(values)


def make_run(path: Path, inputs: dict[str, Any], config: Config | None = None) -> StepContext:
    ctx = StepContext(run_dir=path, inputs=inputs, outputs=("results",))
    run(config or make_config(), ctx)
    return ctx


def read_results(ctx: StepContext) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = ctx.output("results").path
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    return json.loads((path / "results.json").read_text()), rows


@pytest.fixture(scope="module")
def worse(small_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The toy's model with a head of less contrast: it answers, and follows labels less."""
    path = tmp_path_factory.mktemp("worse") / "model"
    model, config = load_model(small_toy.model.path, ddp=False)
    model.output_layer.weight.data.mul_(0.6)
    save_model(model, path, config=config, tokenizer=small_toy.model.path / "tokenizer")
    return small_toy.store.adopt(str(path), kind="checkpoint_megatron", name="worse")


@pytest.fixture(scope="module")
def done(small_toy: Any, worse: Any, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    toy = small_toy
    inputs = {"model": toy.model, "baseline": worse, "prompts": toy.prompts, "truth": toy.truth}
    return make_run(tmp_path_factory.mktemp("run"), inputs)


def test_every_reachable_label_is_asked_of_every_prompt(done: StepContext, small_toy: Any) -> None:
    truth = load_truth(small_toy.truth.path)
    results, rows = read_results(done)
    labels = {truth.format(label) for label in truth.reachable_labels()}
    assert {row["label"] for row in rows} == labels == set(results["labels"]["model"])
    assert results["responses"] == len(rows) == 6 * len(labels) * 2
    assert len({row["turns"][0]["value"] for row in rows}) == 6


def test_rates_are_those_of_the_samples(done: StepContext, small_toy: Any) -> None:
    truth = load_truth(small_toy.truth.path)
    results, rows = read_results(done)
    for slot in ("model", "baseline"):
        hits = {"joint": 0, "helpfulness": 0, "verbosity": 0}
        for row in rows:
            said = row[slot]["value"]
            got = truth.score(row["turns"][0]["value"], said) if said is not None else {}
            wanted = truth.parse(row["label"])
            assert wanted is not None
            for name, value in wanted.items():
                hits[name] += got.get(name) == value
            hits["joint"] += got == wanted
        counted = {name: rate["hits"] for name, rate in results["rates"][slot].items()}
        assert counted == hits
        assert results["unfinished"][slot] == sum(row[slot]["value"] is None for row in rows)


def test_a_worse_baseline_is_told_from_the_model(done: StepContext) -> None:
    results, _ = read_results(done)
    joint = results["differences"]["joint"]
    rates = {slot: results["rates"][slot]["joint"]["rate"] for slot in ("model", "baseline")}
    assert joint["difference"] == pytest.approx(rates["model"] - rates["baseline"])
    assert 0 < joint["low"] < joint["difference"] < joint["high"]
    assert done.figures["joint_difference"] == joint["difference"]
    assert done.figures["joint_hit_rate_model"] == rates["model"]


def test_what_is_written_can_be_read_and_seen(done: StepContext, small_toy: Any) -> None:
    path = done.output("results").path
    assert (path / "steerability.png").read_bytes().startswith(b"\x89PNG")
    table = (path / "samples.md").read_text()
    assert "| label | prompt | baseline | model |" in table
    assert "✓" in table
    assert "✗" in table
    assert done.output("results").facts["model_digest"] == weights_digest(small_toy.model.path)


def test_the_same_run_gives_the_same_bytes(
    done: StepContext, small_toy: Any, worse: Any, tmp_path: Path
) -> None:
    toy = small_toy
    inputs = {"model": toy.model, "baseline": worse, "prompts": toy.prompts, "truth": toy.truth}
    again = make_run(tmp_path, inputs)
    for file in sorted(done.output("results").path.iterdir()):
        assert file.read_bytes() == (again.output("results").path / file.name).read_bytes()


def test_without_truth_an_attribute_model_judges(small_toy: Any, tmp_path: Path) -> None:
    inputs = {"model": small_toy.model, "prompts": small_toy.prompts}
    with pytest.raises(InputError, match="nothing can tell which attributes"):
        make_run(tmp_path, inputs)
    inputs["attribute"] = small_toy.model
    with pytest.raises(InputError, match=r"data\.labels: there is no label to ask for"):
        make_run(tmp_path, inputs)
    labels = ["helpfulness:4,verbosity:1", "helpfulness:0,verbosity:0"]
    ctx = make_run(tmp_path, inputs, make_config(data={"labels": labels}))
    results, rows = read_results(ctx)
    assert results["judged_by"] == "attribute"
    assert "differences" not in results
    assert "baseline" not in rows[0]
    assert results["rates"]["model"]["joint"]["rate"] > 0.1


def test_on_a_card_the_results_are_those_of_the_cpu(small_toy: Any, tmp_path: Path) -> None:
    inputs = dict.fromkeys(("model", "attribute"), small_toy.model) | {"prompts": small_toy.prompts}
    few = make_config(
        data={"max_prompts": 2, "labels": ["helpfulness:4,verbosity:1"]},
        sampling={"num_samples": 1},
    )
    plain = make_run(tmp_path / "cpu", inputs, few)
    with card():
        ctx = make_run(tmp_path / "card", inputs, few)
    assert read_results(ctx) == read_results(plain)
