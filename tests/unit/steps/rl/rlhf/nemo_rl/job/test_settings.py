"""The compiled file as the job reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron_style.runtime.config import interpolation
from nemotron_style.steps.rl.rlhf.nemo_rl.job import settings


@pytest.mark.parametrize(
    "register", [settings.register_resolvers, interpolation._register_resolvers]
)
def test_references_in_the_arguments_of_a_resolver_are_followed_by_omegaconf_2_3_too(
    register: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(OmegaConf, "legacy_register_resolver"):
        # As 2.3 has them: under the new name of 2.4 stands the function that takes texts.
        new: Any = getattr(OmegaConf, "register_resolver")  # noqa: B009
        old: Any = getattr(OmegaConf, "legacy_register_resolver")  # noqa: B009
        monkeypatch.setattr(OmegaConf, "register_new_resolver", staticmethod(new))
        monkeypatch.setattr(
            OmegaConf, "register_resolver", staticmethod(lambda name, resolver: old(name, resolver))
        )
    OmegaConf.clear_resolver("mul")
    register()
    config = OmegaConf.create({"prompts": 2, "samples": "${mul:${prompts},4}"})
    assert config.samples == 8
