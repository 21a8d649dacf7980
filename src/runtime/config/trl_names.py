"""What TRL calls a key that a step here has under NeMo's name; for suggestions, never as a key."""

from __future__ import annotations

from collections.abc import Iterable

_LORA = "model.peft.lora_tuning"
_PEFT = "policy.megatron_cfg.peft"

TRL_NAMES: dict[str, tuple[str, ...]] = {
    "model_name_or_path": ("model.restore_from_path", "pretrained_checkpoint.restore_from_path"),
    "dataset_name": ("model.data.train_ds.file_path", "model.data.data_prefix"),
    "output_dir": ("exp_manager.explicit_log_dir", "logger.log_dir"),
    "learning_rate": ("model.optim.lr", "policy.megatron_cfg.optimizer.lr"),
    "num_train_epochs": (
        "trainer.sft.max_epochs",
        "trainer.rs.max_epochs",
        "trainer.rm.max_epochs",
        "grpo.max_num_epochs",
    ),
    "max_steps": (
        "trainer.sft.max_steps",
        "trainer.rs.max_steps",
        "trainer.rm.max_steps",
        "grpo.max_num_steps",
    ),
    "per_device_train_batch_size": (
        "model.data.train_ds.micro_batch_size",
        "model.micro_batch_size",
        "policy.train_micro_batch_size",
    ),
    "gradient_accumulation_steps": (
        "model.data.train_ds.global_batch_size",
        "model.global_batch_size",
        "policy.train_global_batch_size",
    ),
    "max_length": (
        "model.data.train_ds.max_seq_length",
        "model.encoder_seq_length",
        "policy.max_total_sequence_length",
    ),
    "max_completion_length": (
        "model.rs.length_params.max_length",
        "policy.generation.max_new_tokens",
    ),
    "num_generations": ("model.rs.num_rollouts_per_prompt", "grpo.num_generations_per_prompt"),
    "beta": ("loss_fn.reference_policy_kl_penalty",),
    "bf16": ("trainer.precision", "policy.precision"),
    "max_grad_norm": (
        "trainer.sft.gradient_clip_val",
        "trainer.rs.gradient_clip_val",
        "trainer.rm.gradient_clip_val",
        "policy.megatron_cfg.optimizer.clip_grad",
    ),
    "eval_steps": (
        "trainer.sft.val_check_interval",
        "trainer.rs.val_check_interval",
        "trainer.rm.val_check_interval",
        "grpo.val_period",
    ),
    "save_steps": (
        "trainer.sft.save_interval",
        "trainer.rs.save_interval",
        "trainer.rm.save_interval",
        "checkpointing.save_period",
    ),
    "packing": ("model.data.train_ds.packed_sequence",),
    "gradient_checkpointing": ("model.activations_checkpoint_granularity",),
    "use_peft": ("model.peft.peft_scheme", f"{_PEFT}.enabled"),
    "lora_r": (f"{_LORA}.adapter_dim", f"{_PEFT}.dim"),
    "lora_alpha": (f"{_LORA}.alpha", f"{_PEFT}.alpha"),
    "lora_dropout": (f"{_LORA}.adapter_dropout", f"{_PEFT}.dropout"),
    "lora_target_modules": (f"{_LORA}.target_modules", f"{_PEFT}.target_modules"),
    "report_to": ("exp_manager.create_wandb_logger", "logger.wandb_enabled"),
}


def find_trl_name(key: str, known: Iterable[str]) -> str:
    """The first of ``known`` that TRL calls ``key``, or an empty string."""
    have = set(known)
    return next((name for name in TRL_NAMES.get(key, ()) if name in have), "")
