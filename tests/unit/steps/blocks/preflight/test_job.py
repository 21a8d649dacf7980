"""A dry run says what a job takes and what is wrong with it, and writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_folder import CONFIG, write_json, write_rows
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.steps.blocks.preflight import job
from nemotron_style.steps.blocks.preflight.job import Rows
from nemotron_style.steps.blocks.preflight.machine import Machine
from nemotron_style.steps.blocks.preflight.memory import Load
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.settings.row_config import LongRowReading, RowReading
from small_model import ONE_LAYER

PADDED = "model.data.train_ds.packed_sequence=false"
DryRun = Callable[..., tuple[str, str]]


@pytest.fixture
def dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> DryRun:
    """``dry_run(*words, code=)``: standard output and error of a dry run in an empty project."""
    (tmp_path / "env.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    set_machine(monkeypatch, Machine(gpus=0, ram_bytes=8 * 10**9))

    def run(*words: str, code: int = 0) -> tuple[str, str]:
        before = sorted(tmp_path.rglob("*"))
        assert main(["steps", "run", *words, "--dry-run"]) == code
        assert sorted(tmp_path.rglob("*")) == before, "nothing is copied, and no store is made"
        return capsys.readouterr()

    return run


def set_machine(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(job, "look_at_machine", lambda: machine)


def fill(hub: Path, rows: Path) -> tuple[str, ...]:
    small = ("model.tensor_model_parallel_size=1", "trainer.devices=1", "trainer.precision=32")
    return ("-i", f"model={hub}", "-i", f"data={rows}", *small)


def test_a_folder_of_hugging_face_is_converted_and_told_about(hub: Path, dry_run: DryRun) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    shown, told = dry_run("sft/chat", *fill(hub, rows))
    assert told == ""
    assert "run     convert/hf_to_megatron (default)" in shown
    assert f"adopt   {hub} as hub (checkpoint_hf)" in shown
    assert f"note      model: llama, 94,208 weights, of {hub}, to be converted first\n" in shown
    assert "note      data: 130 rows, about " in shown
    assert "note      memory: about 0.00" in shown


def test_more_copies_of_the_model_than_an_update_has_samples_are_refused() -> None:
    many = job.Job(Load(half=False, tensor=2), machines=2, processes=4, batch=("batch", 3))
    [problem] = job.compile_checks(many, JobSite("slurm")).problems
    assert "got 4 for 3 (batch); allowed: up to 3" in str(problem)
    assert not job.compile_checks(replace(many, batch=("batch", 4)), JobSite("slurm")).problems


@pytest.mark.parametrize(
    ("processes", "tensor", "dropout", "notes"),
    [(4, 4, 0.1, 0), (4, 2, 0.1, 1), (2, 1, 0.0, 0), (2, 1, 0.1, 1)],
)
def test_it_is_said_where_processes_drop_other_inputs_than_one_would(
    processes: int, tensor: int, dropout: float, notes: int
) -> None:
    lora = LoraTuning(adapter_dropout=dropout)
    some = job.Job(Load(half=False, tensor=tensor, lora=lora), processes=processes)
    told = job.compile_checks(some, JobSite("slurm")).notes
    assert sum("drops 0.1 of their inputs" in note for note in told) == notes


def test_what_was_converted_already_is_not_said_to_be_converted_first(hub: Path) -> None:
    site = JobSite("local", files={"model": hub}, origins={"model": hub})
    [first, *_] = job.compile_checks(job.Job(Load(half=False)), site).notes
    assert first == f"model: llama, 94,208 weights, of {hub}"


def test_everything_that_is_wrong_is_told_at_once_after_the_plan(
    hub: Path, dry_run: DryRun
) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 40)
    write_json(hub / "config.json", CONFIG | {"num_attention_heads": 2})
    shown, told = dry_run(
        "sft/chat", "-i", f"model={hub}", "-i", f"data={rows}", "trainer.devices=6", code=2
    )
    assert "run     convert/hf_to_megatron" in shown
    lines = told.splitlines()
    assert [line for line in lines if "bfloat16 keeps float32 master weights" in line] == [lines[0]]
    assert "got 40 rows of data, and 128 are needed" in told
    assert "num_attention_heads: the model cannot be divided so; got 2; allowed: a multiple" in told
    assert "6 processes (1 machines x 6) cannot be divided into copies of a model over 4" in told
    assert "such as 8, or divide the model over a number that divides 6" in told
    assert all(line.startswith("error: sft/chat: ") for line in lines)


def test_a_checkpoint_that_cannot_be_converted_is_refused(hub: Path, dry_run: DryRun) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    write_json(hub / "config.json", CONFIG | {"model_type": "rwkv", "architectures": ["Rwkv"]})
    (hub / "tokenizer.json").unlink()
    _, told = dry_run("sft/chat", *fill(hub, rows), code=2)
    assert "rwkv" in told
    assert "has no tokenizer" in told


def test_a_job_that_does_not_fit_into_memory_is_refused_with_both_numbers(
    hub: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    set_machine(monkeypatch, Machine(gpus=0, ram_bytes=10**6))
    _, told = dry_run("sft/chat", *fill(hub, rows), PADDED, code=2)
    assert "does not fit into memory: a process takes more than this machine has" in told
    parts = "weights 0.00038, gradients 0.00038, optimizer 0.00075"
    assert f"got 0.0015 GB ({parts}); allowed: up to 0.001 GB" in told


def test_gpus_elsewhere_are_measured_by_what_the_profile_says_of_them(hub: Path) -> None:
    site = JobSite("slurm", gpus_per_node=8, gpu_memory="1M", files={"model": hub})
    [problem] = job.compile_checks(job.Job(Load(half=True)), site).problems
    assert "a process takes more than a GPU of the profile has" in str(problem)
    assert "got 0.0017 GB (weights 0.00019, gradients 0.00038, optimizer 0.0011)" in str(problem)
    assert "allowed: up to 0.001 GB" in str(problem)
    known = job.compile_checks(job.Job(Load(half=True)), JobSite("slurm", gpus_per_node=8))
    assert not known.problems


@pytest.mark.parametrize("step", ["eval/arena", "eval/steerability", "judge/card", "judge/serve"])
def test_what_samples_says_what_it_takes(
    step: str, hub: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (step, "-i", f"model={hub}", "trainer.precision=32")
    words = words if step.startswith("eval") else words[:-1]
    shown, _ = dry_run(*words)
    assert re.search(r"note      memory: about [\d.]+ GB \(weights 0.00038, weights to samp", shown)
    set_machine(monkeypatch, Machine(gpus=0, ram_bytes=10**5))
    _, told = dry_run(*words, code=2)
    assert "does not fit into memory" in told


def test_rows_that_are_longer_than_the_model_reads_are_refused(hub: Path, dry_run: DryRun) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130, words=200)
    _, told = dry_run("sft/chat", *fill(hub, rows), code=2)
    assert "tokens in one of the first 64; allowed: 128 tokens" in told
    dry_run("sft/chat", *fill(hub, rows), "model.data.long_rows=skip")


def test_of_what_another_run_makes_first_the_sizes_are_told(dry_run: DryRun) -> None:
    shown, told = dry_run("sft/chat", "-c", "tiny")
    assert told == ""
    line = "note      memory: about 0.008 GB (weights 0.002, gradients 0.002, optimizer 0.004)"
    assert f"{line} a process, beside what its rows take\n" in shown


def test_a_job_for_gpus_is_not_measured_by_the_memory_of_a_machine_without(
    hub: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    set_machine(monkeypatch, Machine(gpus=0, ram_bytes=10**6))
    _, told = dry_run("sft/chat", *fill(hub, rows)[:-1], "trainer.precision=bf16", code=2)
    assert len(told.splitlines()) == 1
    assert "needs a CUDA device" in told


def test_the_same_plan_is_made_whatever_is_said_of_it(
    hub: Path, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    here = json.loads(dry_run("sft/chat", *fill(hub, rows), PADDED, "--json")[0])
    set_machine(monkeypatch, Machine(gpus=0, ram_bytes=16 * 10**5))
    there = json.loads(dry_run("sft/chat", *fill(hub, rows), PADDED, "--json")[0])
    assert here["runs"][-1]["notes"] != there["runs"][-1]["notes"]
    assert here["runs"][-1]["run_id"] == there["runs"][-1]["run_id"]


def test_rejection_sampling_counts_its_prompts_and_its_cache(hub: Path, dry_run: DryRun) -> None:
    prompts = hub.parent / "prompts.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "What is two and two?"}]})
    prompts.write_text(f"{line}\n" * 40)
    words = ("rs/actor", "-i", f"model={hub}", "-i", f"prompts={prompts}")
    words += ("remote_rm.host=localhost", "trainer.devices=1", "trainer.precision=32")
    shown, told = dry_run(*words, code=2)
    assert "note      prompts: 40 rows" in shown
    assert "key-value cache" in shown
    assert "a step takes more prompts than there are; got 40 rows" in told


def test_a_reward_model_is_told_about_its_ratings(hub: Path, dry_run: DryRun) -> None:
    rated = hub.parent / "rated.jsonl"
    row = {"prompt": "What is two and two?", "response": "four", "helpfulness": 3}
    rated.write_text((json.dumps(row) + "\n") * 4)
    shown, told = dry_run("reward/regression", *fill(hub, rated), code=2)
    assert "note      data: 4 rows, about " in shown
    assert "got 4 rows of data" in told
    assert "run     convert/hf_to_megatron" in shown


@pytest.mark.parametrize(
    ("settings", "told"),
    [(RowReading(), 1), (LongRowReading(), 1), (LongRowReading(long_rows="skip"), 0), (None, 1)],
)
def test_long_rows_stop_a_step_that_does_not_say_what_to_do_with_them(
    settings: RowReading | None, told: int
) -> None:
    shared = SimpleNamespace(
        longest=lambda limit: limit, rows={"data": Rows(None, settings=settings)}
    )
    sample = SimpleNamespace(longest=ONE_LAYER.max_sequence_length + 1, seen=1)
    assert len(list(job.check_lengths(shared, ONE_LAYER, {"data": sample}))) == told


def test_a_pass_of_packed_rows_is_full_and_one_of_padded_rows_is_not(
    hub: Path, dry_run: DryRun
) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    shown, _ = dry_run("sft/chat", *fill(hub, rows), "model.data.train_ds.micro_batch_size=4")
    packed = re.search(r"activations ([\d.]+)", shown)
    shown, _ = dry_run("sft/chat", *fill(hub, rows), PADDED)
    padded = re.search(r"activations ([\d.]+)", shown)
    assert packed
    assert padded
    assert float(packed[1]) > 3 * float(padded[1])


def test_adapters_and_cpus_are_weighed_as_they_are(hub: Path, dry_run: DryRun) -> None:
    rows = write_rows(hub.parent / "rows.jsonl", 130)
    spread = ("model.optim.name=distributed_fused_adam", "trainer.devices=2")
    shown, _ = dry_run("sft/chat", *fill(hub, rows)[:-2], "trainer.precision=32", *spread)
    assert "optimizer 0.00075" in shown  # what is shared is shared by GPUs
    shown, _ = dry_run("sft/chat", *fill(hub, rows), "model.peft.peft_scheme=lora")
    gradients, *_ = re.findall(r"gradients ([\d.e-]+)", shown)
    assert float(gradients) < 0.00038 / 4  # of the adapters alone
