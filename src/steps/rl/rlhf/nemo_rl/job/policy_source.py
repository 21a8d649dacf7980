"""What the slot ``model`` holds, and by which variables NeMo-RL finds it.

A Hugging Face folder is the policy itself.  A Megatron checkpoint holds weights alone: NeMo-RL
takes sizes, names and tokenizer from the Hugging Face model that ``policy.model_name`` still names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.steps.rl.rlhf.nemo_rl.job.checkpoints import resolve_iteration
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import JobVariable

HF_TWIN, WEIGHTS = "hf", "weights"
"""Parts of a checkpoint that this step has made."""
FORMATS = {"run_config.yaml": "megatron_bridge", "metadata.json": "megatron_lm"}
"""The file that must lie in the iteration's folder, and the format that NeMo-RL calls it by."""
TO_HF = "convert it first: nemotron-style steps run convert/megatron_to_hf -i model=REF"
TO_ADOPT = (
    "from v0.7.0 on: nemotron-style artifacts adopt PATH --kind checkpoint_nemo_rl --name NAME"
)


@dataclass(frozen=True)
class PolicySource:
    """The variables that name the policy, and the Hugging Face folder, where there is one."""

    variables: dict[JobVariable, str] = field(default_factory=dict)
    hf_folder: Path | None = None
    digest: str | None = None


def find_policy(model: Artifact | None, checkpoint_format: str | None) -> PolicySource:
    """Where NeMo-RL finds the policy of the input ``model``; nothing without an input.

    ``checkpoint_format`` is ``policy.pretrained_checkpoint.format`` as it stands in the compiled
    file, None where it has no such section.  Raises InputError for a checkpoint that NeMo-RL would
    not load.
    """
    if model is None:
        return PolicySource()
    folder = model.path
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        variables = {JobVariable.POLICY_MODEL: str(folder)}
        return PolicySource(variables, folder, model.digest)
    name, weights = _find_megatron(model, checkpoint_format)
    variables = {JobVariable.PRETRAINED: str(weights), JobVariable.PRETRAINED_FORMAT: name}
    twin = folder / HF_TWIN
    if (twin / "config.json").is_file():
        return PolicySource(variables | {JobVariable.POLICY_MODEL: str(twin)}, twin, model.digest)
    return PolicySource(variables, None, model.digest)


def _find_megatron(model: Artifact, wanted: str | None) -> tuple[str, Path]:
    """The format and the iteration's folder of a Megatron checkpoint; ``wanted`` may leave it open.

    Where both formats fit, it is Megatron-Bridge's, which brings the model's config along.
    """
    folder = model.path
    if (folder / "model_config.json").is_file():
        what = "this project's own Megatron layout has other tensor names than Megatron-Bridge"
        raise InputError(Problem(where=model.ref, key="model", what=what, fix=TO_HF))
    roots = (folder, folder / WEIGHTS)
    found = {
        name: iteration
        for root in roots
        if (iteration := resolve_iteration(root))
        for file, name in FORMATS.items()
        if (iteration / file).is_file()
    }
    if not found:
        raise InputError(
            Problem(
                where=model.ref,
                key="model",
                what="is no checkpoint that NeMo-RL loads",
                got=", ".join(sorted(path.name for path in folder.iterdir())[:8]),
                allowed="a Hugging Face folder (config.json, *.safetensors), or a Megatron"
                " checkpoint whose iteration has run_config.yaml (megatron_bridge) or metadata.json"
                " (megatron_lm)",
                fix="latest_checkpointed_iteration.txt must name an iter_* that is there",
            )
        )
    if wanted == JobVariable.PRETRAINED_FORMAT.reference:
        return next((name, found[name]) for name in FORMATS.values() if name in found)
    if wanted not in found:
        raise InputError(
            Problem(
                where=model.ref,
                key="policy.pretrained_checkpoint.format",
                what="the checkpoint has another format"
                if wanted
                else "is a Megatron checkpoint, and the job was compiled for a Hugging Face folder",
                got=wanted or "",
                allowed=" or ".join(found) if wanted else "",
                fix="" if wanted else TO_ADOPT,
            )
        )
    return wanted, found[wanted]
