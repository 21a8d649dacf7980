"""How much memory a process of a job takes, from the sizes of its model.

Weights, gradients and optimizer follow from the sizes exactly. Activations are counted as what a
layer keeps for its backward pass, per token; attention keeps no table of all pairs of tokens.
What the program itself takes is not counted: about half a gigabyte, and on a GPU as much there.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.parallel_config import KEEP_ALL, Activations
from nemotron_style.steps.blocks.settings.peft_config import TARGETS, LoraTuning

GIGA = 10**9
_CHUNK_LOGITS = 2**26  # that the head holds at a time: CHUNK_LOGITS of blocks/model/logprob.py


@dataclass(frozen=True)
class Load:
    """What a process holds: how the model is divided, trained and sampled.

    ``data`` processes share the optimizer's state with ``spread_optimizer``. Of what is trained,
    ``lora`` leaves the adapters alone. ``pass_rows`` of ``row_tokens`` are in a pass with
    gradients, or ``pass_tokens`` in all where rows are packed; ``activations`` says what is kept of
    them. ``sampled_rows`` are decoded side by side, or as many as make
    ``cache_tokens``, by an engine that has weights of its own where ``samples_apart``; one that
    has not keeps matrices a second time ``on_cpu``, as they are read fastest. ``frozen`` copies of
    the weights are never trained.
    """

    half: bool
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    trains: bool = True
    lora: LoraTuning | None = None
    spread_optimizer: bool = False
    activations: Activations = KEEP_ALL
    pass_rows: int = 1
    row_tokens: int = 0
    pass_tokens: int = 0
    sampled_rows: int = 0
    cache_tokens: int = 0
    samples_apart: bool = False
    frozen: int = 0
    on_cpu: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a pass with gradients."""
        return self.pass_tokens or self.pass_rows * self.row_tokens


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    reference: int = 0
    sampler: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0

    @property
    def certain(self) -> Memory:
        """What is held whatever the rows are like."""
        return Memory(*astuple(self)[:5])

    @property
    def knows_rows(self) -> bool:
        """Whether it counts what rows take, too."""
        return bool(self.activations or self.cache)

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __str__(self) -> str:
        names = ("weights", "reference model", "weights to sample from", "gradients", "optimizer")
        names += ("activations", "logits", "key-value cache")
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


def linear_shapes(sizes: ModelConfig) -> dict[str, tuple[int, int]]:
    """``(outputs, inputs)`` of the linear layers of a transformer layer, by their names in it."""
    heads = sizes.num_attention_heads * sizes.head_size
    keys = sizes.num_query_groups * sizes.head_size
    hidden, ffn = sizes.hidden_size, sizes.ffn_hidden_size
    qkv, attended, fc1, fc2 = TARGETS.values()
    return {
        qkv: (heads + 2 * keys, hidden),
        attended: (hidden, heads),
        fc1: (ffn * (2 if sizes.is_gated else 1), hidden),
        fc2: (hidden, ffn),
    }


def count_layer(sizes: ModelConfig) -> int:
    """Weights of the matrices of one layer."""
    return sum(rows * columns for rows, columns in linear_shapes(sizes).values())


def count_adapters(sizes: ModelConfig, lora: LoraTuning) -> int:
    """Weights of the adapters of one layer."""
    shapes = linear_shapes(sizes)
    return lora.adapter_dim * sum(sum(shapes[module]) for module in lora.modules)


def count_parameters(sizes: ModelConfig) -> int:
    """Weights of the whole model, but for norms and biases."""
    embeddings = (1 if sizes.tie_embeddings else 2) * sizes.vocab_size * sizes.hidden_size
    return embeddings + sizes.num_layers * count_layer(sizes)


def estimate_memory(sizes: ModelConfig, load: Load) -> Memory:
    """What the process with the largest share of the model takes."""
    width = 2 if load.half else 4
    embedding = sizes.vocab_size * sizes.hidden_size
    # The ends of a pipeline hold an embedding each; one process that is both holds them both.
    ends = 1 if load.pipeline > 1 or sizes.tie_embeddings else 2
    layers = -(-sizes.num_layers // load.pipeline)
    held = (layers * count_layer(sizes) + ends * embedding) // load.tensor
    adapters = layers * count_adapters(sizes, load.lora) // load.tensor if load.lora else 0
    gradients = optimizer = activations = logits = 0
    if load.trains:
        trained = adapters if load.lora else held
        gradients = trained * 4
        # Two moments, and float32 weights beside bfloat16 ones.
        optimizer = trained * (12 if load.half else 8)
        optimizer //= load.data if load.spread_optimizer else 1
        activations = load.tokens * _stage_activations(sizes, load, layers) * width
        if load.tokens and not load.lora:
            # The gradient of an embedding before it is added to the others; of a tied one two.
            activations += embedding // load.tensor * width * (2 if sizes.tie_embeddings else 1)
        vocabulary = sizes.vocab_size // load.tensor
        logits = min(load.tokens * vocabulary, max(_CHUNK_LOGITS, vocabulary)) * (width + 8)
    keys = sizes.num_layers * 2 * sizes.num_query_groups * sizes.head_size
    return Memory(
        weights=(held + adapters) * width,
        reference=held * width * load.frozen,
        sampler=_count_sampled(sizes, load) * width,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        cache=(load.cache_tokens or load.sampled_rows * load.row_tokens) * keys * width,
    )


def _count_sampled(sizes: ModelConfig, load: Load) -> int:
    """Weights that are held once more to sample from."""
    whole = count_parameters(sizes)
    if load.samples_apart:
        return whole
    if not (load.sampled_rows or load.cache_tokens):
        return 0
    again = whole if load.tensor * load.pipeline > 1 else 0  # the parts are gathered
    return again + (whole if load.on_cpu else 0)


def _stage_activations(sizes: ModelConfig, load: Load, layers: int) -> int:
    """Numbers that a stage of the pipeline keeps of a token, with layers that are recomputed."""
    kept = load.activations
    hidden = sizes.hidden_size // (load.tensor if kept.sequence_parallel else 1)
    layer = _layer_activations(sizes, load.tensor, hidden)
    again = kept.recomputed(layers)
    group = kept.recompute_num_layers if kept.recompute_method == "uniform" else 1
    of_pass = (layers - again) * layer + -(-again // group) * hidden
    # The first stage of a pipeline keeps the passes of all stages, and recomputes one at a time.
    return load.pipeline * of_pass + (group * layer if again else 0)


def _layer_activations(sizes: ModelConfig, tensor: int, hidden: int) -> int:
    """Numbers that a layer keeps of a token: what its norms and matrices are given.

    ``hidden`` is the width of a rank's share of a hidden state. In float32 on a CPU norms keep
    two of its six less.
    """
    heads = sizes.num_attention_heads, sizes.num_query_groups
    attention = sizes.head_size * (3 * heads[0] + 3 * heads[1])
    ffn = sizes.ffn_hidden_size * (4 if sizes.is_gated else 2)
    return 6 * hidden + (attention + ffn) // tensor
