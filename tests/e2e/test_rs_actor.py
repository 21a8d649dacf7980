"""rs/actor against a reward model that fails in every way: no failure is a score, nothing is lost.

The server is that of the client's own tests. Its scores are a function of the text alone, so a run
in which anything went wrong must end with the weights of a run in which nothing did.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from card import card, fail_where_devices_mix
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.steps.blocks.checkpoint.lora_folder import read_lora
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import load_model, weights_digest
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.rs.actor import recipe, reward_pool
from nemotron_style.steps.rs.actor.config import Config
from nonfinite import SAMPLING_SPOTS, fail_at_every_spot
from parameter_bytes import count_parameter_bytes

_spec = importlib.util.spec_from_file_location(
    "faulty_server",
    Path(__file__).parents[1] / "unit" / "steps" / "blocks" / "reward" / "test_client.py",
)
faulty = importlib.util.module_from_spec(_spec)
sys.modules["faulty_server"] = faulty
_spec.loader.exec_module(faulty)

STEPS = 4
CLOCK = ("seconds", "per_second", "rm_")
LASTING = (
    *("late", "never", "slow drip", "429", "500", "502 in HTML", "503", "HTML with 200"),
    *("shorter", "longer", "wrong order", "another's answer", "no id", "NaN", "NaN as text"),
    *("infinity", "null", "text", "cut short", "closed", "no HTTP", "other model"),
)


def settings(port: int, **more: Any) -> Config:
    """Four steps of six prompts; requests are hasty, so that a fault takes little time."""
    waiting = {"tries": 3, "timeout": 120, "first_pause": 0.001, "longest_pause": 0.002}
    waiting |= {"ready_seconds": 120} | more.pop("waiting", {})
    rollout = {
        **{"num_rollout_samples": 6, "num_rollouts_per_prompt": 4, "top_n_rollouts": 2},
        **{"rollout_micro_batch_size": 3, "num_val_samples": 8},
        "length_params": {"max_length": 24},
        **more.pop("rs", {}),
    }
    values = {
        "trainer": {
            "precision": "32",
            "rs": {"max_steps": STEPS, "val_check_interval": 2, "save_interval": 3},
        },
        "remote_rm": {"host": "127.0.0.1", "port": port, "waiting": waiting},
        "model": {
            "global_batch_size": 6,
            "micro_batch_size": 4,
            "rs": rollout,
            "data": {"sample": True},
            "optim": {"name": "adamw", "lr": 2e-3, "sched": {"min_lr": 2e-3}},
        },
        **more,
    }
    return Config.model_validate_json(json.dumps(values))


def context(toy: Any, path: Path, **more: Any) -> StepContext:
    given = {"model": toy.model, "prompts": toy.prompts, "validation": toy.prompts}
    given["truth"] = toy.truth
    inputs = {
        name: SimpleNamespace(path=one.path, facts={}, ref=f"{name}:v1")
        for name, one in given.items()
    }
    return StepContext(run_dir=path, inputs=inputs, **{"outputs": ("model",), **more})


def train(toy: Any, path: Path, config: Config, **more: Any) -> StepContext:
    ctx = context(toy, path, **more)
    try:
        recipe.run(config, ctx)
    finally:
        ctx.metrics.close()
    return ctx


def digest(ctx: StepContext) -> str:
    return ctx.output("model").facts["weights_digest"]


def lines(path: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock and the wire decide."""
    return [
        {name: value for name, value in line.items() if not any(x in name for x in CLOCK)}
        for line in read_metrics(path / "metrics.jsonl")
    ]


