"""Plans of a store in a bucket: where their folders are, and what a run of elsewhere left there."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.preflight import check_access, check_plan
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.planning.rerun import plan_rerun
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.report.subject import describe_run
from nemotron_style.runtime.run.folder import RunFolder, open_store
from nemotron_style.runtime.run.kept_run import find_complete_run, note_outputs
from nemotron_style.runtime.run.plan import parse_plan
from nemotron_style.runtime.store.record import Producer
from nemotron_style.runtime.store.roots.memory import MemoryBucket
from nemotron_style.runtime.store.store import Store


@pytest.fixture
def context(mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanContext:
    monkeypatch.delenv("NEMOTRON_STYLE_SCRATCH", raising=False)
    store = Store(f"memory://{uuid.uuid4().hex}/team", scratch=tmp_path / "scratch")
    return replace(mill.context(), store=store)


def plan(context: PlanContext, **profile: Any) -> Pipeline:
    changed = replace(context, profile=Profile(name="site", **profile))
    return compile_pipeline(RunRequest("mill/grow"), context=changed)


def test_a_plan_names_the_bucket_and_keeps_its_run_on_a_disk(context: PlanContext) -> None:
    made = plan(context).target.plan
    assert (made.root, made.store) == (context.store.url, str(context.store.local))
    assert made.run_dir.is_relative_to(context.store.local)
    assert parse_plan(made.to_json(), where="plan") == made
    assert open_store(made).root == context.store.root
    assert "root" not in json.loads(made.model_copy(update={"root": None}).to_json())


def test_a_cluster_needs_a_scratch_folder_that_its_nodes_see(context: PlanContext) -> None:
    with pytest.raises(UsageError, match=r"profile site: scratch: the store is memory://.*nodes"):
        plan(context, executor="slurm")
    made = plan(context, executor="slurm", scratch="/shared", image="/images/nemo.sqsh").target.plan
    assert any("names no AWS_... variable" in note for note in made.notes)
    script = SlurmLauncher().compile(made).files["job.sbatch"]
    assert str(context.store.local) in script
    assert "memory://" not in script  # it is no mount; the worker reads it in its plan


def test_what_a_job_elsewhere_made_is_reused_here(context: PlanContext) -> None:
    profile: dict[str, Any] = {"remote_store": "/mnt/pod/store", "executor": "lepton"}
    made = plan(context, **profile).target.plan
    assert (made.store, made.records) == ("/mnt/pod/store", str(context.store.local))
    assert plan(context, **profile).target.decision.action == "run"
    pod = Store(str(made.root), scratch=context.store.local / "pod")
    outputs = {}
    for output in made.outputs:
        staged = pod.stage("out")
        (staged / "a.txt").write_text(output.slot)
        producer = Producer(run_id=made.run_id, step=made.step, slot=output.slot)
        done = pod.commit(staged, name=output.name, kind=output.kind, producer=producer)
        outputs[output.slot] = {"ref": done.ref, "kind": done.kind, "digest": done.digest}
    assert plan(context, **profile).target.decision.action == "run"  # it has not said that it ended
    note_outputs(made, pod, {"outputs": outputs, "figures": {}})
    assert plan(context, **profile).target.decision.action == "reuse"
    assert RunFolder(made.record_dir).reserve(made)  # as where it was submitted
    assert (
        describe_run(context.store, RunFolder(made.record_dir)).made.ref == outputs["sack"]["ref"]
    )
    first = find_complete_run(context.store, "latest")
    assert first.outputs == {"outputs": outputs, "figures": {}}
    cloud = Profile(name="cloud", upload="s3://jobs", image="mill:1", **profile)
    catalog = load_catalog()
    again = plan_rerun(first, store=context.store, catalog=catalog, profile=cloud).run.plan
    assert again.snapshot
    assert again.snapshot.path.startswith("/mnt/pod/store/code/")


def test_a_bucket_that_refuses_is_told_before_the_run(
    context: PlanContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(context).target.plan
    assert list(check_access(made)) == []
    assert "is in the memory of this process" in check_plan(made)[0].what
    monkeypatch.setattr(MemoryBucket, "create", lambda self, key, data: True)
    [problem] = check_access(made)
    assert "does not honour conditional writes" in problem.what
