"""Models on disk: torch_dist, safetensors, Hugging Face."""

import nemotron_style.steps.blocks.model  # noqa: F401  (imports megatron-core its own way)
