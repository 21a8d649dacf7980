"""Runs where vLLM is installed: draws with both engines from one model, and tells what it saw.

One start of vLLM serves every question. The model is the hard case for the hand-over: heads of a
width that vLLM does not know, and tied embeddings.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from torch import nn

from nemotron_style.runtime.errors import Interrupted, StepFailed
from nemotron_style.runtime.step.context import Stop
from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import weights_digest
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.generation.backend import GenerationEngine, open_engine
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.generation.logprob_gap import measure_gap, measure_sample_gap
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams, adjust_logits
from nemotron_style.steps.blocks.generation.vllm_engine import VllmEngine
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.rl.rlhf import recipe
from rlhf_world import Judge, make_world

CONFIG = ModelConfig(
    num_layers=3,
    hidden_size=96,
    ffn_hidden_size=128,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=320,
    max_sequence_length=160,
    tie_embeddings=True,
)
TOKENS = ChatPromptTokens()
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], list(range(20, 57)), list(range(5, 95))]
GREEDY = SamplingParams(max_new_tokens=64, temperature=0.0)
STOPS = list(range(12))


def scale(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 1.0)


def plain(drawn: Sequence[Sequence[Sample]]) -> list[list[dict[str, Any]]]:
    return [[vars(sample) for sample in group] for group in drawn]


def gap_of_filtered(
    model: nn.Module, drawn: Sequence[Sequence[Sample]], sampling: SamplingParams
) -> dict[str, Any]:
    """Log-probs of an engine against ``sampling.adjust`` on the logits of a plain forward."""
    engine, trainer = [], []
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        for sample in group:
            whole = [*prompt, *sample.tokens]
            logits_TV = model_logits(model, torch.tensor([whole]))[0, len(prompt) - 1 : -1]
            for at, token in enumerate(sample.tokens):
                seen_BV = torch.zeros(1, CONFIG.vocab_size, dtype=torch.bool)
                seen_BV[0, whole[: len(prompt) + at]] = True
                short_B = torch.tensor([at < sampling.min_new_tokens])
                adjusted = adjust_logits(
                    logits_TV[at : at + 1], sampling, seen_BV=seen_BV, short_B=short_B
                )
                trainer.append(adjusted.log_softmax(-1)[0, token])
            engine += sample.log_probs
    return vars(measure_gap(torch.tensor(engine, dtype=torch.float64), torch.stack(trainer)))


def sampled(model: nn.Module, engine: GenerationEngine, temperature: float) -> dict[str, Any]:
    sampling = SamplingParams(max_new_tokens=48, temperature=temperature, stop_ids=STOPS)
    drawn = engine.generate(PROMPTS, sampling, samples_per_prompt=8, seed=5)
    gap = measure_sample_gap(model, PROMPTS, drawn, temperature=temperature)
    return {"gap": vars(gap), "drawn": plain(drawn)}


def align(folder: Path, vllm: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``rl/rlhf`` with the vLLM that runs already: a run of three steps, and one that is told to
    stop after two and continues.
    """
    world, stop, updates = make_world(folder / "rlhf", CONFIG), Stop(), 0

    def update() -> None:
        nonlocal updates
        VllmEngine.update(vllm)
        updates += 1
        stop.requested = updates == 3  # the start, and two steps

    def take_over(_name: str, model: nn.Module, _config: ModelConfig) -> GenerationEngine:
        vllm.model = model
        return vllm

    monkeypatch.setattr(recipe, "open_engine", take_over)
    monkeypatch.setattr(vllm, "update", update, raising=False)
    monkeypatch.setattr(vllm, "close", lambda: None, raising=False)
    with Judge().serve() as judge:
        given = ('policy.generation.backend="vllm"', f'judge.url="{judge.url}"')
        whole = world.train_in(folder / "whole", *given)
        counts, updates = [updates], 0
        with suppress(Interrupted):
            world.train_in(folder / "parted", *given, stop=stop)
        counts.append(updates)
        parted = world.train_in(folder / "parted", *given)
    monkeypatch.undo()
    return {
        "updates": [*counts, updates - counts[1]],
        "steps": [
            [one for one in ctx.metrics.history() if "reward" in one] for ctx in (whole, parted)
        ],
        "digests": [weights_digest(ctx.output("model").path) for ctx in (whole, parted)],
        "start": world.model.facts["weights_digest"],
    }


