"""MLflow: metrics, params and tags of a run, by its own client (``mlflow-skinny`` suffices)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemotron_style.runtime.config.model import Tracker
from nemotron_style.runtime.worker.tracked_run import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TrackedArtifact,
    TrackedRun,
)

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
MOST_METRICS, MOST_OTHERS = 1000, 100  # that MLflow takes at once
LONGEST_DIGEST = 36  # that MLflow takes; all of it stands in the dataset's source
SOURCE_TYPE = "nemotron_style"
NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
"""What it does not take in a name."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # which it asks for since 3.7, and still reads and writes
    # A server that is gone is tried for minutes by default.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MlflowClient:
    """A run of MLflow, in a folder of our run unless a server is named."""

    def __init__(self, asked: Tracker) -> None:
        self.asked = asked
        self.client: Any = None
        self.id = self.experiment = ""

    def begin(self, run: TrackedRun, earlier: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow

        uri = self.asked.uri or os.environ.get("MLFLOW_TRACKING_URI") or str(run.folder / "mlflow")
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        if earlier["id"] and earlier["uri"] == uri:
            self.id = earlier["id"]
            self.client.update_run(self.id, status="RUNNING")
            experiment = self.client.get_run(self.id).info.experiment_id
        else:
            experiment = self._find_experiment(run)
            name = self.asked.name or run.run_id
            self.id = self.client.create_run(experiment, run_name=name).info.run_id
            params = [mlflow.entities.Param(clean(key), text) for key, text in run.params.items()]
            for part in chunk(params, MOST_OTHERS):
                self.client.log_batch(self.id, params=part)
            self._tag({**run.tags, **self.asked.more.get("tags", {})})
            self._log_inputs(run.inputs)
        self.experiment = experiment
        return {"id": self.id, "uri": uri, "where": locate(uri, experiment, self.id)}

    def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(clean(name), value, now, step)
            for step, figures in rows
            for name, value in figures.items()
        ]
        for part in chunk(metrics, MOST_METRICS):
            self.client.log_batch(self.id, metrics=part)

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        self._tag(tags)
        if outputs and not self.client.get_run(self.id).outputs.model_outputs:
            self._log_outputs(outputs)
        self.client.set_terminated(self.id, STATUS[status])

    def _log_inputs(self, inputs: Mapping[str, TrackedArtifact]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        read = []
        for slot, artifact in inputs.items():
            dataset = Dataset(
                name=artifact.ref,
                digest=artifact.digest.removeprefix("sha256:")[:LONGEST_DIGEST],
                source_type=SOURCE_TYPE,
                source=json.dumps(asdict(artifact)),
            )
            read.append(DatasetInput(dataset, [InputTag("mlflow.data.context", slot)]))
        if read:
            self.client.log_inputs(self.id, read)

    def _log_outputs(self, outputs: Mapping[str, TrackedArtifact]) -> None:
        """Name what the run made as its models: MLflow has no other word for an output."""
        from mlflow.entities import LoggedModelOutput

        made = []
        for slot, artifact in outputs.items():
            model = self.client.create_logged_model(
                self.experiment,
                name=re.sub(r"[:.]", "-", artifact.ref),  # which it does not take in this name
                source_run_id=self.id,
                tags={f"{SOURCE_TYPE}.slot": slot, **prefix_fields(artifact)},
                model_type=artifact.kind,
            )
            self.client.finalize_logged_model(model.model_id, "READY")
            made.append(LoggedModelOutput(model.model_id, step=0))
        self.client.log_outputs(self.id, made)

    def _find_experiment(self, run: TrackedRun) -> str:
        name = self.asked.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.step
        known = self.client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self.client.create_experiment(name))

    def _tag(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        listed = [RunTag(clean(key), str(text)) for key, text in tags.items()]
        for part in chunk(listed, MOST_OTHERS):
            self.client.log_batch(self.id, tags=part)


def prefix_fields(artifact: TrackedArtifact) -> dict[str, str]:
    """``nemotron_style.ref``, ``.kind`` and ``.digest``."""
    return {f"{SOURCE_TYPE}.{key}": value for key, value in asdict(artifact).items()}


def clean(name: str) -> str:
    """``name`` with what MLflow takes in a name."""
    return NAME.sub("_", name)


def chunk(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """``items`` in parts of at most ``size``."""
    return (items[at : at + size] for at in range(0, len(items), size))


def locate(uri: str, experiment: str, run: str) -> str:
    """Where people find a run: its page of a server, or the folder that MLflow's own page shows."""
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
    return str(Path(uri.removeprefix("file://"))) if "://" not in uri[7:] else uri
