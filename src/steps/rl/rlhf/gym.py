"""``env``: the judge and how its verdicts become rewards, under the names of NeMo-Gym.

Two names that people write mean other ones, and are put in their place before anything is read:

* ``env.nemo_gym.genrm_compare`` is ``genrm_compare_resources_server``.  NeMo-Gym ignores a server
  by the first name, so that its cohorts keep their own size and never fill.
* ``...genrm_model.responses_api_models.vllm_model`` is ``...genrm_model``.  NeMo-RL's runner drops
  the first silently where both stand; here two different values are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, cosmetic, flatten, unused
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.judge.aggregation import Aggregation
from nemotron_style.steps.blocks.judge.pairing import ComparisonPlan
from nemotron_style.steps.blocks.judge.prompt import JudgeSampling
from nemotron_style.steps.blocks.settings.fixed_value import fixed
from nemotron_style.steps.rl.rlhf.fixed_values import DEAD

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
IMPLEMENTATIONS = "env.nemo_gym.genrm_model.responses_api_models"

_PLAN = {field.name for field in fields(ComparisonPlan)} - {"both_orders", "failure_budget"}
_AGGREGATION = {field.name for field in fields(Aggregation)} - {"default_score"}
"""Without a default score an answer that was never compared is refused, not called middling."""


def _rename(values: Any, other: str, name: str, *, below: str = "") -> Any:
    """``values`` with the table ``other`` merged into the table ``name``, over what it has.

    With ``below``, the key of ``values``, different values for one key are a problem.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get(other), Mapping):
        return values
    renamed, table = values[other], values.get(name) or {}
    if below:
        names = (f"{below}.{other}", f"{below}.{name}")
        raise_all(ConfigError, list(_contradictions(renamed, table, names=names)))
    return {**values, name: _merge(table, renamed), other: None}


def _contradictions(
    renamed: Mapping[str, Any], table: Mapping[str, Any], *, names: tuple[str, str]
) -> Iterator[Problem]:
    known = flatten(table)
    for key, value in flatten(renamed).items():
        if value is not None and known.get(key, value) not in (None, value):
            yield Problem(
                key=f"{names[0]}.{key}",
                what=f"is another name of {names[1]}.{key}, and they differ",
                got=str(value),
                allowed=str(known[key]),
                fix="give one of them",
            )


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(inner, value)
        elif value is not None:
            merged[key] = value
    return merged


class Server(Section):
    """A reference to one of Gym's servers."""

    type: str = fixed("responses_api_models", why="the judge answers as a model does")
    name: str = fixed("genrm_model", why="there is one judge")


class RequestParams(Section):
    """``genrm_responses_create_params``: how the judge's answer is sampled."""

    max_output_tokens: int = Field(default=4096, ge=1, description="reasoning included")
    temperature: float = Field(default=0.6, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)


class GenrmCompare(Section):
    """``genrm_compare``: which answers are compared, and what the verdicts are worth."""

    genrm_model_server: Server = Server()
    num_rollouts_per_prompt: int | None = cosmetic(default=None)
    genrm_responses_create_params: RequestParams = RequestParams()
    comparison_strategy: Literal["circular", "all_pairs"] = "circular"
    num_judges_per_comparison: int = Field(default=1, ge=1)
    use_principle: bool = False
    default_principle: str | None = None
    aggregator_method: Literal["simple_tiebreaker"] = "simple_tiebreaker"
    reasoning_bonus: Weight = 0.0
    answer_bonus: Weight = 0.0
    top_percentile: Share = 0.2
    group_reasoning_length_penalty_coeff: Weight = 0.0
    group_answer_length_penalty_coeff: Weight = 0.0
    group_style_penalty_coeff: Weight = 0.0
    default_score: float = unused(3.0, description="never used: a failure is no score")
    default_ranking: float = unused(3.5, description="never used")
    genrm_parse_retries: int = Field(default=3, ge=0)
    genrm_parse_retry_sleep_s: float = cosmetic(default=0.2, ge=0)

    def plan(self, *, both_orders: bool, failure_budget: float) -> ComparisonPlan:
        """What is compared."""
        own = self.model_dump(include=_PLAN)
        return ComparisonPlan(**own, both_orders=both_orders, failure_budget=failure_budget)

    @property
    def aggregation(self) -> Aggregation:
        """How verdicts become rewards."""
        return Aggregation(**self.model_dump(include=_AGGREGATION))

    @property
    def sampling(self) -> JudgeSampling:
        """How the judge's answers are sampled."""
        params = self.genrm_responses_create_params
        return JudgeSampling(params.temperature, params.top_p, params.max_output_tokens)


