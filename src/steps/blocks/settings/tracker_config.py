"""Which trackers are told about a run, under the names of NeMo-Aligner and NeMo's exp_manager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from nemotron_style.runtime.config.model import MLFLOW, WANDB, Section, Tracker, cosmetic
from nemotron_style.runtime.errors import ConfigError, Problem

TENSORBOARD = "tensorboard"
NAMES = (TENSORBOARD, MLFLOW, WANDB)


def read_logger(value: Any) -> Any:
    """``false``, or names of trackers. Raises ``ConfigError`` for anything else."""
    is_list = isinstance(value, list | tuple)
    if value is False or (is_list and set(map(str, value)) <= set(NAMES)):
        return tuple(value) if is_list else value
    what = "names the trackers that are told the metrics of the run"
    allowed = f"false, or a list of {', '.join(NAMES)}"
    fix = "metrics.jsonl and TensorBoard files are written always"
    raise ConfigError(Problem(what=what, got=str(value), allowed=allowed, fix=fix))


Names = tuple[str, ...]
Logger = Annotated[Literal[False] | Names, BeforeValidator(read_logger)]


def logger() -> Any:
    """A field for the trackers of a run."""
    return cosmetic(
        default=False,
        description="mlflow and wandb are told the metrics of the run; false: neither. "
        "metrics.jsonl and TensorBoard files are written always",
    )


class WandbLogger(Section):
    """``exp_manager.wandb_logger_kwargs``: any keys.

    Used are ``project``, ``name``, ``entity``, ``group``, ``job_type``, ``notes`` and ``tags``.
    """

    model_config = ConfigDict(extra="allow")

    project: str | None = cosmetic(None, description="null: WANDB_PROJECT, else nemotron-style")
    name: str | None = cosmetic(None, description="null: the id of the run")


class MlflowLogger(Section):
    """``exp_manager.mlflow_logger_kwargs``: any keys; ``tags`` is used beside those below."""

    model_config = ConfigDict(extra="allow")

    experiment_name: str | None = cosmetic(None, description="null: as the step is called")
    run_name: str | None = cosmetic(None, description="null: the id of the run")
    tracking_uri: str | None = cosmetic(
        None, description="null: MLFLOW_TRACKING_URI, else the folder mlflow of the run"
    )


def find_trackers(
    asked: Mapping[str, Literal[False] | Names],
    wandb: WandbLogger | None = None,
    mlflow: MlflowLogger | None = None,
) -> Mapping[str, Tracker]:
    """The trackers that config keys name (``asked``: key, names), with their settings."""
    wandb, mlflow = wandb or WandbLogger(), mlflow or MlflowLogger()
    keys = {name: key for key, names in asked.items() for name in names or ()}
    trackers = {
        WANDB: Tracker(
            keys.get(WANDB, ""),
            project=wandb.project or "",
            name=wandb.name or "",
            more=wandb.model_extra or {},
        ),
        MLFLOW: Tracker(
            keys.get(MLFLOW, ""),
            project=mlflow.experiment_name or "",
            name=mlflow.run_name or "",
            uri=mlflow.tracking_uri or "",
            more=mlflow.model_extra or {},
        ),
    }
    return {name: one for name, one in trackers.items() if one.key}
