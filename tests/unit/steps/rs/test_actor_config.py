"""The settings of rs/actor as users of NeMo-Aligner type them, and what the page says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import get_key, schema_keys
from nemotron_style.steps.rs.actor.config import Config

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "steps" / "rs-actor.md"
# The keys of gpt_rs_actor.yaml, without their values.
KEYS = json.loads((ROOT / "tests" / "golden" / "gpt_rs_actor_keys.json").read_text())
KNOWN = set(schema_keys(Config))


@pytest.fixture(scope="module")
def manifest() -> Any:
    return load_catalog().find("rs/actor")


def resolve(manifest: Any, *overrides: str, name: str = "tiny") -> Any:
    return resolve_config(manifest, name=name, overrides=overrides)


def config(manifest: Any, *overrides: str) -> Any:
    return parse_config(
        load_config_class(manifest), resolve(manifest, *overrides).values, where=str
    )


def told(manifest: Any, *overrides: str, name: str = "tiny") -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(manifest, *overrides, name=name)
    return str(caught.value)


def rows() -> Iterator[tuple[str, str]]:
    """Every key of the page's tables of keys, and what the page says became of it."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            yield from ((key, cells[1]) for key in re.findall(r"`([^`]+)`", cells[0]))


SAID = dict(rows())


def field_of(key: str) -> FieldInfo | None:
    """The field of a key; that of the free table above it, if it is in one."""
    table: Any = Config
    field = None
    for part in key.split("."):
        if not (isinstance(table, type) and issubclass(table, BaseModel)):
            return field
        field = table.model_fields.get(part)
        if field is None:
            return None
        table = field.annotation
    return field


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_shipped_configs_are_valid_and_round_trip(manifest: Any, name: str) -> None:
    resolved = resolve(manifest, name=name)
    assert (
        parse_config(load_config_class(manifest), resolved.values, where=str).model_dump(
            mode="json"
        )
        == resolved.values
    )


def test_the_reference_has_these_many_keys() -> None:
    assert len(KEYS) == len(set(KEYS)) == 104


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_reference_is_what_the_page_says(manifest: Any, key: str) -> None:
    said = SAID[key]
    if said == "other":
        return
    field = field_of(key)
    assert field is not None, key
    if said == "no effect":
        assert (field.json_schema_extra or {}).get("unused"), key  # type: ignore[union-attr]
    elif said.startswith("only"):
        [value] = re.findall(r"`(.*)`", said)
        resolve(manifest, f"{key}={value}")
        other = {"true": "false", "false": "true", "1": "2"}.get(value, "other")
        assert key in told(manifest, f"{key}={other}")
    elif said == "mirror":
        value = {"model.precision": "bf16", "trainer.max_epochs": "77"}.get(key, "77")
        assert f"{key}: repeats" in told(manifest, f"{key}={value}")
    else:
        assert said == "used", key


def test_every_key_is_told_on_the_page() -> None:
    tables = {key.rpartition(".")[0] for key in KNOWN}
    assert sorted(key for key in KNOWN - tables if key not in SAID) == []


def test_nothing_on_the_page_is_made_up() -> None:
    assert [key for key in SAID if field_of(key) is None and SAID[key] != "other"] == []


