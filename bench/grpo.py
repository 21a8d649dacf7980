"""Cost of a GRPO step, as a ratio of CPU time against TRL's ``GRPOTrainer`` in one process.

    OMP_NUM_THREADS=1 python bench/grpo.py [1M] [30M] [parts] [smoke]

Run it with the interpreter of an environment that has TRL (``make bench-trl``). A step draws
4 prompts x 8 samples x 64 tokens after prompts of 64 tokens, decodes them, calls a reward function,
compares samples within their group, weighs them under a frozen reference model, makes one update
(token-level clipped loss with a KL penalty, gradient clipping, fused AdamW) and counts its metrics.

*Equal:* weights, float32, number of tokens, temperature, stop token (outside of the vocabulary, so
that no sample ends early), reward, loss, optimizer, one update of all 32 samples at once. On
policy, both take the log-probs of the update itself for the old ones. Before anything is timed,
the same samples go through both, and loss, gradient and log-probs are printed side by side; what
the gradients differ by is what is added to a group's deviation, 1e-6 here and 1e-4 in TRL.

*Not equal:* ours computes each prompt once instead of eight times, draws from a cache without
Hugging Face's ``generate``, gives the log-prob of every token as it was drawn, and counts more
metrics. TRL computes logits of prompts too (it always does without Triton) and the exact entropy.

TRL runs its own ``training_step`` (which draws, rewards and learns), clipping, optimizer and
``log``; the rest of ``Trainer``'s loop and its data loader are left out, to its advantage.
Attention is torch's fused kernel. ``parts`` tells where the time of our step goes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import SMOKE, compare
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from torch import nn
from twin import NEW_TOKENS, PROMPT_TOKENS, PROMPTS, ROUNDS, SAMPLES, hugging_face, sizes

from nemotron_style.steps.blocks.data.chat.opening import open_chat
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.data.tokenizer import Tokenizer
from nemotron_style.steps.blocks.data.tokenizer_files import write_settings
from nemotron_style.steps.blocks.generation.engine import Engine
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.judge.aggregation import Answer
from nemotron_style.steps.blocks.loss.advantage import group_advantages
from nemotron_style.steps.blocks.loss.loss_metrics import merge_metrics
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.rank_zero import RankZero
from nemotron_style.steps.blocks.training.optimizer import build_optimizer, gradient_norm
from nemotron_style.steps.rl.rlhf.advantages import build_samples, shape_rewards
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.hacking_alert import find_alerts
from nemotron_style.steps.rl.rlhf.metrics import measure_kl, rollout_metrics
from nemotron_style.steps.rl.rlhf.rollout import Rollout, RolloutSampler, Sample
from nemotron_style.steps.rl.rlhf.train_sample import (
    TrainSample,
    accumulate_policy_loss,
    add_previous,
    add_reference,
    compute_logprobs,
)

ROWS = PROMPTS * SAMPLES
LR, BETA, CLIP, MAX_NORM = 1e-6, 0.05, 0.2, 1.0
SETTINGS = {
    "grpo": {
        "num_prompts_per_step": PROMPTS,
        "num_generations_per_prompt": SAMPLES,
        "use_leave_one_out_baseline": False,
    },
    "loss_fn": {
        "ratio_clip_min": CLIP,
        "ratio_clip_max": CLIP,
        "reference_policy_kl_penalty": BETA,
        "force_on_policy_ratio": True,
    },
    "policy": {
        "train_global_batch_size": ROWS,
        "train_micro_batch_size": ROWS,
        "logprob_batch_size": ROWS,
        "precision": "float32",
        "max_grad_norm": MAX_NORM,
        "megatron_cfg": {"optimizer": {"lr": LR}},
    },
}


def reward(completions: Sequence[str], **_others: object) -> list[float]:
    """How many words of a text are even numbers."""
    return [float(sum(int(word) % 2 == 0 for word in text.split())) for text in completions]


def write_tokenizer(path: Path, *, words: int) -> Tokenizer:
    """Each id is a word, its number; control tokens stand behind what the model can draw."""
    backend = Backend(models.WordLevel({str(number): number for number in range(words)}, "0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chosen = ChatPromptTokens(
        system_turn_start="<s>", turn_start="<t>", label_start="<l>", end_of_turn="<e>"
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in chosen.atomic])
    path.mkdir(parents=True)
    backend.save(str(path / "tokenizer.json"))
    write_settings(path, chosen)
    return Tokenizer(path)


class Ours:
    """A GRPO step of the blocks that ``rl/rlhf`` is made of, in its order."""

    def __init__(self, name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self.config, sizes_of_model = Config(**SETTINGS), sizes(name)
        self.model = build_model(sizes_of_model)
        self.reference = build_model(sizes_of_model, seed=2, ddp=False)
        policy = self.config.policy
        self.optimizer = build_optimizer(
            self.model, policy.optim, gradient_clip=policy.max_grad_norm
        )
        chat = open_chat(tokenizer)
        sampling = SamplingParams(max_new_tokens=NEW_TOKENS, stop_ids=chat.stop_ids)
        self.steps = 0
        engine = Engine(self.model, sizes_of_model)
        self.sampler = RolloutSampler(engine, RankZero(), chat, sampling)
        self.prompts = [
            Prompt(({"role": "user", "content": text},), tokenizer.encode(text)) for text in texts
        ]

    def sample(self) -> list[Rollout]:
        self.steps += 1
        indices = range(len(self.prompts))
        return self.sampler.sample(self.prompts, indices, samples=SAMPLES, name=f"0/{self.steps}")

    def reward(self, rollouts: Sequence[Rollout]) -> tuple[list[TrainSample], dict[str, float]]:
        """Samples with rewards and advantages, and their metrics."""
        rewards = [reward([one.answer.text for one in each.samples]) for each in rollouts]
        shaped = shape_rewards(rollouts, rewards, self.config.grpo)
        baseline = shaped.baseline(leave_one_out=self.config.leave_one_out)
        advantages_B = group_advantages(shaped.rewards_B, baseline)
        samples = build_samples(rollouts, shaped, advantages_B)
        return samples, rollout_metrics(rollouts, shaped, baseline, samples)

    def add_reference(self, samples: Sequence[TrainSample]) -> list[TrainSample]:
        """Samples with the log-probs of the reference."""
        logprobs = compute_logprobs(self.reference, samples, self.config.policy)
        return add_reference(samples, logprobs)

    def add_previous(self, samples: Sequence[TrainSample]) -> list[TrainSample]:
        """Samples with the policy's own log-probs before the update; off-policy losses need it."""
        return add_previous(samples, compute_logprobs(self.model, samples, self.config.policy))

    def accumulate(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        return accumulate_policy_loss(self.model, samples, self.config)

    def step(self, *, off_policy: bool = False) -> dict[str, float]:
        samples, metrics = self.reward(self.sample())
        if off_policy:
            samples = self.add_previous(samples)
        samples = self.add_reference(samples)
        update = self.accumulate(samples)
        update |= {"lr": LR, "grad_norm": self.optimizer.step(LR, step=1, loss=update["loss"])}
        metrics |= (
            measure_kl(samples) | merge_metrics([update]) | {"start_tokens": float(NEW_TOKENS)}
        )
        find_alerts(metrics)
        return metrics


class Theirs:
    """A training step of TRL on the weights of ``ours``."""

    def __init__(self, ours: Ours, name: str, folder: Path, texts: Sequence[str]) -> None:
        from datasets import Dataset
        from transformers import AutoTokenizer, PrinterCallback, ProgressCallback
        from transformers.utils.logging import disable_progress_bar
        from trl import GRPOConfig, GRPOTrainer

        disable_progress_bar()

        config = sizes(name)
        policy = hugging_face(ours.model, config, torch.float32)
        reference = hugging_face(ours.reference, config, torch.float32)
        reference.save_pretrained(folder)  # TRL reads its reference model from a folder
        policy.config._name_or_path = str(folder)
        settings = GRPOConfig(
            output_dir=str(folder / "out"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=ROWS,
            steps_per_generation=1,
            num_generations=SAMPLES,
            max_completion_length=NEW_TOKENS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_NORM,
            beta=BETA,
            epsilon=CLIP,
            optim="adamw_torch_fused",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        self.trainer = GRPOTrainer(
            model=policy,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=AutoTokenizer.from_pretrained(ours.sampler.chat.tokenizer.path),
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.remove_callback(ProgressCallback)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1  # as ``train`` sets it
        self.model: nn.Module = policy.train()
        self.batch = [{"prompt": text} for text in texts for _ in range(SAMPLES)]

    def step(self) -> None:
        trainer = self.trainer
        trainer.training_step(self.model, self.batch, None)
        trainer.accelerator.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        trainer.optimizer.step()
        self.model.zero_grad()
        trainer.log({})


def show_agreement(ours: Ours, theirs: Theirs) -> None:
    """Compute the loss of the samples that TRL drew, on both sides."""
    trainer = theirs.trainer
    inputs = trainer._generate_and_score_completions(theirs.batch)
    loss = trainer.compute_loss(theirs.model, inputs)
    loss.backward()
    norm = nn.utils.get_total_norm([one.grad for one in theirs.model.parameters()])
    theirs.model.zero_grad()
    tokens = inputs["completion_ids"].view(PROMPTS, SAMPLES, -1).tolist()
    samples, _ = ours.reward(
        [_as_rollout(ours, *pair) for pair in zip(ours.prompts, tokens, strict=True)]
    )
    samples = ours.add_reference(ours.add_previous(samples))
    metrics = ours.accumulate(samples)
    apart = torch.stack([one.reference_T for one in samples]) - inputs["ref_per_token_logps"]
    own_norm = gradient_norm(ours.optimizer.parameters)
    advantages = torch.tensor([one.advantage for one in samples]) - inputs["advantages"]
    drawn = sum(len(one.tokens) for one in ours.reward(ours.sample())[0])
    print(
        f"  tokens drawn: ours {drawn}, TRL {int(inputs['completion_mask'].sum())}\n"
        f"  on the same samples: loss {metrics['loss']:.8f} and {loss.item():.8f}, gradient norm "
        f"{own_norm:.7f} and {norm.item():.7f},\n  advantages apart by at most "
        f"{advantages.abs().max():.1e}, log-probs under the reference {apart.abs().max():.1e}"
    )


def _as_rollout(ours: Ours, prompt: Prompt, group: Sequence[list[int]]) -> Rollout:
    decode = ours.sampler.chat.tokenizer.decode
    return Rollout(
        "", prompt, [Sample(ids, [0.0] * len(ids), Answer(decode(ids), ""), True) for ids in group]
    )


def bench(ours: Ours, theirs: Theirs, name: str) -> None:
    parameters = sum(weight.numel() for weight in ours.model.parameters()) / 1e6
    variants: dict[str, Callable[[], object]] = {
        "ours": ours.step,
        "ours, with log-probs before the update": lambda: ours.step(off_policy=True),
        "TRL's GRPOTrainer": theirs.step,
    }
    title = (
        f"a GRPO step, {PROMPTS} x {SAMPLES} x {NEW_TOKENS} tokens, {parameters:.1f}M parameters"
    )
    compare(title, variants, rounds=ROUNDS[name])


def bench_parts(ours: Ours, name: str) -> None:
    rollouts = ours.sample()
    samples = ours.reward(rollouts)[0]
    complete = ours.add_reference(samples)
    variants: dict[str, Callable[[], object]] = {
        "a step": ours.step,
        "rollout": ours.sample,
        "reward, advantages and their metrics": lambda: ours.reward(rollouts),
        "reference": lambda: ours.add_reference(samples),
        "gradients and metrics": lambda: ours.accumulate(complete),
        "clipping and AdamW": lambda: ours.optimizer.step(LR, step=1, loss=0.0),
    }
    compare(f"our step, {name}", variants, rounds=ROUNDS[name])


def main() -> None:
    words = {*sys.argv[1:], *(["1M"] if SMOKE else [])}
    torch.set_num_threads(1)
    parallel.initialize(seed=0)
    for name in [word for word in ROUNDS if word in words] or list(ROUNDS):
        torch.manual_seed(0)
        drawn = torch.randint(sizes(name).vocab_size, (PROMPTS, PROMPT_TOKENS)).tolist()
        texts = [" ".join(map(str, row)) for row in drawn]
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = write_tokenizer(Path(folder, "tokenizer"), words=sizes(name).vocab_size)
            ours = Ours(name, tokenizer, texts)
            if "parts" in words:
                bench_parts(ours, name)
                continue
            theirs = Theirs(ours, name, Path(folder, "reference"), texts)
            show_agreement(ours, theirs)
            bench(ours, theirs, name)


if __name__ == "__main__":
    main()
