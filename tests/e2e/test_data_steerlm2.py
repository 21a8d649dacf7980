"""data/steerlm2 end to end on a small toy: rows that a trainer accepts and starts even from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from card import card, fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    TOKENIZER,
    load_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.chat.opening import open_chat, tokenizer_facts
from nemotron_style.steps.blocks.data.steerlm2_row import LOG_P_A, LOG_P_Y, LOG_Q, read_groups
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.loss.steerlm2 import baseline, sampler_gap
from nemotron_style.steps.blocks.model.logprob import response_logprobs
from nemotron_style.steps.blocks.model.prefix_packing import Group, pack
from nemotron_style.steps.data.steerlm2.config import Config
from nemotron_style.steps.data.steerlm2.recipe import run

OUTPUTS = ("train", "validation")


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "seed": 1,
        "trainer": {"precision": "32"},
        "data": {"validation_prompts": 4, "train_groups": 30, "validation_groups": 7},
        "sampling": {"num_responses": 4, "max_new_tokens": 40},
        "attribute_check": {"num_samples": 40},
        "shard_groups": 12,
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Config.model_validate(values)


def inputs_of(toy: Any, *slots: str) -> dict[str, Any]:
    given = {"sampler": toy.model, "prompts": toy.prompts, "truth": toy.truth}
    return {slot: given[slot] for slot in slots or given}


def make_run(toy: Any, path: Path, config: Config | None = None, **seating: Any) -> StepContext:
    ctx = StepContext(run_dir=path, inputs=inputs_of(toy), outputs=OUTPUTS, **seating)
    run(config or make_config(), ctx)
    return ctx


def rows_of(ctx: StepContext, name: str) -> list[dict[str, Any]]:
    text = (ctx.output(name).path / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def made(small_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    return make_run(small_toy, tmp_path_factory.mktemp("run"))


def test_counts_labels_and_prompts(made: StepContext, small_toy: Any) -> None:
    train, validation = rows_of(made, "train"), rows_of(made, "validation")
    assert (len(train), len(validation)) == (30, 7)
    assert {len(row["responses"]) for row in train + validation} == {4}
    asked = [{row["prompt_turns"][0]["value"] for row in rows} for rows in (train, validation)]
    assert len(asked[0]) == 20
    assert len(asked[1]) == 4
    assert not asked[0] & asked[1]
    assert len({row["label"] for row in train}) > 8


def test_training_starts_from_equal_shares(made: StepContext, small_toy: Any) -> None:
    tokenizer = Tokenizer(small_toy.model.path / TOKENIZER)
    groups = read_groups(
        made.output("train").path,
        chat=open_chat(tokenizer),
        max_tokens=96,
    )
    model, _ = load_model(small_toy.model.path, ddp=False)
    for group in groups:
        with torch.no_grad():
            packed = pack([Group(group.prompt_ids, group.responses_ids)])
            log_q = response_logprobs(model, packed).double().sum(-1)
        assert sampler_gap(baseline(log_q, torch.tensor([group.log_q]))) < 1e-4


def test_each_number_is_that_of_its_own_text(made: StepContext, small_toy: Any) -> None:
    """Recomputed one response at a time, from texts written out by hand."""
    model, _ = load_model(small_toy.model.path, ddp=False)
    tokenizer = Tokenizer(small_toy.model.path / TOKENIZER)

    def logprob(given: str, wanted: str) -> float:
        ids = [tokenizer.encode(text, control=True) for text in (given, wanted)]
        with torch.no_grad():
            return response_logprobs(model, pack([Group(ids[0], [ids[1]])])).double().sum().item()

    for row in rows_of(made, "train")[:5]:
        asked = row["prompt_turns"][0]["value"]
        plain = f"<extra_id_0>System\n\n<extra_id_1>User\n{asked}\n<extra_id_1>Assistant\n"
        for response in row["responses"]:
            said, label = response["value"], row["label"]
            answer = f"{said}\n<extra_id_1>"
            labelled = f"{plain}<extra_id_2>{label}\n"
            assert response[LOG_P_Y] == pytest.approx(logprob(plain, answer), abs=1e-4)
            assert response[LOG_Q] == pytest.approx(logprob(labelled, answer), abs=1e-4)
            asking = f"{plain}{said}\n<extra_id_2>"
            assert response[LOG_P_A] == pytest.approx(logprob(asking, f"{label}\n"), abs=1e-4)


def test_records_say_who_sampled_and_how_well_attributes_are_named(
    made: StepContext, small_toy: Any
) -> None:
    facts = made.output("train").facts
    digest = weights_digest(small_toy.model.path)
    assert facts["sampler_digest"] == facts["base_digest"] == facts["attribute_digest"] == digest
    assert facts["responses_per_group"] == 4
    chat = open_chat(Tokenizer(small_toy.model.path / "tokenizer"))
    tokens = tokenizer_facts(chat.tokenizer, chat)
    assert {key: facts[key] for key in tokens} == tokens
    assert facts["groups_asked"] == 30
    assert 0 <= facts["attribute_accuracy_helpfulness"] <= 1
    assert 1 <= made.figures["effective_sample_size"] <= 4
    assert 0 <= made.figures["duplicates_share"] < 1
    assert made.figures["responses"] == 37 * 4


def test_stopped_between_shards_it_goes_on_to_the_same_bytes(
    made: StepContext, small_toy: Any, tmp_path: Path
) -> None:
    stop = Stop()

    class StopAfterOne(StepContext):
        def progress(self, done: int, total: int, **figures: float) -> None:
            stop.requested = True

    first = StopAfterOne(run_dir=tmp_path, inputs=inputs_of(small_toy), outputs=OUTPUTS, stop=stop)
    with pytest.raises(Interrupted):
        run(make_config(), first)
    newest = first.checkpoints.newest()
    assert newest is not None
    assert newest.step == 1
    second = make_run(small_toy, tmp_path, attempt=2)
    for name in OUTPUTS:
        assert rows_of(second, name) == rows_of(made, name)
        assert second.output(name).facts == made.output(name).facts
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_another_seed_draws_others(made: StepContext, small_toy: Any, tmp_path: Path) -> None:
    other = make_run(small_toy, tmp_path, make_config(seed=2))
    assert rows_of(other, "train") != rows_of(made, "train")


def test_another_iteration_draws_others_of_the_same_split(
    made: StepContext, small_toy: Any, tmp_path: Path
) -> None:
    again = make_run(small_toy, tmp_path, make_config(data={"iteration": 2}))
    for name in OUTPUTS:
        before, after = rows_of(made, name), rows_of(again, name)
        asked = [{row["prompt_turns"][0]["value"] for row in rows} for rows in (before, after)]
        assert asked[0] == asked[1]
        assert [row["label"] for row in before] != [row["label"] for row in after]


def test_without_truth_labels_come_from_the_config(small_toy: Any, tmp_path: Path) -> None:
    ctx = StepContext(
        run_dir=tmp_path, inputs=inputs_of(small_toy, "sampler", "prompts"), outputs=OUTPUTS
    )
    with pytest.raises(InputError, match=r"data.labels: there is no label to ask for"):
        run(make_config(), ctx)
    labels = ("helpfulness:4,verbosity:1", "helpfulness:0,verbosity:0")
    run(make_config(data={"labels": labels}), ctx)
    assert {row["label"] for row in rows_of(ctx, "train")} == set(labels)
    assert "attribute_accuracy_helpfulness" not in ctx.output("train").facts


def test_unfinished_responses_are_never_cut(small_toy: Any, tmp_path: Path) -> None:
    config = make_config(sampling={"max_new_tokens": 9, "max_attempts": 1})
    with pytest.raises(StepFailed, match="never finished") as failure:
        make_run(small_toy, tmp_path / "strict", config)
    assert "sampling.max_new_tokens" in str(failure.value)
    allowed = make_config(
        sampling={"max_new_tokens": 9, "max_attempts": 3, "max_dropped": 1.0},
    )
    ctx = make_run(small_toy, tmp_path / "lenient", allowed)
    tokenizer = Tokenizer(small_toy.model.path / TOKENIZER)
    assert ctx.figures["dropped_groups"] > 0
    assert ctx.figures["redrawn_share"] > 0
    for row in rows_of(ctx, "train"):
        assert all(len(tokenizer.encode(said["value"])) <= 7 for said in row["responses"])
        assert all(math.isfinite(said[LOG_Q]) for said in row["responses"])


def test_prompts_that_are_all_set_apart_are_refused(small_toy: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="24 of 24 distinct prompts set apart"):
        make_run(small_toy, tmp_path, make_config(data={"validation_prompts": 24}))


def test_on_a_card_the_rows_are_those_of_the_cpu(small_toy: Any, tmp_path: Path) -> None:
    few = make_config(
        data={"train_groups": 2, "validation_groups": 1},
        sampling={"num_responses": 2},
        attribute_check={"num_samples": 2},
    )
    plain = make_run(small_toy, tmp_path / "cpu", few)
    with card():
        ctx = make_run(small_toy, tmp_path / "card", few)
    for name in OUTPUTS:
        for ours, theirs in zip(rows_of(ctx, name), rows_of(plain, name), strict=True):
            assert ours["prompt_turns"] == theirs["prompt_turns"]
            for one, other in zip(ours["responses"], theirs["responses"], strict=True):
                assert one == pytest.approx(other, abs=1e-4)
    fail_where_devices_mix(lambda: make_run(small_toy, tmp_path / "mixed", few), ["batch"])
