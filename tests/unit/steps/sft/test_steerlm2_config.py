"""The settings of sft/steerlm2 as users of NeMo-Aligner type them."""

from pathlib import Path

import pytest
import yaml

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import flatten, get_key, schema_keys
from nemotron_style.steps.sft.steerlm2.config import Config

ROOT = Path(__file__).parents[4]
REFERENCE = ROOT.parent / "shared" / "data" / "nemo-aligner" / "gpt_sft.yaml"
PAGE = ROOT / "docs" / "steps" / "sft-steerlm2.md"


@pytest.fixture(scope="module")
def manifest():
    return load_catalog().find("sft/steerlm2")


def resolve(manifest, *overrides, name="tiny"):
    return resolve_config(manifest, name=name, overrides=overrides)


def told(manifest, *overrides, name="tiny"):
    with pytest.raises(ConfigError) as caught:
        resolve(manifest, *overrides, name=name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["default", "tiny", "tiny_iter2"])
def test_shipped_configs_are_valid_and_round_trip(manifest, name):
    resolved = resolve(manifest, name=name)
    assert (
        parse_config(load_config_class(manifest), resolved.values, where=str).model_dump(
            mode="json"
        )
        == resolved.values
    )


def test_command_line_of_the_reference_carries_over(manifest):
    resolved = resolve(
        manifest,
        "trainer.num_nodes=32",
        "trainer.devices=8",
        "trainer.precision=bf16",
        "trainer.sft.limit_val_batches=40",
        "trainer.sft.max_epochs=1",
        "trainer.sft.max_steps=800",
        "trainer.sft.val_check_interval=800",
        "trainer.sft.save_interval=800",
        "model.megatron_amp_O2=True",
        "model.tensor_model_parallel_size=8",
        "model.pipeline_model_parallel_size=8",
        "model.encoder_seq_length=4096",
        "model.data.chat=True",
        "model.data.num_workers=0",
        "model.data.chat_prompt_tokens.system_turn_start='<extra_id_0>'",
        "model.data.chat_prompt_tokens.turn_start='<extra_id_1>'",
        "model.data.chat_prompt_tokens.label_start='<extra_id_2>'",
        "model.data.train_ds.max_seq_length=4096",
        "model.data.train_ds.micro_batch_size=1",
        "model.data.train_ds.global_batch_size=128",
        "model.global_batch_size=128",
        "model.data.train_ds.index_mapping_dir=/indices",
        "model.data.train_ds.hf_dataset=True",
        "model.data.train_ds.add_eos=False",
        "model.data.validation_ds.micro_batch_size=1",
        "model.data.validation_ds.global_batch_size=128",
        "model.answer_only_loss=True",
        "model.steerlm2.micro_batch_size=2",
        "model.steerlm2.forward_micro_batch_size=2",
        "model.optim.name=distributed_fused_adam",
        "model.optim.lr=9e-7",
        "model.optim.sched.constant_steps=400",
        "model.optim.sched.warmup_steps=1",
        "model.optim.sched.min_lr=9e-8",
        "exp_manager.explicit_log_dir=/results",
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True",
        "exp_manager.checkpoint_callback_params.save_top_k=1",
        name="default",
    )
    assert get_key(resolved.semantic, "model.steerlm2.micro_batch_size") == 2
    assert get_key(resolved.semantic, "trainer.sft.max_steps") == 800
    assert get_key(resolved.semantic, "model.optim.lr") == 9e-7


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.peft.peft_scheme=ptuning", "there is LoRA"),
        ("model.peft.lora_tuning.target_modules=[attention_qvk]", "attention_qkv, attention_dense"),
        ("model.peft.lora_tuning.adapter_dim=0", ">= 1"),
        ("model.data.chat=false", "rows are conversations"),
        ("model.hidden_dropout=0.1", "dropout"),
        ("model.cpu_offloading=true", "micro_batch_size"),
        ("model.resume_from_checkpoint=/x", "model.restore_from_path"),
        ("model.data.train_ds.add_bos=true", "scored without a token"),
        ("trainer.precision=16", "bf16"),
        ("trainer.logger=true", "allowed: false"),
        ("trainer.max_time='00:04:00:00'", "profile"),
        ("trainer.sft.limit_train_batches=0.5", "trainer.sft.max_steps"),
        ("exp_manager.resume_if_exists=false", "--fresh"),
        ("exp_manager.checkpoint_callback_params.monitor=val_acc", "val_loss"),
        ("model.steerlm2.micro_batch_size=0", ">= 1"),
        ("model.data.train_ds.file_paht=x", "file_path"),
    ],
)
def test_what_is_not_done_is_refused_with_the_way_out(manifest, override, says):
    message = told(manifest, override)
    assert override.partition("=")[0] in message
    assert says in message


