"""The training path on the device at hand: does it hold, and what does it cost?

    python tests/gpu/figures.py [--device cuda|cpu] [--json FILE] [SECTION ...]

On a GPU a random Llama of a billion weights: logits against plain torch, the training step on
packed rows, the same with layers that are computed again and with adapters, a SteerLM 2.0 group
against the two-phase form, sampling, a GRPO step, save and resume; and then the tiny chain in
float32, in bfloat16 and with adapters. ``--device cpu`` runs the same in small, without the chain,
which is what CI does. Every section stands alone: one that fails is told with its error, and the
exit code is 1. No section begins after ``SECONDS``. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemotron_style.steps.blocks.checkpoint.hf_config import build_settings
from nemotron_style.steps.blocks.checkpoint.hf_weights import export_weights
from nemotron_style.steps.blocks.checkpoint.logit_parity import model_logits, sample_rows
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import full_weights
from nemotron_style.steps.blocks.checkpoint.reference_model import reference_logits
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.device import prepare_device
from nemotron_style.steps.blocks.model.language_model import build_model, unwrap, wrap
from nemotron_style.steps.blocks.model.lora import adapters_off, apply_lora
from nemotron_style.steps.blocks.model.prefix_packing import (
    Group,
    PackedBatch,
    Row,
    pack,
    pack_rows,
    pack_sequence,
)
from nemotron_style.steps.blocks.preflight.memory import count_layer
from nemotron_style.steps.blocks.settings.generation_config import sampler_limit
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.blocks.settings.optimizer_config import OptimConfig
from nemotron_style.steps.blocks.settings.parallel_config import Activations
from nemotron_style.steps.blocks.settings.peft_config import LoraTuning
from nemotron_style.steps.blocks.training.microbatch import accumulate_gradients, score
from nemotron_style.steps.blocks.training.optimizer import build_optimizer
from nemotron_style.steps.blocks.training.training_state import load_state, save_state
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.train_sample import (
    TrainSample,
    accumulate_policy_loss,
    add_previous,
    add_reference,
    compute_logprobs,
)

# Dense bfloat16 products, TFLOP/s, by the vendor's data sheets; MFU is taken of these.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}

TINY = ModelConfig(
    num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4,
    num_query_groups=2, vocab_size=256, max_sequence_length=512,
)  # fmt: skip
BILLION = ModelConfig(  # the sizes of Llama-3.2-1B, with a vocabulary of 32k
    num_layers=16, hidden_size=2048, ffn_hidden_size=8192, num_attention_heads=32,
    num_query_groups=8, vocab_size=32768, max_sequence_length=8192, rope_theta=500000.0,
    tie_embeddings=True,
)  # fmt: skip

SECONDS = 440
"""After which no section begins: the whole is to end within eight minutes."""

LEFT_OUT = {"left_out": "on a CPU the tests of the steps run it"}


@dataclass(frozen=True)
class Scale:
    """How much of everything: on a GPU as people have it, on a CPU in small."""

    config: ModelConfig
    dtype: torch.dtype
    rows: int
    length: int
    group: tuple[int, int, int]  # prompt, response, count
    prompts: int
    new_tokens: int
    rounds: int


LARGE = Scale(BILLION, torch.bfloat16, 4, 4096, (2048, 512, 8), 64, 256, 8)
SMALL = Scale(TINY, torch.float32, 2, 64, (32, 16, 4), 2, 8, 2)


def median_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Median wall time of ``work`` after two runs of warming up, the device waited for."""
    taken = []
    for turn in range(rounds + 2):
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        if turn >= 2:
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_gb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def reset_memory() -> None:
    gc.collect()  # modules and their hooks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def random_ids(config: ModelConfig, length: int, *, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, config.vocab_size, (length,), generator=draw).tolist()


