"""What is suggested after a run goes on from it, and names what the run itself was given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli import summary


def suggest(monkeypatch: pytest.MonkeyPatch, step: str, kind: str, **inputs: str) -> list[str]:
    """The commands after a run of ``step`` that made ``kind`` of ``inputs`` (kinds by slot)."""
    store = SimpleNamespace(resolve=lambda source: SimpleNamespace(ref=f"{source}:v1"))
    monkeypatch.setattr(summary, "open_store", lambda _plan: store)
    given = [
        SimpleNamespace(slot=slot, kind=of, source=f"the-{slot}") for slot, of in inputs.items()
    ]
    plan = SimpleNamespace(step=step, config_name="default", inputs=given)
    made = {"model": {"ref": "made:v1", "kind": kind}}
    outcome: Any = SimpleNamespace(outputs=made, run=SimpleNamespace(plan=plan))
    commands = [command for _, command in summary.suggest_commands(outcome, load_catalog())]
    return [each.removeprefix("nemotron-style steps run ") for each in commands[2:]]


def test_a_model_that_was_only_converted_is_trained_next(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = suggest(
        monkeypatch, "convert/hf_to_megatron", "checkpoint_megatron", model="checkpoint_hf"
    )
    assert first == "sft/chat -i model=made:v1 -i data=REF"


def test_a_model_that_was_written_out_is_not_read_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = suggest(
        monkeypatch, "convert/megatron_to_hf", "checkpoint_hf", model="checkpoint_megatron"
    )
    assert commands
    assert not any(each.startswith("convert/hf_to_megatron") for each in commands)


def test_a_trained_model_is_measured_against_its_start_or_written_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = suggest(
        monkeypatch,
        "sft/chat",
        "checkpoint_megatron",
        model="checkpoint_megatron",
        data="training_jsonl",
    )
    assert commands[0] == "eval/arena -i model=made:v1 -i baseline=the-model:v1 -i prompts=REF"
    assert "convert/megatron_to_hf -i model=made:v1" in commands


def test_an_adapter_is_merged_into_the_base_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = suggest(monkeypatch, "rl/rlhf", "checkpoint_lora", model="checkpoint_megatron")
    assert commands[0] == "convert/merge_lora -i adapter=made:v1 -i model=the-model:v1"
    (sft,) = [each for each in commands if each.startswith("sft/chat")]
    assert "-i model=the-model:v1 -i data=REF" in sft
