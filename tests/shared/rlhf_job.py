"""Log-probs, losses and gradients of rl/rlhf for each number of processes."""

import json
import random

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from gradient import full_gradient
from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.blocks.judge.client import JudgeUnavailable
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.train_sample import (
    TrainSample,
    accumulate_policy_loss,
    add_previous,
    add_reference,
    compute_logprobs,
    mask_wide_gaps,
)

SIZES = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    vocab_size=64,
    max_sequence_length=64,
)
PASSES = (1, 2, 3, 16)
TEMPERATURE = 0.8
OPTIONS = {
    "ppo": {},
    "sequence": {"token_level_loss": False, "use_importance_sampling_correction": True},
    "recipe": {
        "reference_policy_kl_penalty": 0.1,
        "ratio_clip_max": 0.28,
        "kl_input_clamp_value": None,
        "kl_output_clamp_value": None,
        "use_on_policy_kl_approximation": True,
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "tis",
        "truncated_importance_sampling_ratio": 5.0,
        "force_on_policy_ratio": True,
    },
}


def settings(size, loss_fn=None):
    """A config with micro-batches of ``size`` samples."""
    policy = {
        "train_global_batch_size": 256,
        "train_micro_batch_size": size,
        "logprob_batch_size": size,
        "generation": {"temperature": TEMPERATURE},
    }
    return Config.model_validate({"policy": policy, "loss_fn": loss_fn or {}})


def samples():
    """Groups of two to four samples of many lengths; one sample of each group is masked."""
    draw = random.Random(5)

    def text(most):
        return [draw.randrange(SIZES.vocab_size) for _ in range(draw.randint(1, most))]

    made = []
    for group, count in enumerate((2, 4, 3, 4, 2, 4, 3)):
        prompt = text(9)
        for number in range(count):
            tokens = text(20)
            made.append(
                TrainSample(
                    group=group,
                    prompt_ids=prompt,
                    tokens=tokens,
                    generation_T=torch.tensor([-4.0 - draw.random() for _ in tokens]),
                    advantage=draw.gauss(0, 1),
                    reward=draw.gauss(0, 1),
                    mask=float(number > 0),
                )
            )
    return made


def share(rank_zero):
    """What every rank gets of the work of rank zero, and of the error it ends with."""

    def fail():
        raise JudgeUnavailable(Problem(what="gone", where=str(dist.get_rank())))

    shared = [rank_zero.run(lambda: [dist.get_rank(), "first"])]
    try:
        rank_zero.run(fail)
    except JudgeUnavailable as error:
        shared.append(str(error))
    return rank_zero.gather(shared)


def measure(out):
    facts, tensors = {"logprobs": [], "metrics": {}}, {}
    model, other = build_model(SIZES, seed=11), build_model(SIZES, seed=12, ddp=False)
    plain = samples()
    for size in PASSES:
        logprobs = compute_logprobs(other, plain, settings(size).policy)
        facts["logprobs"].append([each.double().sum().item() for each in logprobs])
    previous, reference = (
        compute_logprobs(each, plain, settings(16).policy) for each in (model, other)
    )
    previous = [each + 0.05 for each in previous]
    facts["shared"] = share(RankZero())
    complete = add_reference(add_previous(plain, previous), reference)
    facts["masks"] = [one.mask for one in mask_wide_gaps(complete, 1.5)[0]]
    for name, options in OPTIONS.items():
        for size in PASSES:
            model = build_model(SIZES, seed=11)
            metrics = accumulate_policy_loss(model, complete, settings(size, options))
            facts["metrics"].setdefault(name, []).append(metrics)
            kept = full_gradient(model).items()
            tensors |= {f"{name}/{size}/{key}": value.contiguous() for key, value in kept}
    if dist.get_rank() == 0:
        (out / "facts.json").write_text(json.dumps(facts))
        save_file(tensors, out / "tensors")


DIVISIONS = {"data": Parallel(), "tensor": Parallel(tensor=2), "pipeline": Parallel(pipeline=2)}


def main(out):
    """What a rank does."""
    for name, division in DIVISIONS.items():
        parallel.initialize(division, seed=1)
        (out / name).mkdir(parents=True, exist_ok=True)
        measure(out / name)
    parallel.finish()