def test_command_line_of_the_reference_carries_over(manifest: Any) -> None:
    resolved = resolve(
        manifest,
        "pretrained_checkpoint.restore_from_path=/models/sft",
        "exp_manager.checkpoint_callback_params.save_top_k=1",
        "exp_manager.explicit_log_dir=/results",
        "trainer.num_nodes=1",
        "trainer.devices=8",
        "trainer.rs.max_epochs=1",
        "trainer.rs.max_steps=4",
        "trainer.rs.val_check_interval=4",
        "model.micro_batch_size=1",
        "model.global_batch_size=64",
        "model.sequence_parallel=False",
        "model.encoder_seq_length=4096",
        "model.max_position_embeddings=4096",
        "model.megatron_amp_O2=True",
        "model.seed=1234",
        "model.mcore_gpt=True",
        "model.optim.bucket_cap_mb=200",
        "model.rs.offload_adam_states=False",  # its own default of True is not built
        "model.rs.num_rollout_samples=64",
        "model.rs.num_rollouts_per_prompt=4",
        "model.rs.top_n_rollouts=1",
        "model.rs.sampling_params.end_strings=['<extra_id_1>']",
        "model.data.data_prefix.train=/prompts/train.jsonl",
        "model.data.data_prefix.validation=/prompts/val.jsonl",
        "model.data.data_prefix.test=/prompts/test.jsonl",
        "remote_rm.reward_model.ip=rm.example",
        "remote_rm.reward_model.port=5555",
        name="default",
    )
    assert get_key(resolved.semantic, "model.rs.num_rollouts_per_prompt") == 4
    assert resolved.values["remote_rm"]["host"] == "rm.example"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.rs.top_n_rollouts=9"], "allowed: 1 to 8"),
        (["model.rs.top_n_rollouts=0"], "top_n_rollouts"),
        (["model.global_batch_size=36"], "a multiple of 1 that divides 48"),
        (["model.rs.top_n_rollouts=3", "model.global_batch_size=16"], "a multiple of 3"),
        (["model.rs.sampling_params.use_greedy=true"], "nothing to choose"),
        (["model.rs.sampling_params.temperature=0"], "temperature"),
        (["model.rs.length_params.min_length=65"], "allowed: 0 to 64"),
        (["trainer.rs.max_steps=-1"], "no end is given"),
        (["trainer.rs.max_epochs=1", "trainer.rs.max_steps=-1"], "repeated without end"),
        (["remote_rm.port=5555"], "a port is given and no host"),
        (["remote_rm.host=a", "remote_rm.reward_model.ip=b"], "must agree"),
        (["remote_rm.host=ftp://a"], "remote_rm.host"),
        (["remote_rm.host=a:1", "remote_rm.port=2"], "another port"),
        (["model.megatron_amp_O2=true"], "trainer.precision=bf16"),
        (["model.pipeline_model_parallel_size=2", "generation=vllm"], "generation=in_process"),
        (["model.rs.num_rollout_per_prompt=2"], "num_rollouts_per_prompt"),
        (["generation=other"], "in_process"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    manifest: Any, overrides: list[str], says: str
) -> None:
    message = told(manifest, *overrides)
    assert says in message


def test_where_the_reward_model_answers(manifest: Any) -> None:
    assert config(manifest).address is None
    host = "remote_rm.host=localhost"
    assert str(config(manifest, host).address) == "http://localhost:5555"
    assert str(config(manifest, host, "remote_rm.port=7").address) == "http://localhost:7"
    assert str(config(manifest, "remote_rm.host=a:7").address) == "http://a:7"
    assert str(config(manifest, "remote_rm.host=https://a").address) == "https://a:443"
    older = ("remote_rm.reward_model.ip=b", "remote_rm.reward_model.port=8")
    assert str(config(manifest, *older).address) == "http://b:8"


def test_how_and_how_long_is_no_part_of_the_identity(manifest: Any) -> None:
    moved = resolve(
        manifest,
        "trainer.devices=4",
        "trainer.rs.save_interval=1",
        "trainer.rs.val_check_interval=1",
        "model.micro_batch_size=1",
        "model.rs.forward_micro_batch_size=1",
        "remote_rm.waiting.tries=2",
        "remote_rm.token_env=TOKEN",
    )
    assert moved.semantic == resolve(manifest).semantic


def test_lengths(manifest: Any) -> None:
    assert config(manifest).max_new_tokens(128) == 64
    free = "model.rs.length_params.max_length=null"
    assert config(manifest, free).max_new_tokens(128) == 64
    assert config(manifest, free, "model.encoder_seq_length=40").max_new_tokens(128) == 20


def test_updates_of_a_step(manifest: Any) -> None:
    assert config(manifest).updates_per_step == 1
    assert config(manifest, "model.global_batch_size=16").updates_per_step == 3
    two = ("model.rs.top_n_rollouts=2", "model.global_batch_size=16")
    assert config(manifest, *two).updates_per_step == 6
