"""The sizes of a model of one layer, for tests that only need weights."""

from nemotron_style.steps.blocks.settings.model_config import ModelConfig

ONE_LAYER = ModelConfig(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=2,
    num_query_groups=1,
    vocab_size=30,
    max_sequence_length=32,
)