def main(folder: Path) -> None:
    told: dict[str, Any] = {}
    initialize(seed=1)
    model = build_model(CONFIG, ddp=False)
    scale(model, 5.0)  # far from uniform
    words = folder / "tokenizer"
    tokenizer = train_tokenizer(["the rhine", "the rhone"] * 4, 320, words, tokens=TOKENS)
    engines = {
        name: open_engine(name, model, CONFIG, tokenizer=words) for name in ("in_process", "vllm")
    }
    vllm = engines["vllm"]
    assert isinstance(vllm, VllmEngine)
    for name, engine in engines.items():
        begin = time.monotonic()
        engine.update()
        told[name] = {"start_seconds": time.monotonic() - begin}
        told[name]["greedy"] = plain(engine.generate(PROMPTS, GREEDY, seed=1))
        told[name] |= {str(warmth): sampled(model, engine, warmth) for warmth in (1.0, 0.7)}

    one = SamplingParams(max_new_tokens=40)
    told["together"] = plain(vllm.generate(PROMPTS, one, samples_per_prompt=4, seed=[1, 2, 3, 4]))
    told["alone"] = plain(vllm.generate([PROMPTS[2]], one, samples_per_prompt=2, seed=[3]))
    filters = {"temperature": 0.8, "top_k": 24, "top_p": 0.9, "repetition_penalty": 1.3}
    filtered = SamplingParams(max_new_tokens=24, min_new_tokens=4, stop_ids=STOPS * 4, **filters)
    drawn = vllm.generate(PROMPTS, filtered, samples_per_prompt=4, seed=6)
    told["filtered"] = {"gap": gap_of_filtered(model, drawn, filtered), "drawn": plain(drawn)}

    found = engines["in_process"].generate(PROMPTS, GREEDY, seed=1)
    letters = [tokenizer.decode([token]) for [sample] in found for token in sample.tokens[8:]]
    until = replace(GREEDY, end_strings=[next(text for text in letters if text.isalpha())])
    for name, engine in engines.items():
        told[name]["until"] = plain(engine.generate(PROMPTS, until, seed=1))

    scale(model, 1.2)
    told["before_update"] = plain(vllm.generate(PROMPTS, GREEDY, seed=1))
    vllm.update()
    for name, engine in engines.items():
        told[name]["updated"] = plain(engine.generate(PROMPTS, GREEDY, seed=1))
    told["updated"] = sampled(model, vllm, 1.0)

    with pytest.MonkeyPatch.context() as monkeypatch:
        told["rlhf"] = align(folder, vllm, monkeypatch)
    vllm.model = model

    Timer(0.2, os.kill, (vllm.process.pid, signal.SIGKILL)).start()
    begin = time.monotonic()
    try:
        vllm.generate(PROMPTS, one, samples_per_prompt=4000, seed=1)
    except StepFailed as error:
        told["killed"] = {"error": str(error), "seconds": time.monotonic() - begin}
    vllm.close()
    told["left"] = vllm.folder.exists()

    orphan = open_engine("vllm", model, CONFIG)
    assert isinstance(orphan, VllmEngine)
    told["orphan"] = {"pid": orphan.process.pid, "folder": str(orphan.folder)}
    (folder / "told.json").write_text(json.dumps(told))
    os.kill(os.getpid(), signal.SIGKILL)  # a trainer that dies closes nothing


if __name__ == "__main__":
    main(Path(sys.argv[1]))
