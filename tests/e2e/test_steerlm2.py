"""sft/steerlm2 from its inputs to its product, on a model small enough for a unit test."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import steerlm2_world
from card import MixedDevicesError, card, fail_where_devices_mix
from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.planning.rerun import plan_rerun
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker import main as worker_main
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import WEIGHTS, weights_digest
from nemotron_style.steps.blocks.checkpoint.torch_dist_stream import read_full
from nemotron_style.steps.blocks.data.steerlm2_row import LOG_Q
from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.loss.steerlm2 import baseline
from nemotron_style.steps.blocks.training import training_state
from nemotron_style.steps.sft.steerlm2 import best_model, recipe
from nemotron_style.steps.sft.steerlm2.batch import Batch
from nemotron_style.steps.sft.steerlm2.check import check_start
from nemotron_style.steps.sft.steerlm2.metrics import compute_metrics
from nonfinite import fail_at_every_spot


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return steerlm2_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Two epochs, six steps, nothing in between."""
    return world.train_in(tmp_path_factory.mktemp("whole"), "trainer.sft.max_epochs=2")


def product(ctx):
    return ctx.output("model").facts["weights_digest"]


def test_distance_falls_and_the_best_model_is_produced(world, whole):
    output = whole.output("model")
    assert whole.figures["distance_after"] < 0.9 * whole.figures["distance_before"]
    assert whole.figures["sampler_gap"] < 1e-4
    assert output.facts["parent_weights_digest"] == world.model.facts["weights_digest"]
    assert output.facts["weights_digest"] == weights_digest(output.path)
    assert output.facts["weights_digest"] != output.facts["parent_weights_digest"]
    names = sorted(path.name for path in output.path.iterdir())
    assert names == ["model_config.json", "tokenizer", "weights"]
    assert (output.path / "tokenizer" / "chat_template.jinja").is_file()


