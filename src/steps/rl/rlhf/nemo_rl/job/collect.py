"""From NeMo-RL's checkpoints to artifacts.

::

    weights/              latest_checkpointed_iteration.txt, iter_0000000/ (Megatron-Bridge)
    config.yaml           the whole config that NeMo-RL ran
    training_info.json    its counters and metrics at that step
    hf/                   config and tokenizer of the Hugging Face twin, where it was a folder

NeMo-RL reads ``weights`` as ``policy.pretrained_checkpoint`` from v0.7.0 on.  This project's own
steps do not: names and division of the tensors are Megatron-Bridge's, so the kind is another one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import Problem, StepFailed
from nemotron_style.steps.rl.rlhf.nemo_rl.job.checkpoints import CONFIG, INFO, StepCheckpoint
from nemotron_style.steps.rl.rlhf.nemo_rl.job.policy_source import HF_TWIN, WEIGHTS
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import Settings
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE

NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")
NOT_COPIED += ("artifact.json",)  # the record of the input
FINGERPRINT = Path("/opt/nemo_rl_container_fingerprint")
EXPORT = (
    "cd {home} && uv run --extra mcore examples/converters/convert_megatron_to_hf.py"
    " --config $CHECKPOINT/config.yaml --hf-model-name {twin}"
    " --megatron-ckpt-path $CHECKPOINT/weights/iter_0000000 --hf-ckpt-path $OUT"
)
"""$OUT must not exist.  NeMo-RL's converter holds the whole model in memory, in one process."""

SUMMARY = {
    "reward": "reward",
    "token_mult_prob_error": "token_mult_prob_error",
    "hacking/kl_to_start": "kl_to_start",
    "mean_gen_tokens_per_sample": "tokens",
    "validation/accuracy": "validation_reward",
}


def write_checkpoint(checkpoint: StepCheckpoint, target: Path, hf_folder: Path | None) -> None:
    """Fill ``target`` with the weights of a checkpoint and what belongs to them."""
    link_tree(checkpoint.weights, target / WEIGHTS)
    for name in (CONFIG, INFO):
        shutil.copyfile(checkpoint.path / name, target / name)
    if hf_folder is None:
        return
    (target / HF_TWIN).mkdir()
    for file in sorted(hf_folder.iterdir()):
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copyfile(file, target / HF_TWIN / file.name)


def link_tree(source: Path, target: Path) -> None:
    """The files of a tree under a second name, or copies on a disk that has no such thing.

    The first names stay until the outputs are sealed: a crash before that loses nothing.
    """
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def choose_checkpoints(
    whole: Sequence[StepCheckpoint], best: StepCheckpoint | None, halves: Sequence[str]
) -> dict[str, StepCheckpoint]:
    """The last checkpoint for ``model``, and for ``best`` the best one where that is another.

    Raises StepFailed when there is none; ``halves`` say what there is instead.
    """
    if not whole:
        what = "; ".join(["ended well and left no whole checkpoint", *halves])
        fix = "a step needs grpo.num_prompts_per_step rows, and checkpointing.enabled must be true"
        raise StepFailed(Problem(where="NeMo-RL", what=what, fix=fix))
    chosen = {"model": whole[-1]}
    return chosen | {"best": best} if best and best != whole[-1] else chosen


@dataclass(frozen=True)
class Ending:
    """How far a run came that ended well: steps ``saved`` as a whole, ``done``, and ``planned``.

    ``halves`` say what there is of later checkpoints; ``metric`` may end a run early.
    """

    saved: int
    done: int
    planned: int
    halves: Sequence[str] = ()
    metric: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the records of the artifacts say of it."""
        return {
            "steps_done": self.done,
            "steps_planned": self.planned,
            "stopped_early": self.done < self.planned,
        }

    @property
    def warning(self) -> str:
        """What nobody would expect of the checkpoint that is kept; empty where all is well."""
        parts = []
        if self.done < self.planned:
            why = f" (grpo.stop_at_validation_metric is {self.metric})" if self.metric else ""
            parts.append(f"NeMo-RL ended after step {self.done} of {self.planned}{why}")
        if self.saved < self.done:
            why = ", ".join(self.halves) or "nothing was saved after it"
            lost = f"the newest whole checkpoint is that of step {self.saved}, and the last step"
            parts.append(f"{lost} that was done is {self.done}: {why}")
        return "; ".join(parts)


def describe_origin(
    checkpoint: StepCheckpoint, settings: Settings, *, is_best: bool, is_last: bool
) -> dict[str, Any]:
    """Facts of a checkpoint for its record: which it is, and what made the rewards."""
    compare = settings.get(COMPARE, {}) if settings.uses_gym else {}
    return {
        "step": checkpoint.step,
        "is_best": is_best,
        "is_last": is_last,
        "ranked_by": settings.metric,
        "ranked_value": checkpoint.metric(settings.metric),
        "training_info": checkpoint.info,
        "judge": settings.judge,
        "reward": {name: value for name, value in compare.items() if name != "entrypoint"},
        "config_digest": f"sha256:{settings.digest}",
    }


def summarise(
    lines: Sequence[Mapping[str, Any]],
    last: StepCheckpoint,
    best: StepCheckpoint | None,
    settings: Settings,
    warning: str = "",
) -> dict[str, Any]:
    """The figures of a run that are shown when it is done, a warning before all others."""
    figures: dict[str, Any] = {"warning": warning} if warning else {}
    figures["steps"] = last.step
    for name, figure in SUMMARY.items():
        values = [line[name] for line in lines if name in line]
        figures |= {figure: values[-1]} if values else {}
    asked = settings.comparisons * sum("judge/given_up" in line for line in lines)
    if asked:
        given_up = sum(line.get("judge/given_up", 0.0) for line in lines)
        figures["judge_failed_share"] = given_up / asked
    if best:
        figures |= {"best_step": best.step, "best_value": best.metric(settings.metric)}
    return figures


def describe_upstream(home: Path, version: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Facts of the NeMo-RL that ran: what was compiled for, and what its tree says it is.

    The main branch says 0.6.0 of itself until the release after v0.7.0.
    """
    facts: dict[str, Any] = {"nemo_rl_version": version, "nemo_rl_package": read_package(home)}
    if FINGERPRINT.is_file():
        facts["container_fingerprint"] = FINGERPRINT.read_text(errors="replace")[:1000].strip()
    commit = environment.get("NEMO_RL_COMMIT", "")
    return facts | ({"nemo_rl_commit": commit} if commit.isalnum() else {})  # or "<unknown>"


def read_package(home: Path) -> str | None:
    """``0.6.0``, as ``nemo_rl/package_info.py`` of the tree has it; None without one."""
    file = home / "nemo_rl" / "package_info.py"
    text = file.read_text(errors="replace") if file.is_file() else ""
    parts = re.findall(r"^(?:MAJOR|MINOR|PATCH) *= *(\d+)", text, re.MULTILINE)
    return ".".join(parts) or None


def export_command(home: Path, twin: str) -> str:
    """The command that makes a Hugging Face folder; ``$CHECKPOINT`` is the artifact's folder."""
    return EXPORT.format(home=home, twin=twin)
