"""What the job reads in the compiled file: the few values that it watches and collects by."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, find
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE, GYM, JUDGE

RESOLVERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda first, second: first + second,
    "mul": lambda first, second: first * second,
    "div": lambda first, second: first / second,
    "max": lambda first, second: max(first, second),
}
"""What NeMo-RL's scripts register, for references between numbers of the file."""


def register_resolvers() -> None:
    """Make NeMo-RL's resolvers known to OmegaConf."""
    # OmegaConf 2.4 renames this function, to a name that 2.3 (NeMo-RL's image has it) uses for one
    # which gives the resolver texts and follows no reference inside its arguments.
    register: Callable[..., None] = OmegaConf.register_resolver
    if "replace" not in inspect.signature(register).parameters:
        register = OmegaConf.register_new_resolver
    for name, function in RESOLVERS.items():
        if not OmegaConf.has_resolver(name):
            register(name, function)


@dataclass(frozen=True)
class Settings:
    """The compiled file: ``text`` is what NeMo-RL reads, ``written`` that with its references."""

    text: str
    written: dict[str, Any]
    values: DictConfig

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The settings of a compiled file."""
        register_resolvers()
        written = yaml.safe_load(text)
        return cls(text, written, OmegaConf.create(written))

    def get(self, key: str, default: Any = None) -> Any:
        """A value with its references resolved, or ``default`` where the key is absent or null."""
        value = OmegaConf.select(self.values, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        return default if value is None else value

    @property
    def digest(self) -> str:
        """SHA-256 of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def variables(self) -> set[str]:
        """The environment variables that the file refers to without a default."""
        return set(re.findall(r"\$\{oc\.env:\s*(\w+)\s*\}", self.text))

    @property
    def uses_gym(self) -> bool:
        return bool(self.get("env.should_use_nemo_gym", False))

    @property
    def group_size(self) -> int:
        return int(self.get("grpo.num_generations_per_prompt", 1))

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return int(self.get("grpo.num_prompts_per_step", 1))

    @property
    def updates(self) -> int:
        """Updates of a step; the loss metrics of a step are sums over them."""
        samples = self.prompts * self.group_size
        return max(1, samples // int(self.get("policy.train_global_batch_size", samples)))

    @property
    def comparisons(self) -> int:
        """Comparisons that the judge is asked for in a training step."""
        size = self.group_size
        circular = self.get(f"{COMPARE}.comparison_strategy", "circular") == "circular"
        pairs = size if circular else size * (size - 1) // 2
        return self.prompts * pairs * int(self.get(f"{COMPARE}.num_judges_per_comparison", 1))

    @property
    def checkpoint_format(self) -> str | None:
        """Of a Megatron checkpoint to start from, as it is written: perhaps left to the job."""
        form = find(self.written, "policy.pretrained_checkpoint.format")
        return None if form is ABSENT else form

    @property
    def metric(self) -> str | None:
        """The metric by which checkpoints are ranked."""
        return self.get("checkpointing.metric_name")

    @property
    def higher_is_better(self) -> bool:
        return bool(self.get("checkpointing.higher_is_better", True))

    @property
    def judge(self) -> str | None:
        """The model that judges, or the one that scores where NeMo-Gym does not."""
        if not self.uses_gym:
            return self.get("env.reward_model.model_name")
        return self.get(f"{JUDGE}.model") or self.get(f"{GYM}.genrm_model_name")

    def count_steps(self, rows: int) -> int:
        """Steps of the whole run: the last batch of an epoch is dropped where it is not full."""
        steps = int(self.get("grpo.max_num_epochs", 1)) * (rows // self.prompts)
        return min(int(self.get("grpo.max_num_steps", steps)), steps)
