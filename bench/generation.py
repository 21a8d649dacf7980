"""Cost of sampling, as ratios of CPU time against Hugging Face's ``generate`` in one process.

    OMP_NUM_THREADS=1 python bench/generation.py [1M] [30M] [float32] [bfloat16] [parts] [smoke]

Both sides hold the same weights in the same type and draw 4 prompts x 8 samples x 64 tokens after
prompts of 64 tokens, from the whole vocabulary at temperature 1, without stop tokens. Ours also
gives the log-prob of every token, and computes each prompt once instead of eight times.

Variants take turns within a round and ratios are taken per round; the median is printed, with the
extremes. ``parts`` tells where the time of one decoding step goes.
"""

from __future__ import annotations

import sys

import torch
from measure import SMOKE, compare
from twin import NEW_TOKENS, PROMPT_TOKENS, PROMPTS, ROUNDS, SAMPLES, hugging_face, sizes

from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.kv_decoder import Decoder
from nemotron_style.steps.blocks.generation.sampling_params import (
    SamplingParams,
    adjust_logits,
    sample_tokens,
)
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model


def bench(name: str, dtype: torch.dtype) -> None:
    config = sizes(name)
    model = build_model(config, dtype=dtype, ddp=False)
    engine, other = Engine(model, config), hugging_face(model, config, dtype)
    prompts = torch.randint(3, config.vocab_size, (PROMPTS, PROMPT_TOKENS))
    repeated = prompts.repeat_interleave(SAMPLES, 0)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0}

    def theirs(**more: object) -> torch.Tensor:
        mask = torch.ones_like(repeated)
        return other.generate(input_ids=repeated, attention_mask=mask, **options, **more)

    def ours(temperature: float = 1.0) -> list[list[int]]:
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=temperature)
        drawn = engine.generate(prompts.tolist(), sampling, samples_per_prompt=SAMPLES, seed=1)
        return [sample.tokens for group in drawn for sample in group]

    same = theirs(do_sample=False)[:, PROMPT_TOKENS:] == torch.tensor(ours(temperature=0.0))
    parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
    title = (
        f"{PROMPTS} x {SAMPLES} x {NEW_TOKENS} tokens, {parameters:.1f}M parameters, {dtype}, "
        f"greedy tokens alike {same.double().mean():.4f}"
    )
    variants = {
        "ours": ours,
        "Hugging Face generate": lambda: theirs(do_sample=True, top_k=0),
    }
    compare(title, variants, rounds=ROUNDS[name])


def bench_parts(name: str, dtype: torch.dtype) -> None:
    """One decoding step of 32 rows at the middle of the response, and what it is made of."""
    config = sizes(name)
    decoder = Decoder(build_model(config, dtype=dtype, ddp=False), config)
    decoder.read_weights(rows=PROMPTS * SAMPLES)
    rows = PROMPTS * SAMPLES
    cache = decoder.cache(prompts=PROMPTS, slots=rows, prompt_width=PROMPT_TOKENS, width=NEW_TOKENS)
    prompts = torch.randint(3, config.vocab_size, (PROMPTS, PROMPT_TOKENS))
    prefix = decoder.prefill(prompts)
    for number in range(PROMPTS):
        cache.start(prefix.one(number), number, SAMPLES)
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS)
    tokens, numbers = list(range(rows)), torch.rand(rows, dtype=torch.float64)

    def advance(lengths: list[int]) -> torch.Tensor:
        cache.counts = lengths
        return decoder.advance(tokens, cache)

    room = torch.empty(rows, config.vocab_size)
    logits = advance([NEW_TOKENS // 2] * rows)
    wide = torch.randn(rows, config.ffn_hidden_size).to(dtype)
    narrow = wide[:, : config.hidden_size].contiguous()

    def products() -> None:
        for layer in decoder.layers:
            for weight in (layer.qkv, layer.attention_out, layer.fc1):
                weight(narrow)
            layer.fc2(wide)
        decoder.head(narrow)

    def sample() -> None:
        sample_tokens(
            adjust_logits(logits, sampling, seen_BV=None, short_B=None), sampling, numbers, room
        )

    ragged = [NEW_TOKENS // 2 - row % 7 for row in range(rows)]
    variants = {
        "one step": lambda: advance([NEW_TOKENS // 2] * rows),
        "one step, rows of different lengths": lambda: advance(ragged),
        "products with the weights alone": products,
        "drawing": sample,
        "prefill of the prompts": lambda: decoder.prefill(prompts),
    }
    compare(f"a step of {rows} rows, {name}, {dtype}", variants, rounds=25)


def main() -> None:
    words = {*sys.argv[1:], *(["1M", "float32"] if SMOKE else [])}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parallel.initialize(seed=0)
    types = [word for word in ("float32", "bfloat16") if word in words] or ["float32", "bfloat16"]
    for name in [word for word in ROUNDS if word in words] or list(ROUNDS):
        for dtype in types:
            benches = [bench_parts] if "parts" in words else [bench]
            with torch.inference_mode():
                for run in [bench, bench_parts] if SMOKE else benches:
                    run(name, getattr(torch, dtype))


if __name__ == "__main__":
    main()
