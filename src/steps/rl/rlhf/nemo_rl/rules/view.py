"""A complete NeMo-RL configuration as rules read it: by dotted key, and in its own quantities.

A value that is not there, or that only the job knows (a text such as ``${oc.env:NAME}``), makes
a rule undecidable: the readers raise :class:`Undecidable`, and the rule is passed over. The type
of a value is checked elsewhere, against the table of the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.draft import ABSENT, find
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts, FileRows
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

COMPARE_FILE = "resources_servers/genrm_compare/configs/genrm_compare.yaml"
JUDGE_SIZES = {"data_parallel_size": 2, "tensor_parallel_size": 4, "pipeline_parallel_size": 1}
"""What :data:`COMPARE_FILE` gives the judge (NeMo-Gym, all pinned versions)."""
COHORT = 16
"""``num_rollouts_per_prompt`` of :data:`COMPARE_FILE`."""


class Undecidable(LookupError):
    """A value that a rule needs is not known here."""


@dataclass(frozen=True)
class LocalServer:
    """A model that NeMo-Gym serves by vLLM: ``replicas`` placement groups of ``gpus`` each."""

    key: str
    replicas: int
    gpus: int
    strategy: str


@dataclass(frozen=True)
class View:
    """``values`` is the nested configuration; ``facts`` what is known beside it."""

    values: Mapping[str, Any]
    facts: Facts

    @property
    def version(self) -> Version:
        return self.facts.version

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a dotted key, null too; ``default`` where the key is not there.

        Raises Undecidable for a text that the job completes.
        """
        value = self.raw(key, default)
        if isinstance(value, str) and "${" in value:
            raise Undecidable(key)
        return value

    def raw(self, key: str, default: Any = None) -> Any:
        """The same, with texts that the job completes as they are."""
        value = find(self.values, key)
        return default if value is ABSENT else value

    def has(self, key: str) -> bool:
        return find(self.values, key) is not ABSENT

    def number(self, key: str, default: float | None = None) -> Any:
        """The number under a key; ``default`` for null and where the key is not there."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Undecidable(key)
        return value

    def size(self, key: str, default: int | None = None) -> Any:
        """A number of at least 1 under a key, one to divide by; Undecidable for any other."""
        value = self.number(key, default)
        if value < 1:
            raise Undecidable(key)
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        return default if value is None else value is True

    def text(self, key: str) -> str:
        """The text under a key."""
        value = self.get(key)
        if not isinstance(value, str):
            raise Undecidable(key)
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        """The table under a key, empty where there is none."""
        value = self.get(key)
        return value if isinstance(value, Mapping) else {}

    # Batches

    @property
    def prompts(self) -> Any:
        return self.size("grpo.num_prompts_per_step")

    @property
    def generations(self) -> Any:
        return self.size("grpo.num_generations_per_prompt")

    @property
    def samples(self) -> Any:
        """Of a step: P x N."""
        return self.prompts * self.generations

    @property
    def global_batch(self) -> Any:
        return self.size("policy.train_global_batch_size")

    # Backend and parallelism of the policy

    @property
    def megatron(self) -> bool:
        return self.flag("policy.megatron_cfg.enabled")

    @property
    def automodel(self) -> str:
        """The key of the backend that is called DTensor up to HEAD."""
        is_new = self.version >= Version.V0_8_0 and self.has("policy.automodel_cfg")
        return "policy.automodel_cfg" if is_new else "policy.dtensor_cfg"

    @property
    def packs(self) -> bool:
        return self.flag("policy.sequence_packing.enabled")

    @property
    def tensor_parallel(self) -> Any:
        name = "megatron_cfg.tensor_model_parallel_size"
        key = f"policy.{name}" if self.megatron else f"{self.automodel}.tensor_parallel_size"
        return self.size(key, 1)

    @property
    def context_parallel(self) -> Any:
        section = "policy.megatron_cfg" if self.megatron else self.automodel
        return self.size(f"{section}.context_parallel_size", 1)

    @property
    def pipeline_parallel(self) -> Any:
        key = "policy.megatron_cfg.pipeline_model_parallel_size"
        return self.size(key, 1) if self.megatron else 1

    @property
    def model_parallel(self) -> Any:
        return self.pipeline_parallel * self.context_parallel * self.tensor_parallel

    @property
    def product(self) -> str:
        """The arithmetic of :attr:`model_parallel`, for messages."""
        sizes = f"{self.pipeline_parallel} * CP {self.context_parallel} * TP {self.tensor_parallel}"
        return f"PP {sizes} = {self.model_parallel}"

    # GPUs

    @property
    def colocated(self) -> bool:
        return self.flag("policy.generation.colocated.enabled", default=True)

    @property
    def gpus_per_node(self) -> Any:
        return self.number("cluster.gpus_per_node")

    @property
    def num_nodes(self) -> Any:
        return self.number("cluster.num_nodes")

    @property
    def train_gpus(self) -> Any:
        """GPUs of the policy; Undecidable where generation leaves none, or with teachers."""
        if self.raw("on_policy_distillation"):
            raise Undecidable("cluster")
        gpus, nodes = self._shared_gpus
        if not self.colocated:
            taken = "gpus_per_node" if nodes == 1 else "num_nodes"
            less = self.number(f"policy.generation.colocated.resources.{taken}")
            gpus, nodes = (gpus - less, 1) if nodes == 1 else (gpus, nodes - less)
        if gpus <= 0 or nodes <= 0:
            raise Undecidable("cluster")
        return gpus * nodes

    @property
    def generation_gpus(self) -> Any:
        gpus, nodes = self._shared_gpus
        return self.train_gpus if self.colocated else gpus * nodes - self.train_gpus

    @property
    def _shared_gpus(self) -> tuple[Any, Any]:
        """GPUs a node and nodes without those of a reward model that NeMo-RL starts itself."""
        gpus, nodes, own = self.gpus_per_node, self.num_nodes, "env.reward_model.resources"
        if nodes == 1:
            return gpus - self.number(f"{own}.gpus_per_node", 0), 1
        return gpus, nodes - self.number(f"{own}.num_nodes", 0)

    @property
    def data_parallel(self) -> Any:
        """Raises Undecidable where the GPUs do not divide, which has a rule of its own."""
        if self.train_gpus % self.model_parallel:
            raise Undecidable("data parallel size")
        return self.train_gpus // self.model_parallel

    # NeMo-Gym

    @property
    def gym(self) -> bool:
        return self.flag("env.should_use_nemo_gym")

    @property
    def config_paths(self) -> tuple[str, ...]:
        paths = self.get("env.nemo_gym.config_paths")
        return tuple(map(str, paths)) if isinstance(paths, list | tuple) else ()

    @property
    def compares(self) -> bool:
        """Whether NeMo-Gym's judge of pairs gives the rewards."""
        return self.gym and (COMPARE_FILE in self.config_paths or bool(self.table(COMPARE)))

    @property
    def cohort(self) -> Any:
        """Responses to one prompt that the judge waits for."""
        if not self.compares:
            raise Undecidable(COMPARE)
        return self.number(f"{COMPARE}.num_rollouts_per_prompt", COHORT)

    @cached_property
    def judge_key(self) -> str:
        """The block of the judge, by the name that the comparing server asks."""
        name = self.get(f"{COMPARE}.genrm_model_server.name") or "genrm_model"
        return f"env.nemo_gym.{name}.responses_api_models"

    @property
    def judge(self) -> tuple[str, Mapping[str, Any]]:
        """Key and table of the judge's implementation; Undecidable where the job has no judge."""
        if not self.compares:
            raise Undecidable(self.judge_key)
        implementations = self.table(self.judge_key)
        if len(implementations) > 1:
            raise Undecidable(self.judge_key)
        name = next(iter(implementations), "genrm_model")
        return f"{self.judge_key}.{name}", self.table(f"{self.judge_key}.{name}")

    @property
    def local_servers(self) -> list[LocalServer]:
        """Models that NeMo-Gym starts on GPUs of this job."""
        servers = []
        for name in self.table("env.nemo_gym"):
            section = f"env.nemo_gym.{name}.responses_api_models"
            for implementation, table in self.table(section).items():
                key = f"{section}.{implementation}"
                is_judge = key == f"{self.judge_key}.genrm_model" and self.compares
                if isinstance(table, Mapping) and (is_judge or table.get("vllm_serve_kwargs")):
                    servers += self._server(key, table)
        is_default = self.compares and not self.table(self.judge_key)
        return servers + (self._server(f"{self.judge_key}.genrm_model", {}) if is_default else [])

    def _server(self, key: str, table: Mapping[str, Any]) -> list[LocalServer]:
        # The NeMo-Gym of v0.6.0 reads no base_url here and starts its own server all the same.
        if table.get("base_url") and self.version > Version.V0_6_0:
            return []
        data, tensor, pipeline = (
            self.size(f"{key}.vllm_serve_kwargs.{name}", size) for name, size in JUDGE_SIZES.items()
        )
        strategy = self.get(f"{key}.vllm_serve_env_vars.VLLM_RAY_DP_PACK_STRATEGY") or "strict"
        return [LocalServer(key, data, tensor * pipeline, str(strategy))]

    # Validation and rows

    @property
    def validates(self) -> bool:
        """Whether the run reaches a validation."""
        period = self.number("grpo.val_period", 0)
        is_reached = 0 < period <= self.number("grpo.max_num_steps", period)
        return is_reached or self.flag("grpo.val_at_start") or self.flag("grpo.val_at_end")

    @property
    def train_rows(self) -> FileRows:
        return self._rows("train")

    @property
    def validation_rows(self) -> FileRows:
        return self._rows("validation")

    def _rows(self, name: str) -> FileRows:
        rows: FileRows | None = getattr(self.facts.rows, name, None)
        if rows is None:
            raise Undecidable(f"rows of {name}")
        return rows