class CompareServers(Section):
    """``resources_servers`` of the comparison."""

    genrm_compare: GenrmCompare = GenrmCompare()


class CompareServer(Section):
    """``genrm_compare_resources_server``."""

    resources_servers: CompareServers = CompareServers()


class Implementation(Section):
    """A server of the judge; ``model`` is a folder, a ref of the store, or a name of a hub."""

    model: str | None = None
    supports_principle_role: bool = True
    # held to one value, or without effect
    entrypoint: str | None = unused(None)
    uses_reasoning_parser: bool = unused(False)
    return_token_id_information: bool = unused(False)
    hf_home: str | None = unused(None)
    debug: bool = unused(False)
    vllm_serve_env_vars: dict[str, str] = unused({})
    vllm_serve_kwargs: dict[str, Any] = unused({})
    base_url: list[str] | None = fixed(
        None, [], why="names a judge that is there already", fix="set judge.url"
    )


class Implementations(Section):
    """``responses_api_models`` of the judge. ``vllm_model`` is another name of ``genrm_model``."""

    genrm_model: Implementation = Implementation()
    vllm_model: Implementation | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_implementation(cls, values: Any) -> Any:
        return _rename(values, "vllm_model", "genrm_model", below=IMPLEMENTATIONS)


class GenrmModel(Section):
    """``genrm_model``; NeMo-RL calls ``vllm`` what is ``vllm_serve_kwargs``."""

    responses_api_models: Implementations = Implementations()
    vllm: dict[str, Any] | None = fixed(
        None,
        why="is read by no server",
        fix="set responses_api_models.genrm_model.vllm_serve_kwargs",
    )


class NemoGym(Section):
    """``env.nemo_gym``."""

    genrm_model_name: str | None = Field(default=None, description="where genrm_model has none")
    genrm_model: GenrmModel = GenrmModel()
    genrm_compare_resources_server: CompareServer = CompareServer()
    genrm_compare: CompareServer | None = None
    # held to one value, or without effect
    uv_venv_dir: str | None = unused(None)
    skip_venv_if_present: bool = unused(True)
    num_gpu_nodes: int = unused(0, ge=0)
    port_range_low: int = unused(15001)
    port_range_high: int = unused(20000)
    is_trajectory_collection: bool = unused(False)
    rollout_max_attempts_to_avoid_lp_nan: int = unused(1)
    invalid_tool_call_patterns: list[str] = unused([])
    thinking_tags: list[str] = unused([])
    config_paths: list[str] = unused([])
    policy_model: dict[str, Any] = unused({})
    policy_model_reasoning_off: dict[str, Any] = unused({})

    @model_validator(mode="before")
    @classmethod
    def _one_comparison(cls, values: Any) -> Any:
        return _rename(values, "genrm_compare", "genrm_compare_resources_server")


class Env(Section):
    """``env``."""

    should_use_nemo_gym: bool = fixed(
        True, why="rewards come from comparisons by a generative judge"
    )
    nemo_gym: NemoGym = NemoGym()
    # held to one value, or without effect
    should_log_nemo_gym_responses: bool = unused(True)
    should_mask_flagged_samples: bool = fixed(
        True, why="what could not be judged is never trained on"
    )
    use_genrm_compare: bool = fixed(True, why=DEAD)
    genrm_agent_names: list[str] = unused(["genrm_simple_agent"])
    genrm_compare_server_name: str | None = unused(None)

    @property
    def compare(self) -> GenrmCompare:
        """How answers are compared."""
        return self.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare

    @property
    def judge(self) -> Implementation:
        """The judge's server."""
        return self.nemo_gym.genrm_model.responses_api_models.genrm_model

    @property
    def judge_name(self) -> str | None:
        """The model that judges."""
        return self.judge.model or self.nemo_gym.genrm_model_name