@pytest.mark.parametrize(
    ("override", "source"),
    [
        ("model.seed=7", "seed"),
        ("model.global_batch_size=7", "model.data.train_ds.global_batch_size"),
        ("trainer.max_steps=7", "trainer.sft.max_steps"),
        ("trainer.max_epochs=7", "trainer.sft.max_epochs"),
    ],
)
def test_mirrors_must_agree_with_what_they_repeat(manifest, override, source):
    assert f"repeats {source} and must agree" in told(manifest, override)


def test_mirror_that_agrees_changes_nothing(manifest):
    assert resolve(manifest, "model.global_batch_size=16").semantic == resolve(manifest).semantic


def test_bfloat16_weights_need_bfloat16(manifest):
    assert "trainer.precision=bf16" in told(manifest, "model.megatron_amp_O2=true")
    resolve(manifest, "model.megatron_amp_O2=true", "trainer.precision=bf16")


def test_a_run_needs_an_end(manifest):
    assert "no end is given" in told(manifest, "trainer.sft.max_epochs=null")
    resolve(manifest, "trainer.sft.max_epochs=null", "trainer.sft.max_steps=3")


def test_where_and_how_it_runs_is_no_part_of_the_identity(manifest):
    plain = resolve(manifest).semantic
    moved = resolve(
        manifest,
        "trainer.num_nodes=4",
        "trainer.devices=8",
        "trainer.accelerator=gpu",
        "trainer.sft.save_interval=3",
        "exp_manager.explicit_log_dir=/results",
        "model.data.num_workers=4",
        "model.restore_from_path=/a",
        "model.data.train_ds.file_path=/b",
    ).semantic
    assert moved == plain
    assert resolve(manifest, "trainer.sft.val_check_interval=3").semantic != plain


def config(manifest, *overrides):
    return parse_config(
        load_config_class(manifest), resolve(manifest, *overrides).values, where=str
    )


def test_tolerance_follows_the_precision(manifest):
    assert config(manifest).sampler_tolerance == 1e-4
    assert config(manifest, "trainer.precision=bf16-mixed").sampler_tolerance == 1e-2
    assert config(manifest, "model.steerlm2.sampler_tolerance=0.5").sampler_tolerance == 0.5


def test_longest_row_is_the_smallest_of_the_limits(manifest):
    assert config(manifest).longest(64) == 64
    assert config(manifest, "model.encoder_seq_length=48").longest(64) == 48
    assert config(manifest, "model.data.train_ds.max_seq_length=32").longest(64) == 32


def test_validation_rows_by_share_or_by_batches(manifest):
    assert config(manifest).validation_rows(100) == 100
    assert config(manifest, "trainer.sft.limit_val_batches=0.5").validation_rows(100) == 50
    assert config(manifest, "trainer.sft.limit_val_batches=3").validation_rows(100) == 48
    assert config(manifest, "trainer.sft.limit_val_batches=30").validation_rows(100) == 100


def test_save_interval_follows_validation_unless_given(manifest):
    sft = config(manifest).trainer.sft
    assert sft.steps_between_saves == sft.val_check_interval
    assert config(manifest, "trainer.sft.save_interval=3").trainer.sft.steps_between_saves == 3


def test_every_key_is_told_on_the_page():
    page = PAGE.read_text()
    tables = {key.rpartition(".")[0] for key in schema_keys(Config)}
    leaves = [key for key in schema_keys(Config) if key not in tables]
    assert [key for key in leaves if f"`{key}`" not in page] == []


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference's config is not at hand")
def test_every_key_of_the_reference_is_known_or_told():
    known, page = set(schema_keys(Config)), PAGE.read_text()
    keys = flatten(yaml.safe_load(REFERENCE.read_text()))
    assert len(keys) > 90
    lost = [key for key in keys if key not in known and f"`{key}`" not in page]
    inside = ("model.peft.lora_tuning.", "exp_manager.wandb_logger_kwargs.")
    assert [key for key in lost if not key.startswith(inside)] == []
