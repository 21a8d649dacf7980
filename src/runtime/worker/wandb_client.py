"""Weights & Biases: metrics, config and tags of a run; into files unless its user is online."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import remove_tree
from nemotron_style.runtime.config.model import Tracker
from nemotron_style.runtime.worker.tracked_run import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TrackedArtifact,
    TrackedRun,
)

EXIT_CODES = {FINISHED: 0, FAILED: 1, INTERRUPTED: 130}
PASSED_ON = ("entity", "group", "job_type", "notes", "tags")
SECONDS = 30.0
"""That it may take to open a run online, and to hand the last of it over."""
QUIET: Mapping[str, Any] = {
    "console": "off",  # what a step prints may be worth a mask
    "silent": True,
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "init_timeout": SECONDS,
    "finish_timeout": SECONDS,
}


class WandbClient:
    """A run of Weights & Biases; each attempt that goes on adds a folder to it, under one id."""

    def __init__(self, asked: Tracker) -> None:
        self.asked = asked
        self.run: Any = None

    def begin(self, run: TrackedRun, earlier: Mapping[str, str]) -> Mapping[str, str]:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # For the whole process: a run's own setting leaves warnings about references on.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if self.run:
            with suppress(Exception):
                self.run.finish()
        if earlier["open"]:
            # W&B writes in large blocks. What a kill has left is told again as a whole, and
            # should not be sent twice.
            remove_tree(Path(earlier["open"]))
        online = is_online(os.environ)
        # Another run of the same plan has another id: in another store, or by somebody else.
        run_id = earlier["id"] or f"{run.run_id}-{secrets.token_hex(4)}"
        self.run = wandb.init(
            project=self.asked.project or os.environ.get("WANDB_PROJECT") or "nemotron-style",
            name=self.asked.name or run.run_id,
            id=run_id,
            mode="online" if online else "offline",
            resume="allow" if online else None,
            dir=run.folder,
            config={**run.params, **run.tags},
            allow_val_change=True,
            settings=wandb.Settings(**QUIET),
            **{key: self.asked.more[key] for key in PASSED_ON if key in self.asked.more},
        )
        # An axis of our own: of one step there may be several lines, and W&B's own counts rows.
        self.run.define_metric("*", step_metric="step")
        for artifact in run.inputs.values():
            reference = self._refer_to(artifact)
            if online:
                self.run.use_artifact(reference)
            else:
                # What `use_artifact` does, which refuses to when there is no server to ask.
                self.run._log_artifact(
                    reference, aliases=[version_of(artifact)], use_after_commit=True
                )
        where = self.run.url if online else str(run.folder / "wandb")
        known = {"id": run_id, "where": str(where)}
        return known if online else known | {"open": str(Path(self.run.dir).parent)}

    def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, figures in rows:
            self.run.log({"step": step, **figures})

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        for artifact in outputs.values():
            self.run.log_artifact(self._refer_to(artifact), aliases=[version_of(artifact)])
        self.run.config.update(dict(tags), allow_val_change=True)
        self.run.finish(exit_code=EXIT_CODES[status])

    def _refer_to(self, artifact: TrackedArtifact) -> Any:
        """An artifact of W&B without files: a reference to ours, told apart by its digest."""
        import wandb

        name = artifact.ref.partition(":")[0]
        reference = wandb.Artifact(name, type=artifact.kind, metadata=asdict(artifact))
        reference.add_reference(artifact.url, name="files", checksum=False)
        return reference


def version_of(artifact: TrackedArtifact) -> str:
    """An alias; ``v3`` alone is what W&B calls versions of its own."""
    return f"store-{artifact.ref.partition(':')[2]}"


def is_online(variables: Mapping[str, str]) -> bool:
    """Whether the user asks for the service by ``WANDB_MODE=online``, and has a key for it."""
    return variables.get("WANDB_MODE") == "online" and bool(variables.get("WANDB_API_KEY"))
