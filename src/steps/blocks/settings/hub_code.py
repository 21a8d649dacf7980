"""Keys in Hugging Face's JSON files by which a model has code fetched or run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import Problem

CODE_KEYS = frozenset(
    (
        *("auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"),
        *("kernel_config", "use_kernels", "gguf_file", "base_model_name_or_path"),
    )
)
BUILT_IN_KERNELS = (
    *(None, True, False, "eager", "sdpa"),
    *("flash_attention_2", "flash_attention_3", "flex_attention"),
)
"""What ``attn_implementation`` and its like may say; transformers fetches a kernel of any other
name from a repository. The truth values are those of ``_attn_implementation_autoset``."""


def find_code_keys(settings: Any, *, where: str) -> Iterator[Problem]:
    """Every key in ``settings``, however deep, that can have code fetched or run."""
    pending: list[tuple[str, Any]] = [("", settings)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, list):
            pending += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        if not isinstance(value, Mapping):
            continue
        for key, item in value.items():
            inner = f"{path}.{key}" if path else key
            is_kernel = "_implementation" in key and item not in BUILT_IN_KERNELS
            if is_kernel or (key in CODE_KEYS and item):
                what = "can have code fetched or run, and no model's file may"
                got, fix = json.dumps(item)[:200], "take the key out where you trust the model"
                yield Problem(where=where, key=inner, what=what, got=got, fix=fix)
            else:
                pending.append((inner, item))