@pytest.fixture(autouse=True)
def no_lots(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request after the other, so that a script of faults meets the same ones every time."""
    monkeypatch.setattr(reward_pool, "AT_ONCE", 1)
    monkeypatch.setattr(faulty.http_client, "MAX_ANSWER_BYTES", 2**20)


@pytest.fixture(scope="module")
def whole(small_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    """A run in which nothing goes wrong."""
    torch.set_num_threads(1)
    with faulty.Faulty() as server:
        return train(small_toy, tmp_path_factory.mktemp("whole"), settings(server.port))


def test_it_learns_what_the_reward_model_likes(whole: StepContext) -> None:
    assert whole.figures["reward_after"] > whole.figures["reward_before"] + 5
    told = read_metrics(whole.run_dir / "metrics.jsonl")
    trained = [line for line in told if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    assert [line["prompts"] for line in trained] == [6, 12, 18, 24]
    first = trained[0]
    assert first["kl_to_start"] == 0 < trained[-1]["kl_to_start"]
    assert first["reward_min"] < first["reward_mean"] < first["reward_kept_mean"]
    assert first["reward_kept_mean"] < first["reward_max"]
    assert first["bound_win_rate"] == pytest.approx(0.7)
    assert {"truth_helpfulness_gain", "truth_verbosity_after"} <= set(whole.figures)
    assert [line["step"] for line in told if "validation_reward_mean" in line] == [0, 2, 4]


def test_best_and_worst_are_shown_and_the_run_is_drawn(whole: StepContext) -> None:
    tables = sorted((whole.run_dir / "samples").glob("step-*"))
    assert [path.name for path in tables] == [f"step-{step:08d}.jsonl" for step in (1, 2, 3, 4)]
    assert "| before | after 4 steps |" in (whole.run_dir / "samples/samples.md").read_text()
    rows = [json.loads(line) for line in tables[0].read_text().splitlines()]
    rows, group = rows[:8], rows[8:]
    assert {row["group"] for row in group} == {group[0]["group"]}
    assert [row["whole_group"] for row in group] == [4] * 4
    rewards = [row["reward"] for row in rows]
    assert rewards == sorted(rewards, reverse=True)
    assert rows[0]["kept"]
    assert not rows[-1]["kept"]
    assert all(row["reward"] == sum(map(ord, row["response"])) / 8 for row in rows)
    held_out = (whole.run_dir / "samples" / "validation-00000004.jsonl").read_text().splitlines()
    assert {"prompt", "before", "after", "rewards", "truth"} == json.loads(held_out[0]).keys()
    assert (whole.run_dir / "plots" / "rs.png").stat().st_size > 10_000


def test_the_product_says_how_it_came_to_be(small_toy: Any, whole: StepContext) -> None:
    output = whole.output("model")
    assert output.facts["weights_digest"] == weights_digest(output.path)
    assert output.facts["parent_weights_digest"] == weights_digest(small_toy.model.path)
    assert output.facts["reward_model_digest"] == faulty.MODEL
    assert (output.facts["steps"], output.facts["prompts"]) == (4, 24)


def test_passing_faults_of_every_kind_change_nothing(
    small_toy: Any, whole: StepContext, tmp_path: Path
) -> None:
    quick = [fault for fault, kind in faulty.FAULTS.values() if "timeout" not in kind]
    spread = itertools.chain.from_iterable((None, fault) for fault in [*quick, *quick])
    with faulty.Faulty(script=iter(spread)) as server:
        ctx = train(small_toy, tmp_path, settings(server.port, waiting={"tries": 8}))
    assert digest(ctx) == digest(whole)
    assert lines(tmp_path) == lines(whole.run_dir)
    counted = read_metrics(tmp_path / "metrics.jsonl")
    retries = sum(line.get("rm_retries", 0) for line in counted)
    failed = sum(value for line in counted for name, value in line.items() if "_failed_" in name)
    assert retries == failed > 8


@pytest.fixture(scope="module")
def continued() -> set[str]:
    """The states, by their digests, that were continued to the bit."""
    return set()


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_stops_the_run_and_it_resumes_to_the_bit(
    small_toy: Any, whole: StepContext, tmp_path: Path, continued: set[str], name: str
) -> None:
    """Faults that leave the very same state are continued once."""
    fault, kind = faulty.FAULTS[name]
    hasty = {"waiting": {"timeout": 1.0}} if kind == "timeout" else {}

    def script() -> Iterator[Any]:
        yield from [None] * 5  # three lots of the first validation, two of the first step
        yield from faulty.forever(fault)

    with faulty.Faulty(script=script()) as server:
        with pytest.raises(RewardUnavailable, match=r"gave no usable answer \(3 tries"):
            train(small_toy, tmp_path, settings(server.port, **hasty))
        assert not list((tmp_path / "staging" / "1" / "model").iterdir())
        counted = read_metrics(tmp_path / "metrics.jsonl")[-1]
        failed = [value for name, value in counted.items() if name.startswith("rm_failed_")]
        assert sum(failed) >= 3
        left = f"{digest_tree(tmp_path / 'checkpoints')[0]} {lines(tmp_path)}"
        if left in continued:
            return
        continued.add(left)
        server.script = iter(())
        again = train(small_toy, tmp_path, settings(server.port), attempt=2)
    assert digest(again) == digest(whole)
    assert lines(tmp_path) == lines(whole.run_dir)


def test_a_server_that_dies_for_good_leaves_a_state_that_another_one_continues(
    small_toy: Any, whole: StepContext, tmp_path: Path
) -> None:
    with faulty.Faulty() as server:
        server.script = iter([None] * 5 + [lambda call: server.die()])
        with pytest.raises(RewardUnavailable, match=r"unreachable|disconnected"):
            train(small_toy, tmp_path, settings(server.port))
    newest = context(small_toy, tmp_path, attempt=2).checkpoints.newest()
    assert newest.step == 1  # no step is due before the second: it was saved for want of scores
    with faulty.Faulty() as other:
        again = train(small_toy, tmp_path, settings(other.port), attempt=2)
    assert digest(again) == digest(whole)


def test_nothing_there_is_told_within_the_deadline(small_toy: Any, tmp_path: Path) -> None:
    with faulty.Faulty() as gone:
        port = gone.port
    with pytest.raises(RewardUnavailable, match=r"not ready within 0.3 s"):
        train(small_toy, tmp_path, settings(port, waiting={"ready_seconds": 0.3}))


def test_another_reward_model_does_not_continue_a_run(small_toy: Any, tmp_path: Path) -> None:
    with faulty.Faulty() as server:
        server.script = iter([None] * 5 + [faulty.FAULTS["500"][0]] * 3)
        with pytest.raises(RewardUnavailable):
            train(small_toy, tmp_path, settings(server.port))
        server.health = {**server.health, "model": "sha256:bbbb"}
        with pytest.raises(InputError, match=r"another reward model.*sha256:bbbb.*sha256:aaaa"):
            train(small_toy, tmp_path, settings(server.port), attempt=2)


def test_a_response_that_the_reward_model_cannot_read_is_refused_before_it_is_drawn(
    small_toy: Any, tmp_path: Path
) -> None:
    with faulty.Faulty() as server:
        server.health = {**server.health, "max_tokens": 30}
        with pytest.raises(InputError, match="the reward model reads 30 tokens") as caught:
            train(small_toy, tmp_path, settings(server.port))
    [problem] = caught.value.problems
    assert problem.key == "model.rs.length_params.max_length"
    assert server.requests == 0  # of scores: none was drawn


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_and_continued_ends_bit_identical(
    small_toy: Any, whole: StepContext, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    ctx = context(small_toy, tmp_path, stop=stop)

    def watch(done: int, _total: int, **_figures: float) -> None:
        stop.requested = done >= step

    monkeypatch.setattr(ctx, "progress", watch)
    with faulty.Faulty() as server:
        with pytest.raises(Interrupted):
            recipe.run(settings(server.port), ctx)
        ctx.metrics.close()
        again = train(small_toy, tmp_path, settings(server.port), attempt=2)
    assert digest(again) == digest(whole)
    assert lines(tmp_path) == lines(whole.run_dir)


def adapter_settings(port: int) -> Config:
    lora = {"target_modules": ["all"], "adapter_dim": 4, "row_init_method": "normal"}
    config = settings(port).model_dump(mode="json")
    config["model"]["peft"] |= {"peft_scheme": "lora", "lora_tuning": lora}
    return Config.model_validate_json(json.dumps(config))


def test_adapters_are_trained_beside_one_copy_of_the_weights(
    small_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped and goes on has one copy too, and ends with the same adapters."""
    held, report, stop = [], recipe.report_step, Stop()

    def look(*given: Any, **named: Any) -> None:
        held.append(count_parameter_bytes() - before)
        report(*given, **named)

    model, _ = load_model(small_toy.model.path, ddp=False)
    weights = sum(one.nbytes for one in model.parameters())
    before = count_parameter_bytes()
    stopped = context(small_toy, tmp_path / "stopped", stop=stop, outputs=("adapter",))
    monkeypatch.setattr(
        stopped, "progress", lambda done, _total, **_: setattr(stop, "requested", done >= 3)
    )
    with faulty.Faulty() as server:
        config = adapter_settings(server.port)
        with monkeypatch.context() as patch:
            patch.setattr(recipe, "report_step", look)
            ctx = train(small_toy, tmp_path / "whole", config, outputs=("adapter",))
        with pytest.raises(Interrupted):
            recipe.run(config, stopped)
        stopped.metrics.close()
        again = train(small_toy, stopped.run_dir, config, outputs=("adapter",), attempt=2)
    assert weights < held[-1] < 1.3 * weights
    told = [line for line in lines(ctx.run_dir) if "loss" in line]
    # B begins with numbers, so that the start is the base with its adapters and not the base
    assert told[0]["kl_to_start"] == 0 < told[-1]["kl_to_start"]
    assert lines(again.run_dir) == lines(ctx.run_dir)
    folder, continued = (read_lora(one.output("adapter").path) for one in (ctx, again))
    assert folder.base
    assert folder.base.weights_digest == weights_digest(small_toy.model.path)
    assert all(torch.equal(continued.tensors[name], one) for name, one in folder.tensors.items())
    assert ctx.output("adapter").facts["steps"] == STEPS


def test_a_stop_while_the_server_is_waited_for_is_heard(small_toy: Any, tmp_path: Path) -> None:
    stop = Stop()

    def busy(call: Any) -> None:
        stop.requested = True
        call.send("{}", "503 Busy")

    with faulty.Faulty(script=faulty.forever(busy)) as server:
        patient = {"first_pause": 30, "longest_pause": 60, "tries": 50}
        with pytest.raises(Interrupted, match="while the reward model was waited for"):
            train(small_toy, tmp_path, settings(server.port, waiting=patient), stop=stop)


def test_a_sampler_that_says_other_log_probs_is_refused(
    small_toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipe.open_engine

    def stale(*given: Any, **named: Any) -> Any:
        engine = real(*given, **named)
        generate = engine.generate

        def shifted(*words: Any, **options: Any) -> Any:
            groups = generate(*words, **options)
            for sample in itertools.chain.from_iterable(groups):
                sample.log_probs[:] = [value - 0.01 for value in sample.log_probs]
            return groups

        engine.generate = shifted
        return engine

    monkeypatch.setattr(recipe, "open_engine", stale)
    with (
        faulty.Faulty() as server,
        pytest.raises(StepFailed, match=r"token_mult_prob_error.*got 1\.0100"),
    ):
        train(small_toy, tmp_path, settings(server.port))


def test_prompts_that_do_not_fit_are_refused_with_their_lines(
    small_toy: Any, tmp_path: Path
) -> None:
    rows = (small_toy.prompts.path / "prompts.jsonl").read_text().splitlines()
    long = json.dumps({"messages": [{"role": "user", "content": "Describe " + "the river " * 60}]})
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join([rows[0], long, rows[1], long]) + "\n")
    ctx = context(small_toy, tmp_path / "run")
    ctx.inputs["prompts"] = SimpleNamespace(path=folder, facts={})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the prompt leaves no room") as caught:
        recipe.run(settings(9), ctx)
    assert "rows.jsonl:4" in str(caught.value)


def test_a_step_of_more_prompts_than_there_are_is_refused(small_toy: Any, tmp_path: Path) -> None:
    config = settings(9, rs={"num_rollout_samples": 60, "top_n_rollouts": 1})
    once = config.model_copy(
        update={"model": config.model.model_copy(update={"data": type(config.model.data)()})}
    )
    with pytest.raises(InputError, match=r"more prompts than there are; got 60; allowed: up to 24"):
        recipe.run(once, context(small_toy, tmp_path))


def test_nothing_that_is_not_finite_is_kept_and_the_run_goes_on(
    small_toy: Any, tmp_path: Path
) -> None:
    with faulty.Faulty() as server:
        config = settings(server.port)
        values = config.model_dump(mode="json")
        values["trainer"]["rs"] |= {"max_steps": 2, "val_check_interval": 2, "save_interval": 1}
        config = Config.model_validate_json(json.dumps(values))
        hit = tmp_path / "hit"
        fail_at_every_spot(lambda: train(small_toy, hit, config), hit, last=2, spots=SAMPLING_SPOTS)
        after = train(small_toy, hit, config)
        assert digest(after) == digest(train(small_toy, tmp_path / "plain", config))


def test_it_trains_on_a_card_as_on_the_cpu(
    small_toy: Any, whole: StepContext, tmp_path: Path
) -> None:
    with faulty.Faulty() as server, card():
        ctx = train(small_toy, tmp_path, settings(server.port))
    for ours, theirs in zip(lines(ctx.run_dir), lines(whole.run_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_mix_of_devices_ends_the_run(small_toy: Any, tmp_path: Path) -> None:
    with faulty.Faulty() as server:
        fail_where_devices_mix(lambda: train(small_toy, tmp_path, settings(server.port)))
