"""Whether this machine can run a job, without torch."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.steps.blocks.preflight import machine
from nemotron_style.steps.blocks.preflight.machine import (
    Machine,
    check_devices,
    check_vllm,
    count_gpus,
)

KEYS = ("trainer.precision", "trainer.devices")


def told(machine: Machine, *, half: bool, processes: int = 1) -> list[str]:
    problems = check_devices(machine, half=half, processes=processes, keys=KEYS, fix="take 32")
    return [str(problem) for problem in problems]


def test_bfloat16_needs_a_gpu_and_float32_runs_anywhere() -> None:
    [line] = told(Machine(gpus=0), half=True, processes=8)
    assert line.startswith("trainer.precision: bfloat16 keeps float32 master weights")
    assert "take 32, or choose a profile of a machine with GPUs" in line
    assert told(Machine(gpus=0), half=False, processes=8) == []


def test_each_process_drives_a_gpu() -> None:
    [line] = told(Machine(gpus=2), half=True, processes=8)
    assert "got 8 processes; allowed: up to 2" in line
    assert told(Machine(gpus=8), half=True, processes=8) == []


def test_what_is_not_known_is_not_refused() -> None:
    assert told(Machine(), half=True, processes=8) == []


def test_vllm_is_missed_in_this_interpreter_and_not_guessed_about_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    [problem] = check_vllm(JobSite("local"), key="generation")
    assert str(problem).startswith("generation: vLLM is not installed; set generation=in_process")
    others = (JobSite("local", python="/other/bin/python"), JobSite("local", image="x"))
    assert not [told for site in (*others, JobSite("slurm")) for told in check_vllm(site, key="x")]


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_devices_that_are_hidden_are_not_there(
    hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not count_gpus()
