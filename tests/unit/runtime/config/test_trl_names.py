"""Who types a key of TRL is told the key that means it, and the page says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.config.resolve import load_config_class, resolve_config
from nemotron_style.runtime.config.trl_names import TRL_NAMES
from nemotron_style.runtime.errors import ConfigError
from nemotron_style.runtime.validation import schema_keys

PAGE = Path(__file__).parents[4] / "docs" / "coming-from-trl.md"
STEPS = ("sft/chat", "sft/steerlm2", "reward/regression", "rs/actor", "rl/rlhf")


@pytest.mark.parametrize(
    ("step", "typed", "meant"),
    [
        ("sft/chat", "learning_rate=1e-4", "model.optim.lr"),
        ("rl/rlhf", "learning_rate=1e-4", "policy.megatron_cfg.optimizer.lr"),
        ("sft/chat", "num_train_epochs=1", "trainer.sft.max_epochs"),
        ("rs/actor", "num_generations=8", "model.rs.num_rollouts_per_prompt"),
    ],
)
def test_a_key_of_trl_is_answered_with_ours(step: str, typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean '{meant}'\?"):
        resolve_config(load_catalog().steps[step], overrides=[typed])


def test_every_name_is_a_key_of_a_step_and_on_the_page() -> None:
    steps = load_catalog().steps
    known = {key for step in STEPS for key in schema_keys(load_config_class(steps[step]))}
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for name, ours in TRL_NAMES.items():
        assert known >= set(ours), name
        (line,) = [line for line in lines if line.startswith(f"| `{name}`")]
        assert all(f"`{key}`" in line for key in ours), name
