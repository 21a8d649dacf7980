"""Micro-batches, optimizer, and the state that a run continues from."""

import nemotron_style.steps.blocks.model  # noqa: F401  (imports megatron-core its own way)
