"""A model as NeMo saves it: ``model_config.yaml`` and stacked ``torch_dist`` weights, in a tar.

The layout is that of ``MegatronGPTModel.save_to``: every tensor that all layers have is one, with
the layers in its first dimension, in a piece for each layer; gate before up; queries, keys and
values of a group side by side.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor

from nemotron_style.steps.blocks.checkpoint import torch_dist

VOCABULARY = 96
TOKENS = 90  # NeMo pads the embedding to a multiple
RANDOM = "0123456789abcdef0123456789abcdef_"
CHAT = {
    "system_turn_start": "<extra_id_0>",
    "turn_start": "<extra_id_1>",
    "label_start": "<extra_id_2>",
    "end_of_turn": "\n",
    "end_of_name": "\n",
}

# Keys as NeMo writes them, the ones of training among them.
KEYS: dict[str, Any] = {
    "mcore_gpt": True,
    "micro_batch_size": 4,
    "global_batch_size": 8,
    "tensor_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "encoder_seq_length": 64,
    "max_position_embeddings": "${.encoder_seq_length}",
    "num_layers": 3,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "init_method_std": 0.02,
    "hidden_dropout": 0.0,
    "kv_channels": None,
    "make_vocab_size_divisible_by": 128,
    "bias": False,
    "headscale": False,
    "transformer_block_type": "pre_ln",
    "position_embedding_type": "rope",
    "rotary_percentage": 1.0,
    "rotary_base": 10000,
    "attention_type": "multihead",
    "seq_len_interpolation_factor": None,
    "drop_layers": [],
    "tokenizer": {"library": "huggingface", "type": "somebody/words", "use_fast": True},
    "megatron_amp_O2": True,
    "native_amp_init_scale": 4294967296,
    "fp8": False,
    "fp8_hybrid": True,
    "activations_checkpoint_granularity": None,
    "cpu_offloading_num_layers": "${sum:${.num_layers},-1}",
    "dist_ckpt_format": "torch_dist",
    "data": {"data_prefix": ["/train"], "seq_length": "${model.encoder_seq_length}"},
    "optim": {"name": "fused_adam", "lr": 0.0002},
    "precision": "bf16-mixed",
    "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
    "nemo_version": "2.0.0",
}
LLAMA = KEYS | {
    "activation": "fast-swiglu",
    "normalization": "rmsnorm",
    "layernorm_epsilon": 1e-5,
    "share_embeddings_and_output_weights": False,
}
NEMOTRON = KEYS | {
    "activation": "squared-relu",
    "normalization": "layernorm1p",
    "layernorm_epsilon": 1e-5,
    "share_embeddings_and_output_weights": False,
    "rotary_percentage": 0.5,
    "kv_channels": 8,
}


def stack_weights(state: Mapping[str, Tensor], keys: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Hugging Face's weights under NeMo's names: a list of one tensor, or of one a layer."""
    groups = keys["num_query_groups"]
    gated = "glu" in keys["activation"]
    norms = ["weight"] if keys["normalization"] == "rmsnorm" else ["weight", "bias"]
    stacked: dict[str, list[Tensor]] = {}
    for layer in range(keys["num_layers"]):
        start = f"model.layers.{layer}."
        heads = [
            state[f"{start}self_attn.{part}_proj.weight"].unflatten(0, (groups, -1))
            for part in "qkv"
        ]
        up = state[f"{start}mlp.up_proj.weight"]
        tensors = {
            "self_attention.linear_qkv.weight": torch.cat(heads, dim=1).flatten(0, 1),
            "self_attention.linear_proj.weight": state[f"{start}self_attn.o_proj.weight"],
            "mlp.linear_fc1.weight": torch.cat([state[f"{start}mlp.gate_proj.weight"], up])
            if gated
            else up,
            "mlp.linear_fc2.weight": state[f"{start}mlp.down_proj.weight"],
        }
        for kind in norms:
            first, second = f"{start}input_layernorm.{kind}", f"{start}post_attention_layernorm."
            tensors[f"self_attention.linear_qkv.layer_norm_{kind}"] = state[first]
            tensors[f"mlp.linear_fc1.layer_norm_{kind}"] = state[second + kind]
        for name, tensor in tensors.items():
            stacked.setdefault(f"model.decoder.layers.{name}", []).append(tensor)
    stacked["model.embedding.word_embeddings.weight"] = [state["model.embed_tokens.weight"]]
    for kind in norms:
        stacked[f"model.decoder.final_layernorm.{kind}"] = [state[f"model.norm.{kind}"]]
    if not keys["share_embeddings_and_output_weights"]:
        stacked["model.output_layer.weight"] = [state["lm_head.weight"]]
    return stacked


def write_weights(stacked: Mapping[str, list[Tensor]], path: Path) -> None:
    """Write tensors as megatron-core does, with the state of Transformer Engine beside them."""
    sharded: dict[str, Any] = {}
    for name, tensors in stacked.items():
        for layer, tensor in enumerate(tensors):
            offsets = [(0, layer, len(tensors))] if ".layers." in name else []
            sharded[f"{name} {layer}"] = ShardedTensor.from_rank_offsets(
                name, tensor.contiguous(), *offsets, prepend_axis_num=len(offsets)
            )
    key = "model.decoder.layers.self_attention.linear_qkv._extra_state"
    sharded[key] = ShardedObject(key, io.BytesIO(b"state"), (1,), (0,))
    torch_dist.write(sharded, path)


def write_tokenizer(path: Path) -> None:
    """Write a ``tokenizer.json`` of words, with the control tokens of NeMo's chat format."""
    words = {f"w{number}": number for number in range(TOKENS - 4)} | {"\n": TOKENS - 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.add_special_tokens([AddedToken(f"<extra_id_{n}>", special=True) for n in range(3)])
    backend.save(str(path))


def write_folder(model: torch.nn.Module, keys: Mapping[str, Any], path: Path) -> Path:
    """Write what a ``.nemo`` holds into the folder ``path``; its weights are those of ``model``."""
    path.mkdir(parents=True)
    text = yaml.safe_dump(dict(keys), sort_keys=False)
    (path / "model_config.yaml").write_text(text)
    write_weights(stack_weights(model.state_dict(), keys), path / "model_weights")
    write_tokenizer(path / f"{RANDOM}tokenizer.json")
    return path


def pack(folder: Path, file: Path, *, mode: str = "w:") -> Path:
    """Write a folder as NeMo writes a ``.nemo``: everything below ``./``."""
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname=".")
    return file