def mean_nll(logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    loss = -logprobs.sum() / batch.label_tokens
    return loss, loss.detach()


def count_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Forward and backward: 6 a weight of every product and token, causal attention at half."""
    products = config.num_layers * count_layer(config) + config.hidden_size * config.vocab_size
    attention = config.num_layers * config.num_attention_heads * config.head_size
    return 6.0 * (products * sum(lengths) + attention * sum(length**2 for length in lengths))


def chat_lengths(scale: Scale) -> list[int]:
    """Tokens of samples as chats have them, that fill the rows of ``scale`` to the last token."""
    draw, room = random.Random(1), scale.rows * scale.length
    lengths: list[int] = []
    while room:
        length = min(scale.length, room, max(8, int(draw.lognormvariate(6.0, 0.8))))
        length = room if room - length < 8 else length  # no rest of a few tokens
        lengths.append(min(length, scale.length))
        room -= lengths[-1]
    return sorted(lengths)


def parity(scale: Scale) -> dict[str, Any]:
    """float32 logits of a tiny model on this device against plain torch on the CPU."""
    model = build_model(TINY, ddp=False)
    tensors: dict[str, Tensor] = {}
    for part in export_weights(full_weights(model), TINY):
        tensors |= {name: tensor.cpu() for name, tensor in part.items()}
    tokens = sample_rows(TINY.vocab_size, rows=4, tokens=96, seed=1)
    settings = build_settings(TINY, dtype="float32", token_ids={})
    theirs = reference_logits(settings, tensors.__getitem__, tokens)
    difference = float((model_logits(model, tokens) - theirs).abs().max())
    if not difference < 1e-4:
        raise AssertionError(f"logits are {difference:.3g} apart")
    return {"max_logit_difference": difference}


def train(scale: Scale, model: nn.Module) -> dict[str, Any]:
    """Forward, backward and AdamW on packed samples, every token but the first trained on."""
    lengths = chat_lengths(scale)
    rows = [random_ids(scale.config, length + 1, seed=i) for i, length in enumerate(lengths)]
    packed = pack_sequence([Row(row, [False] + [True] * (len(row) - 1)) for row in rows])
    optimizer = build_optimizer(model, OptimConfig(lr=1e-4))
    losses: list[float] = []

    def step() -> None:
        [loss] = accumulate_gradients(model, [(packed, packed)], mean_nll)
        optimizer.step(1e-4, step=1, loss=float(loss))
        losses.append(float(loss))

    seconds = median_seconds(step, rounds=scale.rounds)
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss did not fall: {losses}")
    tflops = count_flops(scale.config, lengths) / seconds / 1e12
    return {
        "samples": len(lengths),
        "tokens": sum(lengths),
        "seconds": seconds,
        "tokens_per_second": sum(lengths) / seconds,
        "tflops": tflops,
        "mfu": mfu(tflops),
        "peak_memory_gb": peak_memory_gb(),
        "loss": [losses[0], losses[-1]],
    }


def packed_step(scale: Scale) -> dict[str, Any]:
    """The training step of ``sft/chat`` on packed samples."""
    reset_memory()
    return train(scale, build_model(scale.config, dtype=scale.dtype))


def recompute_step(scale: Scale) -> dict[str, Any]:
    """The same with every layer computed again in the backward pass; mfu counts it once."""
    reset_memory()
    again = Activations(recompute_method="uniform")
    return train(scale, build_model(scale.config, dtype=scale.dtype, activations=again))


def lora_step(scale: Scale) -> dict[str, Any]:
    """The same with adapters of rank 16 on every linear layer; without them it is the start."""
    reset_memory()
    model = unwrap(build_model(scale.config, dtype=scale.dtype, ddp=False))
    apply_lora(model, LoraTuning(target_modules=["all"], adapter_dim=16), seed=1)
    probe = [pack_rows([Row(random_ids(scale.config, 32, seed=9), [False] + [True] * 31)])]
    [start] = score(model, probe)
    wrapped = wrap(model)
    # Two thirds of the products: a frozen weight has no gradient, so tflops and mfu say too much.
    figures = {
        name: value
        for name, value in train(scale, wrapped).items()
        if name not in ("tflops", "mfu")
    }
    [adapted] = score(model, probe)
    with adapters_off(model):
        [off] = score(model, probe)
    if not torch.equal(off, start) or torch.equal(adapted, start):
        raise AssertionError("adapters do not hold what was learnt, or not all of it")
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return figures | {"trained_weights": weights}


def mfu(tflops: float) -> float | None:
    """The share of the card's peak, None where that is not known."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if name in card]
    return tflops / peaks[0] if peaks else None


def group_step(scale: Scale) -> dict[str, Any]:
    """SteerLM 2.0's gradient for a group: one packed pass, and the usual two phases over rows."""
    reset_memory()
    prompt, response, count = scale.group
    prompt_ids = random_ids(scale.config, prompt, seed=1)
    responses = [random_ids(scale.config, response, seed=2 + i) for i in range(count)]
    packed = pack([Group(prompt_ids, responses)])
    alone = [pack([Group(prompt_ids, [ids])]) for ids in responses]
    sampler = torch.randn(count) * 5 - 7.0 * response
    weights = torch.softmax(torch.randn(count), dim=0)
    device_sampler, device_weights = sampler.to(prepare_device()), weights.to(prepare_device())
    model = build_model(scale.config, dtype=scale.dtype)

    def one_pass_loss(logprobs: Tensor, _facts: None) -> tuple[Tensor, Tensor]:
        sums = logprobs[0].sum(dim=1)
        shares = torch.softmax(sums.detach() - device_sampler, dim=0)
        loss = -((device_weights - shares) * sums).sum() / response
        return loss, loss.detach()

    def one_pass() -> Tensor:
        accumulate_gradients(model, [(packed, None)], one_pass_loss)
        return gradient(model)

    def share_loss(logprobs: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        loss = -(share * logprobs.sum()) / response
        return loss, loss.detach()

    def two_phases() -> Tensor:
        sums = torch.stack([logprobs.sum() for logprobs in score(model, alone)])
        shares = weights - torch.softmax(sums - sampler, dim=0)
        accumulate_gradients(model, list(zip(alone, shares, strict=True)), share_loss)
        return gradient(model)

    ours = median_seconds(one_pass, rounds=scale.rounds)
    memory = peak_memory_gb()
    theirs = median_seconds(two_phases, rounds=max(2, scale.rounds // 2))
    one, two = one_pass(), two_phases()
    apart = float((one - two).norm() / two.norm())
    if not apart < (1e-4 if scale.dtype is torch.float32 else 0.1):
        raise AssertionError(f"the gradients are {apart:.3g} apart")
    return {
        "seconds": ours,
        "two_phases_seconds": theirs,
        "ratio": theirs / ours,
        "peak_memory_gb": memory,
        "gradient_difference": apart,
    }


def gradient(model: nn.Module) -> Tensor:
    """The gradient of one matrix, to compare by."""
    return unwrap(model).decoder.layers[0].mlp.linear_fc1.weight.main_grad.detach().clone().float()


def sampling(scale: Scale) -> dict[str, Any]:
    """Tokens a second that the in-process engine draws, prompts of one length."""
    reset_memory()
    model = build_model(scale.config, dtype=scale.dtype, ddp=False)
    engine = Engine(model, scale.config)
    prompts = [random_ids(scale.config, 128, seed=i) for i in range(scale.prompts)]
    if scale.config is TINY:
        prompts = [prompt[:16] for prompt in prompts]
    settings = SamplingParams(max_new_tokens=scale.new_tokens)

    def draw(seed: int = 1) -> list[list[int]]:
        drawn = engine.generate(prompts, settings, samples_per_prompt=1, seed=seed)
        return [sample.tokens for group in drawn for sample in group]

    if draw() != draw():
        raise AssertionError("the same seed drew other tokens")
    seconds = median_seconds(draw, rounds=2)
    tokens = scale.prompts * scale.new_tokens
    return {"seconds": seconds, "tokens_per_second": tokens / seconds}


def grpo_step(scale: Scale) -> dict[str, Any]:
    """A step of ``rl/rlhf`` without its judge: sampling, log-probs of both models, one update."""
    reset_memory()
    prompt, response, count = scale.group
    prompts = [
        random_ids(scale.config, prompt // 4, seed=i) for i in range(max(2, scale.prompts // count))
    ]
    given = {"generation": {"backend": "in_process"}, "precision": "float32"}
    given |= {"train_global_batch_size": len(prompts) * count, "train_micro_batch_size": count}
    config = Config.model_validate(
        {
            "grpo": {"num_prompts_per_step": len(prompts), "num_generations_per_prompt": count},
            "policy": given | {"logprob_batch_size": count},
        }
    )
    model = build_model(scale.config, dtype=scale.dtype)
    reference = build_model(scale.config, dtype=scale.dtype, ddp=False)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-6))
    engine, sampling = Engine(model, scale.config), SamplingParams(max_new_tokens=response // 2)
    parts: dict[str, list[float]] = {"sample": [], "logprobs": [], "update": []}
    errors: list[float] = []

    def step() -> None:
        begin = time.perf_counter()
        drawn = engine.generate(prompts, sampling, samples_per_prompt=count, seed=1)
        sampled = time.perf_counter()
        samples = [
            TrainSample(
                group=number,
                prompt_ids=prompts[number],
                tokens=one.tokens,
                generation_T=torch.tensor(one.log_probs),
                advantage=float(index) - (count - 1) / 2,
                reward=float(index),
            )
            for number, group in enumerate(drawn)
            for index, one in enumerate(group)
        ]
        samples = add_previous(samples, compute_logprobs(model, samples, config.policy))
        samples = add_reference(samples, compute_logprobs(reference, samples, config.policy))
        scored = time.perf_counter()
        update = accumulate_policy_loss(model, samples, config)
        optimizer.step(1e-6, step=1, loss=update["loss"])
        synchronize()
        errors.append(update["token_mult_prob_error"])
        ends = (begin, sampled, scored, time.perf_counter())
        for name, (first, last) in zip(parts, pairwise(ends), strict=True):
            parts[name].append(last - first)

    seconds = median_seconds(step, rounds=2)
    if not max(errors) < sampler_limit("in_process", half=scale.dtype is torch.bfloat16):
        raise AssertionError(f"sampler and trainer disagree: token_mult_prob_error {max(errors)}")
    return {
        "seconds": seconds,
        **{f"{name}_seconds": statistics.median(taken[2:]) for name, taken in parts.items()},
        "samples": len(prompts) * count,
        "token_mult_prob_error": max(errors),
        "peak_memory_gb": peak_memory_gb(),
    }


def save_and_resume(scale: Scale) -> dict[str, Any]:
    """Three steps, saved after the second, and the third again from the saved state: same bits."""
    rows = [random_ids(scale.config, 128, seed=i) for i in range(2)]
    packed = pack_rows([Row(row, [False] + [True] * 127) for row in rows])

    def fresh() -> tuple[nn.Module, Any]:
        model = build_model(scale.config, dtype=scale.dtype)
        return model, build_optimizer(model, OptimConfig(lr=1e-4))

    def step(model: nn.Module, optimizer: Any) -> None:
        accumulate_gradients(model, [(packed, packed)], mean_nll)
        optimizer.step(1e-4, step=1, loss=1.0)

    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = fresh()
        step(model, optimizer)
        step(model, optimizer)
        begin = time.perf_counter()
        save_state(Path(folder), model, optimizer, extra={"step": 2})
        saved = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        step(model, optimizer)
        kept = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        del model, optimizer
        again, optimizer = fresh()
        begin = time.perf_counter()
        extra = load_state(Path(folder), again, optimizer)
        loaded = time.perf_counter() - begin
        step(again, optimizer)
    parted = [n for n, p in again.named_parameters() if not torch.equal(p.detach().cpu(), kept[n])]
    if parted or extra != {"step": 2}:
        raise AssertionError(f"{len(parted)} tensors differ after resuming: {parted[:3]}")
    return {"save_seconds": saved, "load_seconds": loaded, "bytes": size}


def summary(printed: str) -> list[str]:
    """The closing words of ``steps run``, from the table of steps to where to look next."""
    lines = [line.rstrip() for line in printed.splitlines()]
    begin = max((n for n, line in enumerate(lines) if line.startswith("STEP")), default=0)
    end = next((n for n in range(begin, len(lines)) if lines[n] in ("Look at", "Next")), None)
    return [line for line in lines[begin:end] if line]


def run_steps(*commands: list[str], store: Path) -> dict[str, Any]:
    """Commands of the command line, one after the other; their seconds and their last words."""
    figures: dict[str, Any] = {}
    env = os.environ | {"NEMOTRON_STYLE_HOME": str(store)}
    for words in commands:
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nemotron_style.runtime", "steps", "run", *words],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        figures[" ".join(words)] = {
            "seconds": time.perf_counter() - begin,
            "said": summary(done.stdout),
        }
    return figures


def chain(scale: Scale) -> dict[str, Any]:
    """SteerLM 2.0 from nothing, and what it gained."""
    if scale is SMALL:
        return LEFT_OUT
    with tempfile.TemporaryDirectory() as store:
        commands = [[step, "-c", "tiny"] for step in ("sft/steerlm2", "eval/steerability")]
        return run_steps(*commands, store=Path(store))


def bf16_chain(scale: Scale) -> dict[str, Any]:
    """sft/chat in bfloat16, which is what a GPU trains in; adapters for its model, the two merged,
    and a reward model.
    """
    if scale is SMALL:
        return LEFT_OUT
    chat = ["sft/chat", "-c", "tiny", "trainer.precision=bf16", "--name"]
    on_top = ["-i", "model=base", "model.architecture=null", "model.peft.peft_scheme=lora"]
    merge = ["convert/merge_lora", "-c", "tiny", "-i", "model=base", "-i", "adapter=adapted"]
    adapt = [*chat, "adapted", *on_top, "trainer.sft.max_steps=100"]
    reward = ["reward/regression", "-c", "tiny", "-i", "model=base", "trainer.precision=bf16"]
    with tempfile.TemporaryDirectory() as store:
        return run_steps([*chat, "base"], adapt, merge, reward, store=Path(store))


def rl_chain(scale: Scale) -> dict[str, Any]:
    """rs/actor and rl/rlhf with the services beside them."""
    if scale is SMALL:
        return LEFT_OUT
    with tempfile.TemporaryDirectory() as store:
        commands = [["rs/actor", "-c", "tiny"], ["rl/rlhf", "-c", "tiny"]]
        return run_steps(*commands, store=Path(store))


SECTIONS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "parity": parity,
    "packed_step": packed_step,
    "recompute_step": recompute_step,
    "lora_step": lora_step,
    "group_step": group_step,
    "sampling": sampling,
    "grpo_step": grpo_step,
    "save_and_resume": save_and_resume,
    "chain": chain,
    "bf16_chain": bf16_chain,
    "rl_chain": rl_chain,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    words = parser.parse_args()
    if unknown := set(words.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if words.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu runs the same in small")
    parallel.initialize(seed=0)
    scale = SMALL if words.device == "cpu" else LARGE
    card = torch.cuda.get_device_name() if words.device == "cuda" else "CPU"
    result: dict[str, Any] = {"device": card, "torch": torch.__version__, "dtype": str(scale.dtype)}
    print(f"{card}, torch {torch.__version__}, {prepare_device()}", flush=True)
    failed, started = 0, time.perf_counter()
    for name in words.sections or SECTIONS:
        begin = time.perf_counter()
        try:
            if begin - started > SECONDS:
                raise TimeoutError(f"not begun: {SECONDS} seconds are over")
            result[name] = SECTIONS[name](scale)
        except Exception as error:  # the other sections still say what they have to say
            failed += 1
            traceback.print_exc()
            result[name] = {"error": f"{type(error).__name__}: {error}"[:4000]}
        print(f"{name}: {time.perf_counter() - begin:.1f} s", json.dumps(result[name]), flush=True)
        if words.json:
            words.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