def test_metrics_tell_every_step_and_every_validation(whole):
    lines = read_metrics(whole.run_dir / "metrics.jsonl")
    trained = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    validated = {line["step"]: line for line in lines if "validation_distance" in line}
    assert sorted(validated) == [0, 2, 4, 6]
    best = min(validated, key=lambda step: validated[step]["validation_distance"])
    assert whole.output("model").facts["best_step"] == best
    wanted = {"train_mean_drift", "train_effective_sample_size", "lr", "grad_norm"}
    assert wanted <= trained[0].keys()
    assert trained[0]["train_sampler_gap"] < 1e-4 < trained[-1]["train_sampler_gap"]
    assert (whole.run_dir / "plots" / "steerlm2.png").stat().st_size > 10_000
    table = (whole.run_dir / "samples" / "samples.md").read_text()
    assert f"| prompt | before | after {best} steps |" in table
    kept = json.loads((whole.run_dir / "samples" / "weights.json").read_text())
    assert list(kept["shares"]) == ["0", "2", "4", "6"]
    for group, start in zip(kept["groups"], kept["shares"]["0"], strict=True):
        assert sum(group["weights"]) == pytest.approx(1, abs=1e-4)
        assert start == pytest.approx([1 / len(start)] * len(start), abs=1e-4)  # it is the sampler


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_stopped_and_continued_ends_bit_identical(world, whole, stop_at, tmp_path, monkeypatch):
    ctx = world.context(tmp_path)
    log = ctx.metrics.log
    monkeypatch.setattr(
        ctx.metrics,
        "log",
        lambda step, **numbers: (
            log(step, **numbers),
            setattr(ctx.stop, "requested", step >= stop_at),
        ),
    )
    with pytest.raises(Interrupted, match=f"after step {stop_at} of 6"):
        recipe.run(steerlm2_world.settings("trainer.sft.max_epochs=2"), ctx)
    ctx.metrics.close()
    again = world.train_in(tmp_path, "trainer.sft.max_epochs=2", attempt=2)
    assert product(again) == product(whole)
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [line["step"] for line in read_metrics(whole.run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("broken_call", ["save_state", "save_model", "copy_parts"])
def test_broken_off_anywhere_and_continued_ends_bit_identical(
    world, whole, broken_call, tmp_path, monkeypatch
):
    calls = []
    module = training_state if broken_call == "save_state" else best_model
    original = getattr(module, broken_call)

    def breaks(*words, **options):
        calls.append(broken_call)
        original(*words, **options)
        if len(calls) == (1 if broken_call == "copy_parts" else 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, broken_call, breaks)
    with pytest.raises(KeyboardInterrupt):
        world.train_in(tmp_path, "trainer.sft.max_epochs=2")
    monkeypatch.undo()
    again = world.train_in(tmp_path, "trainer.sft.max_epochs=2", attempt=2)
    assert product(again) == product(whole)


def test_kept_model_that_was_damaged_is_never_replaced_by_another(world, tmp_path, monkeypatch):
    def breaks(*_words, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(best_model, "copy_parts", breaks)
    with pytest.raises(KeyboardInterrupt):
        world.train_in(tmp_path)
    monkeypatch.undo()
    for weights in tmp_path.glob("checkpoints/best/checkpoints/step-*/weights/*.distcp"):
        weights.write_bytes(b"damaged")
    with pytest.raises(StepFailed, match="damaged; run again with --fresh"):
        world.train_in(tmp_path, attempt=2)


def test_size_of_a_pass_does_not_change_the_model(world, whole, tmp_path):
    small = world.train_in(
        tmp_path,
        "trainer.sft.max_epochs=2",
        "model.steerlm2.micro_batch_size=3",
        "model.steerlm2.forward_micro_batch_size=2",
    )
    expected = dict(read_full(whole.output("model").path / WEIGHTS))
    for name, tensor in read_full(small.output("model").path / WEIGHTS):
        torch.testing.assert_close(tensor, expected[name], atol=2e-5, rtol=0)


def test_training_that_only_harms_produces_the_start(world, tmp_path):
    harmed = world.train_in(tmp_path, "model.optim.lr=0.9", "model.optim.sched.min_lr=0.9")
    assert harmed.output("model").facts["best_step"] == 0
    assert product(harmed) == world.model.facts["weights_digest"]


def test_data_sampled_from_another_model_is_refused_unless_allowed(world, tmp_path):
    other = world.data("other", world.train, sampler_digest="sha256:" + "0" * 64)
    with pytest.raises(InputError, match=r"another model than.*allow_other_sampler"):
        world.train_in(tmp_path / "a", data=other)
    assert not (tmp_path / "a" / "checkpoints").exists()
    world.train_in(tmp_path / "b", "model.steerlm2.allow_other_sampler=true", data=other)


def test_log_probs_of_another_text_are_refused_before_any_update(world, tmp_path):
    rows = copy.deepcopy(world.train)
    for row in rows:
        row["responses"][0][LOG_Q] -= 0.01
    data = world.data("shifted", rows)
    with pytest.raises(InputError, match=r"first batch: .*differ by rounding.*tokenizer"):
        world.train_in(tmp_path, data=data)
    assert not (tmp_path / "checkpoints").exists()
    world.train_in(tmp_path, "model.steerlm2.sampler_tolerance=0.1", data=data)


def test_the_noise_of_bfloat16_in_long_responses_is_no_other_text():
    def measured(per_token, tokens=400.0, offset=0.0):
        shape, generator = (128, 10), torch.Generator().manual_seed(1)
        noise_PG = per_token * tokens**0.5 * torch.randn(shape, generator=generator).double()
        zeros_PG = torch.zeros(shape, dtype=torch.float64)
        noise_PG[0, 0] += offset
        batch = Batch([], zeros_PG + 0.1, zeros_PG, zeros_PG + tokens)
        b_PG = baseline(noise_PG, zeros_PG)
        return compute_metrics(batch, noise_PG, b_PG=b_PG, loss_PG=zeros_PG)

    settings = steerlm2_world.settings
    half = settings('trainer.precision="bf16"')
    noisy = measured(3e-3)
    assert noisy.sampler_gap > half.sampler_tolerance  # what a bound on the baselines would refuse
    check_start(half, noisy, "rows")
    for wrong in (measured(3e-2), measured(3e-3, offset=400 * 0.05)):
        with pytest.raises(InputError, match="95% of the responses"):
            check_start(half, wrong, "rows")
    with pytest.raises(InputError, match="95% of the responses"):
        check_start(settings(), noisy, "rows")


def test_bad_rows_are_refused_before_training(world, tmp_path):
    rows = copy.deepcopy(world.train)
    rows[3]["responses"].pop()
    with pytest.raises(InputError, match=r"rows\.jsonl:4: responses: all rows"):
        world.train_in(tmp_path, data=world.data("uneven", rows))


def test_bad_rows_are_left_out_where_that_is_asked_for(world, tmp_path):
    rows = copy.deepcopy(world.train)
    rows[3]["responses"].pop()
    skip = ('model.data.on_bad_row="skip"', "trainer.sft.max_steps=1")
    ctx = world.train_in(tmp_path, *skip, "model.data.max_bad_rows=1", data=world.data("odd", rows))
    told = ctx.output("model").facts["data_rows"]
    assert (told["rows"], told["bad"], len(told["first_bad"])) == (12, 1, 1)
    with pytest.raises(InputError, match=r"model\.data\.max_bad_rows: more rows are bad"):
        world.train_in(tmp_path, *skip, data=world.data("odd", rows))


def test_rows_longer_than_the_model_are_counted_and_refused(world, tmp_path):
    with pytest.raises(InputError, match="12 bad rows in all, 10 shown"):
        world.train_in(tmp_path, "model.encoder_seq_length=8")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.devices=2", "another number of processes"),
        ('trainer.accelerator="gpu"', "trains on cpu"),
        ('trainer.precision="bf16"', "trainer.precision=32"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a CPU cannot do")
def test_machine_that_does_not_fit_is_refused(world, override, says, tmp_path):
    with pytest.raises(InputError, match=says):
        world.train_in(tmp_path, override)


def test_few_effective_samples_are_warned_of(world, tmp_path, capsys):
    world.train_in(tmp_path, "model.steerlm2.effective_sample_floor=3.9", "trainer.sft.max_steps=1")
    assert "warning: mean effective sample size" in capsys.readouterr().out


def test_logs_are_copied_where_the_reference_would_write_them(world, tmp_path):
    target = tmp_path / "logs"
    world.train_in(
        tmp_path / "run",
        f'exp_manager.explicit_log_dir="{target}"',
        "trainer.sft.max_steps=1",
    )
    assert {"metrics.jsonl", "plots"} <= {path.name for path in target.iterdir()}


def test_repeating_samples_needs_to_be_asked_for(world, tmp_path):
    short = world.train_in(tmp_path / "a", "trainer.sft.max_steps=5")
    assert short.figures["steps"] == 3
    repeated = world.train_in(tmp_path / "b", "trainer.sft.max_steps=5", "model.data.sample=true")
    assert repeated.figures["steps"] == 5


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains(world, tmp_path):
    """The whole step under torchrun, the layers divided over two pipeline stages.

    Then the run of one process is repeated from its plan, in this process, to the bit.
    """
    world.data("train", world.train)
    world.data("validation", world.validation)
    weights = {}
    for processes in (1, 2):
        store = tmp_path / str(processes)
        shutil.copytree(world.store.root, store)
        subprocess.run(
            [
                *(sys.executable, "-m", "nemotron_style.runtime"),
                *("steps", "run", "sft/steerlm2", "-c", "tiny", "--name", "trained"),
                *("-i", "model=start", "-i", "data=train", "-i", "validation=validation"),
                "trainer.sft.max_epochs=2",
                "model.data.train_ds.global_batch_size=4",
                f"trainer.devices={processes}",
                f"model.pipeline_model_parallel_size={processes}",
            ],
            env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=600,
        )
        weights[processes] = dict(read_full(Store(store).resolve("trained").path / WEIGHTS))
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[2][name], tensor, atol=2e-5, rtol=0)
    repeat_to_the_bit(Store(tmp_path / "1"))


def repeat_to_the_bit(store):
    catalog, first = load_catalog(), store.resolve("trained")
    rerun = plan_rerun(find_run(store, "trained"), store=store, catalog=catalog)
    assert rerun.surroundings == ()
    plan = rerun.run.plan
    assert RunFolder(plan.run_dir).reserve(plan)
    assert worker_main.main([str(plan.run_dir / "plan.json")]) == 0
    again = store.resolve("trained.rerun")
    assert again.digest == first.digest
    assert again.record.producer.rerun_of == first.record.producer.run_id


def test_nothing_that_is_not_finite_is_kept_and_the_run_goes_on(world, tmp_path):
    intervals = ("trainer.sft.save_interval=1", "trainer.sft.val_check_interval=1")
    short = ("trainer.sft.max_steps=2", *intervals)
    hit = tmp_path / "hit"
    fail_at_every_spot(lambda: world.train_in(hit, *short), hit, last=2)
    after = product(world.train_in(hit, *short))
    assert after == product(world.train_in(tmp_path / "plain", *short))


def test_it_trains_on_a_card_as_on_the_cpu(world, whole, tmp_path):
    with card():
        ctx = world.train_in(tmp_path, "trainer.sft.max_epochs=2")
    for ours, theirs in zip(steps_of(ctx), steps_of(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_mask_left_on_the_card_is_noticed(world, tmp_path, monkeypatch):
    plain = steerlm2.response_logprob
    monkeypatch.setattr(
        steerlm2, "response_logprob", lambda logprobs, mask: plain(logprobs, mask.to("meta"))
    )
    with card(), pytest.raises(MixedDevicesError, match="mul"):
        world.train_in(tmp_path)


def test_a_mix_of_devices_ends_the_run(world, tmp_path):
    fail_where_devices_mix(lambda: world.train_in(tmp_path))


def steps_of(ctx):
    """The metrics without what the clock decides."""
    return [
        {name: value for name, value in line.items() if "per_second" not in name}
        for line in ctx.metrics.history()
    ]
