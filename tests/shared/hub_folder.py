"""The small files of a checkpoint and of its rows, for what is looked at before a job starts."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_rows(path: Path, count: int, *, words: int = 3) -> Path:
    messages = [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": " ".join(["four"] * words)},
    ]
    line = json.dumps({"messages": messages}) + "\n"
    path.write_text(line * count, encoding="utf-8")
    return path
