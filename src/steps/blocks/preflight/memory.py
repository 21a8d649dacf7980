"""How much memory a process of a job takes, from the sizes of its model.

Weights, gradients and optimizer follow from the sizes exactly. Activations are counted as what a
layer keeps for its backward pass, per token; attention keeps no table of all pairs of tokens.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from nemotron_style.steps.blocks.settings.model_config import ModelConfig

GIGA = 10**9


@dataclass(frozen=True)
class Load:
    """What a process holds: how the model is divided, trained and sampled.

    ``data`` processes share the optimizer's state with ``spread_optimizer``. ``pass_rows`` of
    ``row_tokens`` are in a pass with gradients, ``sampled_rows`` are decoded side by side, and
    ``frozen`` copies of the weights are never trained.
    """

    half: bool
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    trains: bool = True
    spread_optimizer: bool = False
    pass_rows: int = 1
    row_tokens: int = 0
    sampled_rows: int = 0
    frozen: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cache: int = 0

    @property
    def certain(self) -> int:
        """What is held whatever the rows are like."""
        return self.weights + self.gradients + self.optimizer

    @property
    def knows_rows(self) -> bool:
        """Whether it counts what rows take, too."""
        return bool(self.activations or self.cache)

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "key-value cache")
        parts = zip(names, astuple(self), strict=True)
        listed = ", ".join(f"{name} {show_gigabytes(part)}" for name, part in parts if part)
        return f"{show_gigabytes(self.total)} GB ({listed})"


def show_gigabytes(size: int) -> str:
    """``12.3``; small ones with more digits."""
    return f"{size / GIGA:.1f}" if size >= GIGA / 2 else f"{size / GIGA:.2g}"


def show_count(number: float) -> str:
    """A count in words that can be read at a glance."""
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"


def count_layer(sizes: ModelConfig) -> int:
    """Weights of the matrices of one layer."""
    hidden, head, heads = sizes.hidden_size, sizes.head_size, sizes.num_attention_heads
    attention = hidden * head * (2 * heads + 2 * sizes.num_query_groups)
    return attention + _ffn_matrices(sizes) * hidden * sizes.ffn_hidden_size


def count_parameters(sizes: ModelConfig) -> int:
    """Weights of the whole model, but for norms and biases."""
    embeddings = (1 if sizes.tie_embeddings else 2) * sizes.vocab_size * sizes.hidden_size
    return embeddings + sizes.num_layers * count_layer(sizes)


def _ffn_matrices(sizes: ModelConfig) -> int:
    return 2 if sizes.activation == "squared_relu" else 3  # the others have a gate


def estimate_memory(sizes: ModelConfig, load: Load) -> Memory:
    """What the process with the largest share of the model takes."""
    width = 2 if load.half else 4
    embedding = sizes.vocab_size * sizes.hidden_size
    # The ends of a pipeline hold an embedding each; one process that is both holds them both.
    ends = 1 if load.pipeline > 1 or sizes.tie_embeddings else 2
    layers = -(-sizes.num_layers // load.pipeline)
    held = (layers * count_layer(sizes) + ends * embedding) // load.tensor
    weights = held * width * (1 + load.frozen)
    if load.sampled_rows and load.tensor * load.pipeline > 1:
        weights += count_parameters(sizes) * width  # each process samples from a copy of them all
    gradients = optimizer = activations = 0
    if load.trains:
        gradients = held * 4
        # Two moments, and float32 weights beside bfloat16 ones.
        optimizer = held * (12 if load.half else 8)
        optimizer //= load.data if load.spread_optimizer else 1
        tokens = load.pass_rows * load.row_tokens
        # The first stage of a pipeline keeps the passes of all stages: as many as all layers.
        kept = sizes.num_layers if load.pipeline > 1 else layers
        logits = sizes.vocab_size // load.tensor * (width + 8)
        activations = tokens * (kept * _layer_activations(sizes, load.tensor) * width + logits)
    heads = sizes.num_query_groups * sizes.head_size
    cache = load.sampled_rows * load.row_tokens * sizes.num_layers * 2 * heads * width
    return Memory(weights, gradients, optimizer, activations, cache)


def _layer_activations(sizes: ModelConfig, tensor: int) -> int:
    """Numbers that a layer keeps of a token: what its norms and matrices are given."""
    heads = sizes.num_attention_heads, sizes.num_query_groups
    attention = sizes.head_size * (3 * heads[0] + 3 * heads[1])
    gated = _ffn_matrices(sizes) == 3
    ffn = sizes.ffn_hidden_size * (4 if gated else 2)
    return 5 * sizes.hidden_size + (attention + ffn) // tensor
