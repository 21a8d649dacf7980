"""Every training step, begun with one division of its model and ended with another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

import rlhf_world
import steerlm2_world
from nemotron_style.runtime.config.model import StepConfig
from nemotron_style.runtime.step.context import ProcessRank, StepContext
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model, weights_digest
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import Parallel
from nemotron_style.steps.blocks.reward.client import Health
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.reward.regression import recipe as regression
from nemotron_style.steps.reward.regression.config import Config as RegressionConfig
from nemotron_style.steps.rl.rlhf import recipe as rlhf
from nemotron_style.steps.rl.rlhf.config import Config as RlhfConfig
from nemotron_style.steps.rs.actor import recipe as actor
from nemotron_style.steps.rs.actor.config import Config as ActorConfig
from nemotron_style.steps.sft.chat import recipe as chat
from nemotron_style.steps.sft.chat.config import Config as ChatConfig
from nemotron_style.steps.sft.steerlm2 import recipe as steerlm2
from nemotron_style.steps.sft.steerlm2.config import Config as SteerLM2Config
from overrides import override

WORDS = steerlm2_world.WORDS
DIVISIONS = {
    "tensor2": Parallel(tensor=2),
    "pipeline2": Parallel(pipeline=2),
    "data2": Parallel(),
}
PASSES = {"one": 6, "tensor2": 1, "pipeline2": 4, "data2": 2}
"""Rows or responses of a pass, which must not matter either."""
ONE = "one"
SAVED = 3
"""Updates that are made before the division changes; as many follow. Both go around the rows."""


@dataclass(frozen=True)
class Case:
    """A step: its ``settings`` but for the division, and its ``metrics`` that are compared.

    ``pairs`` are the divisions that save and those that go on.
    """

    recipe: ModuleType
    config: type[StepConfig]
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    metrics: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    saved: int = SAVED
    division: str = "model"
    processes: str = "trainer.devices"
    passes: str = "model.micro_batch_size"

    def settings_of(self, name: str) -> StepConfig:
        """The config of a run with the division called ``name``."""
        division = DIVISIONS.get(name, Parallel())
        return self.config.model_validate_json(
            json.dumps(
                override(
                    self.settings,
                    f"{self.division}.tensor_model_parallel_size={division.tensor}",
                    f"{self.division}.pipeline_model_parallel_size={division.pipeline}",
                    f"{self.processes}={1 if name == ONE else 2}",
                    f"{self.passes}={PASSES[name]}",
                )
            )
        )


def _trainer(section: str, *, steps: int, saved: int) -> dict[str, Any]:
    length = {"max_steps": steps, "val_check_interval": 0, "save_interval": saved}
    return {"precision": 32, "samples": {"prompts": 0}, section: length}


_OPTIM = {"name": "adamw", "lr": 2e-3, "sched": {"min_lr": 2e-3}}
_SHORT = (("tensor2", "data2"), ("tensor2", ONE))
CASES = {
    "sft/chat": Case(
        chat,
        ChatConfig,
        {
            "trainer": _trainer("sft", steps=2 * SAVED, saved=SAVED),
            "model": {
                "optim": _OPTIM,
                "data": {
                    "sample": True,
                    "train_ds": {"global_batch_size": 6, "micro_batch_size": 2},
                },
            },
        },
        inputs=("model", "data"),
        metrics=("train_loss", "grad_norm", "epoch"),
        passes="model.data.train_ds.micro_batch_size",
        pairs=tuple(
            (first, then)
            for first in (ONE, *DIVISIONS)
            for then in (ONE, *DIVISIONS)
            if first != then
        ),
    ),
    "sft/steerlm2": Case(
        steerlm2,
        SteerLM2Config,
        {
            "trainer": _trainer("sft", steps=4, saved=2),
            "model": {
                "steerlm2": {"micro_batch_size": 8, "forward_micro_batch_size": 8},
                "data": {"sample": True, "train_ds": {"global_batch_size": 3}},
                "optim": _OPTIM,
            },
        },
        inputs=("model", "data", "validation"),
        metrics=("train_loss", "train_distance"),
        passes="model.steerlm2.micro_batch_size",
        pairs=_SHORT,
        saved=2,
    ),
    "reward/regression": Case(
        regression,
        RegressionConfig,
        {
            "trainer": _trainer("rm", steps=4, saved=2),
            "model": {
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "data": {"sample": True},
                "optim": _OPTIM,
            },
        },
        inputs=("model", "data"),
        metrics=("train_loss",),
        pairs=_SHORT,
        saved=2,
    ),
    "rs/actor": Case(
        actor,
        ActorConfig,
        {
            "trainer": _trainer("rs", steps=2, saved=1) | {"samples": {"prompts": 1}},
            "model": {
                "global_batch_size": 6,
                "micro_batch_size": 2,
                "rs": {
                    **{"num_rollout_samples": 3, "num_rollouts_per_prompt": 4},
                    **{"top_n_rollouts": 2, "rollout_micro_batch_size": 2},
                    "length_params": {"max_length": 8},
                },
                "data": {"sample": True},
                "optim": _OPTIM,
            },
        },
        inputs=("model", "prompts"),
        metrics=("loss", "reward_mean", "kl_to_start"),
        pairs=_SHORT,
        saved=1,
    ),
    "rl/rlhf": Case(
        rlhf,
        RlhfConfig,
        override(
            rlhf_world.SETTINGS,
            "grpo.max_num_steps=2",
            "grpo.val_period=0",
            "grpo.val_at_end=false",
            "checkpointing.save_period=1",
            "samples.prompts=1",
        ),
        inputs=("model", "prompts"),
        metrics=("loss", "grad_norm", "reward"),
        pairs=_SHORT,
        saved=1,
        division="policy.megatron_cfg",
        processes="processes",
        passes="policy.train_micro_batch_size",
    ),
}


class Reward:
    """Stands in for the client of a reward model: a score is a function of the text alone."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.stopping: Callable[[], bool] = lambda: False

    def wait_ready(self, _seconds: float) -> Health:
        return Health("reward", ("worth",))

    def score(self, conversations: Any) -> list[RewardScore]:
        texts = (conversation[-1]["content"] for conversation in conversations)
        return [RewardScore(float(sum(map(ord, text)) % 97), {}) for text in texts]

    def close(self) -> None:
        """Nothing is open."""


