"""Keys of ``model_config.yaml`` that say how a model was trained, and not what it computes.

They are those of the configs of NeMo (``megatron_gpt_config.yaml``, ``megatron_llama_config.yaml``)
and NeMo-Aligner, and the settings of megatron-core that NeMo passes on. A key that is neither here
nor in :mod:`model_keys` is refused where it has a value: it may change what is computed.
"""

from __future__ import annotations

_SECTIONS = (
    *("data", "train_ds", "validation_ds", "test_ds", "optim", "dpo", "ppo", "rs", "spin", "kto"),
    *("reinforce", "steerlm2", "knowledge_distillation", "nsys_profile", "inference", "generate"),
    *("megatron_timer_kwargs", "length_params", "sampling_params", "trt_llm", "tokenizer"),
)
_BATCHES = (
    *("micro_batch_size", "global_batch_size", "forward_micro_batch_size", "rampup_batch_size"),
    *("encoder_seq_length", "max_position_embeddings", "seq_length", "max_seq_length", "seed"),
    *("answer_only_loss", "skip_train", "reset_lr", "reset_lr_steps", "gc_interval", "precision"),
    *("save_nemo_on_validation_end", "use_loss_mask", "validation_param_sync_overlap", "version"),
    *("nemo_version", "target", "lora_tuning", "calculate_per_token_loss", "end_strings"),
)
_INITIAL = (
    *("init_method_std", "use_scaled_init_method", "embedding_init_method_std", "vocab_size"),
    *("use_cpu_initialization", "perform_initialization", "make_vocab_size_divisible_by"),
    *("override_vocab_size", "hidden_dropout", "attention_dropout", "ffn_dropout"),
    *("embedding_dropout", "do_layer_norm_weight_decay", "pre_process", "post_process"),
)
_DIVISION = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("virtual_pipeline_model_parallel_size", "expert_model_parallel_size", "sequence_parallel"),
    *("pipeline_model_parallel_split_rank", "overlap_p2p_comm", "batch_p2p_comm"),
    *("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"),
    *("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"),
    *("expert_tensor_parallel_size", "pipeline_dtype", "params_dtype", "autocast_dtype"),
    *("sync_batch_comm", "sharp", "nccl_communicator_config_path", "variable_seq_lengths"),
)
_KERNELS = (
    # The same numbers, but for their last bits, by another kernel or in another order.
    *("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "attention_backend"),
    *("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_add_fusion", "onnx_safe"),
    *("bias_dropout_fusion", "masked_softmax_fusion", "persist_layer_norm", "transformer_engine"),
    *("get_attention_mask_from_fusion", "use_flash_attention", "use_emha", "enable_cuda_graph"),
    *("memory_efficient_layer_norm", "megatron_amp_O2", "fp32_residual_connection"),
    *("fp16_lm_cross_entropy", "cross_entropy_loss_fusion", "deterministic_mode", "bf16", "fp16"),
    *("use_te_rng_tracker", "flash_decode", "normalize_attention_scores", "hysteresis"),
    *("tp_only_amax_red", "reduce_amax", "with_fp32_embedding_grads", "async_grad_allreduce"),
    *("defer_embedding_wgrad_compute", "wgrad_deferral_limit", "enable_megatron_timers"),
    *("apex_transformer_log_level", "offload_adam_states", "skip_fp8_attention_checkpoint_load"),
)
_FILES = (
    *("restore_from_path", "restore_from_ckpt", "resume_from_checkpoint", "nemo_path"),
    *("pretrained_checkpoint", "overwrite_base_config", "restore_path"),
)

TRAINING_KEYS = frozenset((*_SECTIONS, *_BATCHES, *_INITIAL, *_DIVISION, *_KERNELS, *_FILES))

TRAINING_PREFIXES = (
    *("activations_checkpoint_", "recompute_", "dist_ckpt_", "fsdp", "fp8", "ub_tp_comm_"),
    *("tp_comm_", "cpu_offloading", "native_amp_", "grad", "cuda_graph_", "num_micro_batches_with"),
    "moe_",  # a mixture of experts is refused by its number of experts
)
"""Keys that begin so belong here too."""


def is_of_training(key: str) -> bool:
    """Whether a key says nothing of what the model computes."""
    return key in TRAINING_KEYS or key.startswith(TRAINING_PREFIXES)
