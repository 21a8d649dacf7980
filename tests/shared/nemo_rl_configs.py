"""Configs of ``rl/rlhf`` on NeMo-RL that are compiled in tests: versions x nodes x start."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from nemotron_style.runtime.config.model import parse_config
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.runtime.validation import put_key
from nemotron_style.steps.rl.rlhf.nemo_rl.compile import Compiled, compile_job, compile_values
from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import GYM, JUDGE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

MODELS = {"policy.model_name": "a/policy", f"{GYM}.genrm_model_name": "a/judge"}
PROMPTS = {"prompts": "prompts_jsonl", "validation": "prompts_jsonl"}
SHAPES: dict[str, tuple[int, Mapping[str, Any]]] = {
    "one_node": (1, {}),
    "four_nodes": (5, {"cluster.num_nodes": 4}),
    "external_judge": (1, {f"{JUDGE}.base_url": ["http://judge:8000/v1"]}),
}
"""Nodes of the profile, and what the config says."""
WITHOUT_GYM = {"env.should_use_nemo_gym": False, "env.reward_model.model_name": "a/scorer"}
SHAPES_WITHOUT_GYM: dict[str, tuple[int, Mapping[str, Any]]] = {
    "no_gym_one_node": (1, WITHOUT_GYM),
    "no_gym_five_nodes": (5, WITHOUT_GYM | {"cluster.num_nodes": 5}),
}
STARTS = ("hf", "megatron")
CASES = [f"{v}-{s}-{t}" for v, s, t in product(Version, SHAPES, STARTS)]
CASES_WITHOUT_GYM = [
    f"{v}-{s}-{t}"
    for v, s, t in product(Version, SHAPES_WITHOUT_GYM, STARTS)
    if v < Version.V0_8_0 and (v, t) != (Version.V0_6_0, "megatron")
]


def make_config(version: str | None, given: Mapping[str, Any]) -> Config:
    """A config of a policy, a judge, and dotted keys."""
    values: dict[str, Any] = {"nemo_rl": {"version": version}}
    for key, value in (MODELS | dict(given)).items():
        put_key(values, key, value)
    config = parse_config(Config, values, where=lambda _: "a.yaml")
    assert isinstance(config, Config)
    return config


def read_case(case: str) -> tuple[Config, JobSite]:
    """Config and site of one of ``CASES``."""
    version, shape, start = case.rsplit("-", 2)
    nodes, given = (SHAPES | SHAPES_WITHOUT_GYM)[shape]
    # What v0.6.0 is to start from is converted before.
    kind = "checkpoint_hf" if version == Version.V0_6_0 else "checkpoint_nemo_rl"
    inputs = PROMPTS | ({"model": kind} if start == "megatron" else {})
    site = JobSite("slurm", nodes=nodes, gpus_per_node=8, inputs=inputs)
    return make_config(version, given), site


def compile_case(case: str) -> CompiledJob:
    return compile_job(*read_case(case))


def case_values(case: str) -> Compiled:
    return compile_values(*read_case(case))