def make_inputs(root: Path) -> None:
    """A random model that two ranks can divide, and rows for every step."""
    parallel.initialize(seed=1)
    texts = [f"System User Assistant describe {a} {b} h:0 v:1" for a in WORDS for b in WORDS]
    tokenizer = train_tokenizer(texts, 320, root / "tokenizer", tokens=ChatPromptTokens())
    sizes = ModelConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=-(-tokenizer.vocab_size // 8) * 8,
        max_sequence_length=64,
    )
    model = build_model(sizes, seed=3, ddp=False)
    save_model(model, root / "model", config=sizes, tokenizer=tokenizer.path)
    asked = [f"describe {a} {b}" for a in WORDS for b in WORDS[:3]]
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": WORDS[n % 8] * n}]
        for n, text in enumerate(asked, start=1)
    ]
    groups = steerlm2_world.scored_rows(root / "model", 9)
    rows = {
        "sft/chat.data": [{"messages": one} for one in chats[:13]],
        "sft/steerlm2.data": groups[:7],
        "sft/steerlm2.validation": groups[7:],
        "reward/regression.data": [
            {"messages": one, "attributes": {"worth": n % 5}} for n, one in enumerate(chats)
        ],
        "rs/actor.prompts": [rlhf_world.ask(text) for text in asked],
        "rl/rlhf.prompts": [rlhf_world.ask(text) for text in asked],
    }
    for name, each in rows.items():
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))


@contextmanager
def stand_ins(recipe: ModuleType) -> Iterator[None]:
    """A recipe without plots, and with a reward model in its own process."""
    with patch.multiple(
        recipe, **{name: _nothing for name in ("draw_metrics", "draw") if hasattr(recipe, name)}
    ):
        if recipe is not actor:
            yield
            return
        with patch.object(actor, "open_client", lambda *_: Reward()):
            yield


def _nothing(*_: object, **__: object) -> None:
    """Stands in for a plot."""


def train(root: Path, step: str, name: str, run_dir: Path, *, url: str) -> None:
    """Run a step with the division called ``name`` in ``run_dir``, on every rank."""
    case = CASES[step]
    digest = weights_digest(root / "model")
    facts = {"weights_digest": digest, "sampler_digest": digest}
    inputs = {
        slot: SimpleNamespace(
            path=root / ("model" if slot == "model" else f"{step}.{slot}"),
            facts=facts,
            digest=slot,
            ref=slot,
        )
        for slot in case.inputs
    }
    process = ProcessRank(dist.get_rank(), dist.get_world_size(), dist.get_rank())
    ctx = StepContext(run_dir=run_dir, inputs=inputs, outputs=("model",), process=process)
    config = case.settings_of(name)
    if step == "rl/rlhf":
        judge = config.judge.model_copy(update={"url": url})
        config = config.model_copy(update={"judge": judge})
    try:
        with stand_ins(case.recipe):
            case.recipe.run(config, ctx)
    finally:
        ctx.metrics.close()


def folder(root: Path, step: str, *names: str) -> Path:
    """Where the run of a step is that goes through the divisions ``names``."""
    return root / "runs" / step / "-".join(names)


def begin(root: Path, step: str, name: str, *, url: str) -> None:
    """A whole run with one division, which leaves its states."""
    train(root, step, name, folder(root, step, name), url=url)


def go_on(root: Path, step: str, first: str, then: str, *, url: str) -> None:
    """A run that goes on from the middle of another one, with another division."""
    run_dir, saved = folder(root, step, first, then), f"checkpoints/step-{CASES[step].saved:08d}"
    if dist.get_rank() == 0:
        shutil.copytree(folder(root, step, first) / saved, run_dir / saved)
    dist.barrier()
    train(root, step, then, run_dir, url=url)


def figures(root: Path, step: str, *names: str) -> dict[tuple[int, str], float]:
    """The metrics of a run that its updates decide, by step and name, of its second half."""
    case = CASES[step]
    lines = (folder(root, step, *names) / "metrics.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    kept = [line for line in read if "grad_norm" in line and line["step"] > case.saved]
    assert [line["step"] for line in kept] == [case.saved + n + 1 for n in range(case.saved)]
    return {(line["step"], name): line[name] for line in kept for name in case.metrics}


def run_alone(root: Path, url: str) -> None:
    """What a process does alone before the others: every step, undivided."""
    for step in CASES:
        begin(root, step, ONE, url=url)


def end_alone(root: Path, url: str) -> None:
    """What a process does alone after them: it goes on from what they left."""
    for step, case in CASES.items():
        for first, then in case.pairs:
            if then == ONE:
                go_on(root, step, first, then, url=url)


def main(root: Path, url: str) -> None:
    """What a rank of two does: runs with every division, and all that go on from one to another."""
    torch.set_num_threads(1)
    parallel.initialize(seed=1)
    for step, case in CASES.items():
        for name in dict.fromkeys(first for first, _ in case.pairs if first != ONE):
            begin(root, step, name, url=url)
        for first, then in case.pairs:
            if then != ONE:
                go_on(root, step, first, then, url=url)
    parallel.finish()
