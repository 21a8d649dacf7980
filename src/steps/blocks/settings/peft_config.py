"""Low-rank adapters (LoRA): their settings under NeMo's names, and the model they belong to.

Readable without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nemotron_style.runtime.config.model import Section, unused
from nemotron_style.runtime.errors import ConfigError, Problem, raise_all
from nemotron_style.steps.blocks.settings.fixed_value import fixed, only
from nemotron_style.steps.blocks.settings.json_model import read_json_model
from nemotron_style.steps.blocks.settings.model_config import ModelConfig

BASE_FILE = "base.json"
FOREIGN = "adapter: it does not say which weights it was trained on; its shapes are compared alone"

TARGETS = {
    "attention_qkv": "self_attention.linear_qkv",
    "attention_dense": "self_attention.linear_proj",
    "mlp_fc1": "mlp.linear_fc1",
    "mlp_fc2": "mlp.linear_fc2",
}
"""The linear layers of a transformer layer, by NeMo's names; every family has all four."""
GROUPS = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": tuple(TARGETS),
}
_NAMED_ELSEWHERE = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "linear_qkv"), "attention_qkv"),
    **dict.fromkeys(("o_proj", "linear_proj"), "attention_dense"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "linear_fc1"), "mlp_fc1"),
    **dict.fromkeys(("down_proj", "linear_fc2"), "mlp_fc2"),
    "all-linear": "all",
}
"""What PEFT, Hugging Face's models and NeMo 2 call them."""


def _check_targets(names: Sequence[str]) -> Sequence[str]:
    allowed = ", ".join((*TARGETS, *GROUPS))
    problems = []
    for name in names:
        if name not in TARGETS and name not in GROUPS:
            known = _NAMED_ELSEWHERE.get(name)
            fix = f"for {name} say {known}" if known else ""
            what = "the model has no such linear layer"
            problems.append(Problem(what=what, got=name, allowed=allowed, fix=fix))
    if not names:
        what, fix = "names no linear layer", "set model.peft.peft_scheme=none to train all weights"
        problems.append(Problem(what=what, allowed=allowed, fix=fix))
    raise_all(ConfigError, problems)
    return names


Init = Literal["xavier", "normal", "kaiming", "zero"]
_WHOLE = "not built: an adapter is W + alpha / adapter_dim * B A, as PEFT's is"


class LoraTuning(Section):
    """``model.peft.lora_tuning``: which linear layers get an adapter, and how large it is.

    A layer with the weight W then computes ``(W + alpha / adapter_dim * B A) x``; A begins as
    ``column_init_method`` says and B as ``row_init_method``.
    """

    target_modules: Annotated[list[str], AfterValidator(_check_targets)] = Field(
        default=["attention_qkv"]
    )
    adapter_dim: int = Field(default=32, ge=1, description="the rank of A and B")
    alpha: float | None = Field(default=None, gt=0, description="null: adapter_dim")
    adapter_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of what the adapters read that is dropped"
    )
    column_init_method: Init = "xavier"
    row_init_method: Init = "zero"
    layer_selection: list[int] | None = fixed(None, why="not built: every layer gets adapters")
    weight_tying: bool = fixed(False, why="not built: every layer has adapters of its own")
    position_embedding_strategy: str | None = fixed(None, why="not built, as weight_tying")
    variant: str = fixed("nemo", why="not built: q, k and v share one A")
    dropout_position: str = fixed("pre", why=_WHOLE)

    @property
    def scale(self) -> float:
        """What ``B A`` is multiplied by."""
        return (self.alpha or self.adapter_dim) / self.adapter_dim

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the adapted linear layers within a transformer layer, in its order."""
        names = {one for name in self.target_modules for one in GROUPS.get(name, (name,))}
        return tuple(module for name, module in TARGETS.items() if name in names)

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if self.column_init_method == self.row_init_method == "zero":
            # the gradient of each is a product with the other
            raise ValueError("column_init_method and row_init_method are both zero: nothing learns")
        return self


class Peft(Section):
    """``model.peft``: all weights are trained (``none``), or adapters beside them (``lora``).

    ``restore_from_path`` is an adapter to go on from.
    """

    peft_scheme: Annotated[
        str,
        only(
            *("none", "lora"),
            why="not built: of NeMo's ways to train a few weights there is LoRA",
            fix="set model.peft.peft_scheme=lora, or none to train all weights",
        ),
    ] = "none"
    restore_from_path: str | None = None
    lora_tuning: LoraTuning = LoraTuning()

    @property
    def lora(self) -> LoraTuning | None:
        """The settings of the adapters; None where all weights are trained."""
        return self.lora_tuning if self.peft_scheme == "lora" else None

    @model_validator(mode="after")
    def _has_use_for_an_adapter(self) -> Self:
        if self.restore_from_path and not self.lora:
            what = "an adapter is given, and all weights are to be trained"
            fix = "set model.peft.peft_scheme=lora, or merge it first with convert/merge_lora"
            raise ConfigError(
                Problem(key="restore_from_path", what=what, got=self.restore_from_path, fix=fix)
            )
        return self


_NEMO_RL = "policy.megatron_cfg.peft"
LAYERS = {module.rpartition(".")[2]: name for name, module in TARGETS.items()}
"""NeMo-RL's names of the linear layers, and what ``model.peft`` of other steps calls them."""


