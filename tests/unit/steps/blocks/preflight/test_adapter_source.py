"""Before a merge or a training: whether an adapter can be read, and is one of this base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_folder import CONFIG, write_json
from nemotron_style.runtime.step.compiled import JobSite
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.preflight.adapter_source import check_adapter
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.peft_config import FOREIGN, AdapterBase
from nemotron_style.steps.rl.rlhf import preflight as rl_preflight
from nemotron_style.steps.rs.actor import config as rs_config
from nemotron_style.steps.rs.actor import preflight as rs_preflight
from nemotron_style.steps.sft.chat.config import Config
from nemotron_style.steps.sft.chat.preflight import compile_job
from rlhf_world import settings as rlhf_settings
from small_model import ONE_LAYER

OWN, OTHER = "sha256:" + "0" * 64, "sha256:" + "1" * 64
LORA = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 4, "alpha": 8.0}}
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(folder / "adapter_config.json", PLAIN)
    (folder / "adapter_model.safetensors").touch()
    return folder


def bind(adapter: Path, sizes: ModelConfig = ONE_LAYER) -> None:
    base = AdapterBase(weights_digest=OWN, ref="base:v1", sizes=sizes)
    (adapter / "base.json").write_text(base.model_dump_json())


def commit_base(root: Path, digest: str) -> Path:
    """A checkpoint in a store, whose record has the digest of its weights."""
    store = Store(root / "store")
    folder = store.root / "files"
    folder.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(ONE_LAYER.model_dump()))
    artifact = store.commit(
        folder, name="base", kind="checkpoint_megatron", facts={"weights_digest": digest}
    )
    return artifact.path


def test_another_base_is_refused_with_both_digests(adapter: Path, tmp_path: Path) -> None:
    bind(adapter)
    base = commit_base(tmp_path, OTHER)
    notes, [problem] = check_adapter(adapter, base)
    assert notes == (f"adapter: rank 4, alpha 8, of {adapter}",)
    assert problem.what == "the adapter belongs to another base than base:v1"
    assert (problem.got, problem.allowed) == (f"a base with weights {OTHER}", OWN)
    assert "base:v1" in problem.fix


def test_its_own_base_is_taken(adapter: Path, tmp_path: Path) -> None:
    bind(adapter)
    assert check_adapter(adapter, commit_base(tmp_path, OWN))[1] == []
    assert check_adapter(adapter, None)[1] == []


def test_of_a_base_that_will_be_converted_first_sizes_are_compared(
    adapter: Path, tmp_path: Path
) -> None:
    bind(adapter)
    hub = tmp_path / "hub"
    hub.mkdir()
    write_json(hub / "config.json", {**CONFIG, "num_hidden_layers": 9})
    found = {one.key: (one.got, one.allowed) for one in check_adapter(adapter, hub)[1]}
    assert found["sizes.num_layers"] == ("9", "1")


def test_an_adapter_of_the_world_is_taken_with_a_note(adapter: Path, tmp_path: Path) -> None:
    notes, problems = check_adapter(adapter, commit_base(tmp_path, OTHER))
    assert notes[1:] == (FOREIGN,)
    assert problems == []


def test_what_its_small_files_say_is_reported_at_once(adapter: Path) -> None:
    write_json(adapter / "adapter_config.json", {**PLAIN, "use_dora": True, "bias": "all"})
    assert [one.key for one in check_adapter(adapter, None)[1]] == ["use_dora", "bias"]
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    [problem] = check_adapter(adapter, None)[1]
    assert problem.what.startswith("pickled weights are not read")


def test_a_training_is_refused_for_the_adapter_that_it_would_go_on_from(
    adapter: Path, tmp_path: Path
) -> None:
    bind(adapter)
    base = commit_base(tmp_path, OTHER)
    config = Config.model_validate({"trainer": {"precision": 32}, "model": {"peft": LORA}})
    site = JobSite(
        executor="local",
        inputs={"model": "checkpoint_megatron", "adapter": "checkpoint_lora"},
        files={"model": base, "adapter": adapter},
    )
    job = compile_job(config, site)
    [problem] = job.problems
    assert (problem.got, problem.allowed) == (f"a base with weights {OTHER}", OWN)
    assert f"adapter: rank 4, alpha 8, of {adapter}" in job.notes


def test_reinforcement_learning_with_adapters_holds_no_second_copy(tmp_path: Path) -> None:
    base = commit_base(tmp_path, OWN)
    site = JobSite("local", inputs={"model": "checkpoint_megatron"}, files={"model": base})
    peft = "policy.megatron_cfg.peft.enabled"
    for peft_of_rs, adapted in (({}, "false"), (LORA, "true")):
        values = {"trainer": {"precision": "32"}, "model": {"peft": peft_of_rs}}
        rs = rs_preflight.compile_job(rs_config.Config.model_validate(values), site)
        rl = rl_preflight.compile_job(rlhf_settings(f"{peft}={adapted}"), site)
        for job in (rs, rl):
            [memory] = [note for note in job.notes if note.startswith("memory: about")]
            assert ("reference" in memory) == (adapted == "false"), memory
