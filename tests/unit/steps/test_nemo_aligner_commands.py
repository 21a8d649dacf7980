"""The command lines of NeMo-Aligner's documentation are planned as they are typed."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.store.store import Store

PAGE = Path(__file__).parents[3] / "docs" / "coming-from-nemo-aligner.md"
CATALOG = load_catalog()

SFT = """
examples/nlp/gpt/train_gpt_sft.py trainer.precision=bf16 trainer.num_nodes=1 trainer.devices=8
trainer.sft.max_steps=-1 trainer.sft.limit_val_batches=40 trainer.sft.val_check_interval=1000
model.megatron_amp_O2=True model.restore_from_path=MODEL model.optim.lr=5e-6
model.answer_only_loss=True model.data.num_workers=0 model.data.train_ds.micro_batch_size=1
model.data.train_ds.global_batch_size=128 model.data.train_ds.file_path=ROWS
model.data.validation_ds.micro_batch_size=1 model.data.validation_ds.global_batch_size=128
model.data.validation_ds.file_path=ROWS exp_manager.create_wandb_logger=True
exp_manager.explicit_log_dir=/results exp_manager.wandb_logger_kwargs.project=sft_run
exp_manager.wandb_logger_kwargs.name=dolly_sft_run
exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True
exp_manager.resume_if_exists=True exp_manager.resume_ignore_no_checkpoint=True
exp_manager.create_checkpoint_callback=True
exp_manager.checkpoint_callback_params.monitor=val_loss
"""
CHAT = f"""{SFT}
model.data.chat=True model.data.train_ds.max_seq_length=4096
model.data.validation_ds.max_seq_length=4096
exp_manager.checkpoint_callback_params.monitor=validation_loss
"""
STEERLM2 = r"""
examples/nlp/gpt/train_steerlm2.py trainer.num_nodes=32 trainer.devices=8 trainer.precision=bf16
trainer.sft.limit_val_batches=40 trainer.sft.max_epochs=1 trainer.sft.max_steps=800
trainer.sft.val_check_interval=800 trainer.sft.save_interval=800 model.megatron_amp_O2=True
model.restore_from_path=MODEL model.tensor_model_parallel_size=8
model.pipeline_model_parallel_size=2 model.optim.lr=6e-6 model.optim.name=distributed_fused_adam
model.optim.weight_decay=0.01 model.optim.sched.constant_steps=200
model.optim.sched.warmup_steps=1 model.optim.sched.min_lr=5e-6 model.answer_only_loss=True
model.activations_checkpoint_granularity=selective model.activations_checkpoint_method=uniform
model.steerlm2.micro_batch_size=2 model.steerlm2.forward_micro_batch_size=2
model.data.chat=True model.data.num_workers=0
model.data.chat_prompt_tokens.system_turn_start=\'\<extra_id_0\>\'
model.data.chat_prompt_tokens.turn_start=\'\<extra_id_1\>\'
model.data.chat_prompt_tokens.label_start=\'\<extra_id_2\>\'
model.data.train_ds.max_seq_length=4096 model.data.train_ds.micro_batch_size=1
model.data.train_ds.global_batch_size=128 model.data.train_ds.file_path=ROWS
model.data.train_ds.index_mapping_dir=/indexmap_dir model.data.train_ds.add_eos=False
model.data.train_ds.hf_dataset=True model.data.validation_ds.max_seq_length=4096
model.data.validation_ds.file_path=ROWS model.data.validation_ds.micro_batch_size=1
model.data.validation_ds.global_batch_size=128
model.data.validation_ds.index_mapping_dir=/indexmap_dir
model.data.validation_ds.add_eos=False model.data.validation_ds.hf_dataset=True
exp_manager.create_wandb_logger=True exp_manager.wandb_logger_kwargs.project=steerlm
exp_manager.wandb_logger_kwargs.name=acsft_training exp_manager.explicit_log_dir=/results/acsft_70b
exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True
"""
RS = r"""
examples/nlp/gpt/train_gpt_rs_actor.py
"model.data.data_prefix={train: [ROWS], validation: [ROWS], test: [ROWS]}"
pretrained_checkpoint.restore_from_path=\"MODEL\"
exp_manager.checkpoint_callback_params.save_top_k=1 exp_manager.explicit_log_dir=\"/results\"
trainer.rs.max_epochs=1 trainer.rs.max_steps=313 trainer.rs.val_check_interval=4
trainer.num_nodes=1 trainer.devices=8 ++model.tensor_model_parallel_size=4
model.global_batch_size=32 model.micro_batch_size=1 'model.optim.lr="${multiply:1e-6,1.001}"'
model.optim.sched.warmup_steps=0 model.optim.sched.constant_steps=312
model.optim.sched.min_lr=1e-6 model.optim.weight_decay=0.01 model.rs.num_rollout_samples=32
model.rs.rollout_micro_batch_size=16 model.rs.forward_micro_batch_size=16
model.rs.val_rollout_micro_batch_size=8 model.data.data_impl=jsonl
remote_rm.reward_model.ip=critic remote_rm.reward_model.port=5555
model.rs.num_rollouts_per_prompt=8 model.rs.top_n_rollouts=1
"""
REWARD = r"""
examples/nlp/gpt/train_reward_model.py trainer.num_nodes=32 trainer.devices=8
++model.micro_batch_size=2 ++model.global_batch_size=512 ++model.data.data_impl=jsonl
pretrained_checkpoint.restore_from_path=MODEL
"model.data.data_prefix={train: ["ROWS"], validation: ["ROWS"], test: ["ROWS"]}"
exp_manager.explicit_log_dir=/results/reward_model_13b trainer.rm.val_check_interval=10
exp_manager.create_wandb_logger=True exp_manager.wandb_logger_kwargs.project=steerlm
exp_manager.wandb_logger_kwargs.name=rm_training trainer.rm.save_interval=10
trainer.rm.max_steps=800 ++model.tensor_model_parallel_size=4
++model.pipeline_model_parallel_size=1 ++model.activations_checkpoint_granularity="selective"
model.optim.sched.constant_steps=0 model.reward_model_type="regression"
model.regression.num_attributes=9
"""
REWARD_PAIRS = r"""
train_reward_model.py trainer.num_nodes=1 trainer.devices=8 ++model.micro_batch_size=1
++model.global_batch_size=512 ++model.data.data_impl=jsonl
pretrained_checkpoint.restore_from_path=MODEL
"model.data.data_prefix={train: [ROWS], validation: [ROWS], test: [ROWS]}"
++model.activations_checkpoint_method="uniform" ++model.activations_checkpoint_num_layers=1
++model.sequence_parallel=False model.optim.sched.warmup_steps=10 model.optim.lr=2e-6
model.optim.sched.min_lr=2e-6 exp_manager.create_wandb_logger=False
exp_manager.wandb_logger_kwargs.project=rm_training exp_manager.explicit_log_dir=/results
trainer.rm.limit_val_batches=100000
"""
ATTRIBUTES = (
    *("quality", "toxicity", "humor", "creativity", "helpfulness"),
    *("correctness", "coherence", "complexity", "verbosity"),
)
SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHAT_ROW = {"messages": SAID}
RESPONSE = {"from": "Assistant", "value": "b"}
STEERLM2_ROW = {
    "system": "s",
    "prompt_turns": [{"from": "User", "value": "a"}],
    "label": "helpfulness:4",
    "responses": [RESPONSE | {f"log({name})": -1.0 for name in ("P(a|x,y)", "P(y|x)", "Q(y|a,x)")}],
}
PROMPT_ROW = {"messages": SAID[:1]}
RATED_ROW = {"messages": SAID, "attributes": dict.fromkeys(ATTRIBUTES, 1)}

COMMANDS = {
    "train_gpt_sft": (SFT, CHAT_ROW),
    "train_gpt_sft, chat": (CHAT, CHAT_ROW),
    "train_steerlm2": (STEERLM2, STEERLM2_ROW),
    "train_gpt_rs_actor": (RS, PROMPT_ROW),
    "train_reward_model": (REWARD, RATED_ROW),
    "train_reward_model, pairs": (REWARD_PAIRS, RATED_ROW),
}
STEPS = {
    "train_gpt_sft": "sft/chat",
    "train_steerlm2": "sft/steerlm2",
    "train_gpt_rs_actor": "rs/actor",
    "train_reward_model": "reward/regression",
}
CONFIG = """
mcore_gpt: true
encoder_seq_length: 4096
num_layers: 2
hidden_size: 64
ffn_hidden_size: 64
num_attention_heads: 8
activation: fast-swiglu
normalization: rmsnorm
bias: false
position_embedding_type: rope
tokenizer: {library: huggingface, type: somebody/words}
"""


@pytest.fixture
def names(tmp_path: Path) -> dict[str, str]:
    """A file for each name in a command; of the model, what is read before it is converted."""
    with tarfile.open(tmp_path / "mcore_gpt.nemo", "w:") as archive:
        parts = {"model_config.yaml": CONFIG, "tokenizer.json": "{}", "model_weights/.metadata": ""}
        for name, text in parts.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return {"MODEL": str(tmp_path / "mcore_gpt.nemo"), "ROWS": str(tmp_path / "rows.jsonl")}


def plan(name: str, names: dict[str, str], tmp_path: Path) -> Pipeline:
    text, row = COMMANDS[name]
    Path(names["ROWS"]).write_text(512 * (json.dumps(row) + "\n"))
    for word, path in names.items():
        text = text.replace(word, path)
    step, *overrides = shlex.split(text)
    request = RunRequest(CATALOG.find(step).id, overrides=tuple(overrides))
    return compile_pipeline(request, context=open_context(tmp_path))


def open_context(tmp_path: Path) -> PlanContext:
    profile = Profile(name="cluster", executor="slurm", gpus_per_node=8, python="python")
    store, work = Store(tmp_path / "store"), tmp_path / "work"
    return PlanContext(CATALOG, store, profile, work, provisional=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_documented_command_is_planned_with_the_conversion_of_its_model(
    name: str, names: dict[str, str], tmp_path: Path
) -> None:
    pipeline = plan(name, names, tmp_path)
    step = STEPS[name.partition(",")[0]]
    assert [run.plan.step for run in pipeline.runs] == ["convert/nemo_to_megatron", step]
    assert pipeline.problems == ()


def test_a_slot_for_another_kind_gets_two_conversions(
    names: dict[str, str], tmp_path: Path
) -> None:
    request = RunRequest("judge/card", "tiny", inputs=(f"model={names['MODEL']}",))
    runs = compile_pipeline(request, context=open_context(tmp_path)).runs
    steps = [run.plan.step for run in runs if run.plan.step.startswith("convert/")]
    assert steps == ["convert/nemo_to_megatron", "convert/megatron_to_hf"]


def config_of(name: str, names: dict[str, str], tmp_path: Path) -> Any:
    return plan(name, names, tmp_path).runs[-1].plan.config


def test_what_a_command_asks_for_is_in_the_plan(names: dict[str, str], tmp_path: Path) -> None:
    steerlm2 = config_of("train_steerlm2", names, tmp_path)
    assert steerlm2["model"]["data"]["chat_prompt_tokens"]["turn_start"] == "<extra_id_1>"
    rs = config_of("train_gpt_rs_actor", names, tmp_path)
    assert rs["model"]["optim"]["lr"] == pytest.approx(1.001e-6)
    assert rs["remote_rm"]["reward_model"] == {"name": None, "ip": "critic", "port": 5555}
    assert rs["model"]["rs"]["num_rollouts_per_prompt"] == 8
    reward = config_of("train_reward_model", names, tmp_path)
    assert reward["model"]["global_batch_size"] == 512
    assert reward["trainer"]["rm"]["max_steps"] == 800


def test_every_key_of_the_commands_is_on_the_page() -> None:
    page = PAGE.read_text()
    words = {word for text, _ in COMMANDS.values() for word in shlex.split(text)[1:]}
    keys = {word.lstrip("+").partition("=")[0] for word in words}
    known = set(re.findall(r"`([\w.]+)`", page))
    assert sorted(keys - known) == []


@pytest.mark.parametrize("suffix", ["", ".py"])
@pytest.mark.parametrize("start", ["", "nemo_aligner/", "examples/nlp/gpt/"])
@pytest.mark.parametrize("script", STEPS)
def test_a_step_answers_to_the_name_of_its_script(script: str, start: str, suffix: str) -> None:
    assert CATALOG.find(f"{start}{script}{suffix}").id == STEPS[script]