def _check_layers(names: Sequence[str]) -> Sequence[str]:
    what, allowed = "the model has no such linear layer", ", ".join(LAYERS)
    problems = [
        Problem(what=what, got=name, allowed=allowed) for name in names if name not in LAYERS
    ]
    raise_all(ConfigError, problems)
    return names


Layers = Annotated[list[str], AfterValidator(_check_layers)]


class MegatronPeft(Section):
    """``policy.megatron_cfg.peft``: the same settings under the names of NeMo-RL.

    No ``target_modules`` mean all linear layers, less ``exclude_modules``.
    """

    enabled: bool = False
    target_modules: Layers = Field(default=[], description="empty: all")
    exclude_modules: Layers = Field(default=[])
    dim: int = Field(default=8, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dropout_position: Literal["pre", "post"] = "post"
    lora_A_init_method: Init = "xavier"
    lora_B_init_method: Init = "zero"
    # held to one value, or without effect
    a2a_experimental: bool = unused(False)
    lora_dtype: str | None = fixed(None, why="adapters have the type of the weights")

    @property
    def as_peft(self) -> Peft:
        """The same settings under the names of the other steps."""
        if not self.enabled:
            return Peft()
        chosen = self.target_modules or [
            name for name in LAYERS if name not in self.exclude_modules
        ]
        lora = LoraTuning(
            target_modules=[LAYERS[name] for name in chosen],
            adapter_dim=self.dim,
            alpha=float(self.alpha),
            adapter_dropout=self.dropout,
            column_init_method=self.lora_A_init_method,
            row_init_method=self.lora_B_init_method,
        )
        return Peft(peft_scheme="lora", lora_tuning=lora)

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        problems = []
        if self.target_modules and self.exclude_modules:
            what, fix = "goes with no target_modules", "name the layers that get adapters, or those"
            fix += " that get none"
            got = ", ".join(self.exclude_modules)
            problems.append(Problem(key=f"{_NEMO_RL}.exclude_modules", what=what, got=got, fix=fix))
        if self.enabled and len(set(self.exclude_modules)) == len(LAYERS):
            what = "leaves no linear layer to adapt"
            problems.append(Problem(key=f"{_NEMO_RL}.exclude_modules", what=what))
        if self.enabled and self.dropout and self.dropout_position == "post":
            what = "not built: what an adapter reads is dropped, and not what it adds"
            fix = "set policy.megatron_cfg.peft.dropout_position=pre, or dropout=0"
            problems.append(
                Problem(key=f"{_NEMO_RL}.dropout_position", what=what, got="post", fix=fix)
            )
        if self.enabled and self.lora_A_init_method == self.lora_B_init_method == "zero":
            what = "A and B are both zero, so that nothing learns"
            problems.append(Problem(key=f"{_NEMO_RL}.lora_A_init_method", what=what, got="zero"))
        raise_all(ConfigError, problems)
        return self


class AdapterBase(Section):
    """``base.json``: the model that an adapter was trained on; weights are known by their digest.

    ``weights_digest`` is that of the checkpoint's record, ``sizes`` its ``model_config.json``.
    """

    weights_digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    ref: str = ""
    sizes: ModelConfig


def read_adapter_base(path: Path) -> AdapterBase | None:
    """``base.json`` of an adapter's folder; None for an adapter that was made elsewhere.

    Raises InputError for a file that holds anything else.
    """
    file = path / BASE_FILE
    if not file.is_file():
        return None
    absent = Problem(where=str(file), what="cannot be read")
    return read_json_model(AdapterBase, file, absent=absent)


def check_adapter_base(
    adapter: Path, *, digest: str | None, sizes: ModelConfig | None, model: str
) -> list[Problem]:
    """Whether the adapter in a folder was trained on the base ``model``; no problems where it was.

    ``digest`` is that of the base's weights, ``sizes`` its sizes; None where they are not known
    yet. An adapter from elsewhere says nothing of its base: of that, shapes alone can be checked.
    Raises InputError for a ``base.json`` that cannot be read.
    """
    base = read_adapter_base(adapter)
    if base is None:
        return []
    trained = f"the adapter was trained on {base.ref or 'another model'}"
    if digest is not None and digest != base.weights_digest:
        return [
            Problem(
                where=str(adapter),
                key="weights_digest",
                what=f"the adapter belongs to another base than {model}",
                got=f"a base with weights {digest}",
                allowed=base.weights_digest,
                fix=f"give the base that it was trained on: {base.ref}" if base.ref else trained,
            )
        ]
    if digest is None and sizes is not None and sizes != base.sizes:
        mine, own = sizes.model_dump(), base.sizes.model_dump()
        keys = [name for name in mine | own if mine.get(name) != own.get(name)]
        return [
            Problem(
                where=str(adapter),
                key=f"sizes.{key}",
                what=f"{trained}, which has other sizes than {model}",
                got=str(mine.get(key)),
                allowed=str(own.get(key)),
            )
            for key in keys
        ]
    return []
