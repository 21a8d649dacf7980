"""The command line on a real Slurm, as somebody would type it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import s3_server
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import find_complete_run
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.store.store import Store

MANIFESTS = Path(__file__).parents[2] / "manifests"
PROFILE = """
[site]
executor = "slurm"
time = "00:20:00"
cpus_per_task = 2
env = { OMP_NUM_THREADS = "1" }
"""
SMALL = {
    "toy": """
defaults: {manifests}/data/toy/tiny.yaml
rows: {{train: 9600, validation: 96, rated: 1024, comparisons: 16, comparisons_heldout: 16}}
""",
    "chat": """
defaults: {manifests}/sft/chat/tiny.yaml
inputs: {{data: {{config: {here}/toy.yaml}}, validation: {{config: {here}/toy.yaml}}}}
trainer: {{sft: {{max_steps: 100}}}}
""",
    "data": """
defaults: {manifests}/data/steerlm2/tiny.yaml
inputs:
  sampler: {{config: {here}/chat.yaml}}
  prompts: {{config: {here}/toy.yaml}}
  truth: {{config: {here}/toy.yaml}}
data: {{train_groups: 96, validation_groups: 32}}
attribute_check: {{num_samples: 64}}
shard_groups: 64
""",
    "steerlm2": """
defaults: {manifests}/sft/steerlm2/tiny.yaml
inputs:
  model: {{config: {here}/chat.yaml}}
  data: {{config: {here}/data.yaml}}
  validation: {{config: {here}/data.yaml}}
trainer: {{sft: {{max_steps: 8}}}}
""",
    "judge": """
defaults: {manifests}/reward/regression/tiny.yaml
inputs:
  model: {{config: {here}/chat.yaml}}
  data: {{config: {here}/toy.yaml}}
  validation: {{config: {here}/toy.yaml}}
trainer: {{rm: {{max_epochs: null, max_steps: 60}}}}
model: {{data: {{sample: true}}}}
""",
    "serve": """
defaults: {manifests}/reward/serve/tiny.yaml
inputs: {{model: {{config: {here}/judge.yaml}}}}
""",
    "actor": """
defaults: {manifests}/rs/actor/tiny.yaml
inputs:
  model: {{config: {here}/chat.yaml}}
  prompts: {{config: {here}/toy.yaml}}
  validation: {{config: {here}/toy.yaml}}
  truth: {{config: {here}/toy.yaml}}
trainer: {{rs: {{max_steps: 4, val_check_interval: 4}}}}
model: {{rs: {{num_val_samples: 192, val_rollout_micro_batch_size: 192}}}}
services: {{reward: {{config: {here}/serve.yaml}}}}
""",
}
"""The tiny configs with less training: what is looked at here is how jobs hang together."""


@pytest.fixture
def typed(site: Any, cli: Any) -> Any:
    """Type a command in the mill's project; what came of it."""
    site.mill.write("env.toml", PROFILE)

    def run(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            cli(*words), capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


def test_a_chain_is_handed_over_and_waited_for(site: Any, typed: Any) -> None:
    dry = typed("steps", "run", "mill/bake", "-b", "site", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    done = typed("steps", "run", "mill/bake", "-b", "site", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    waited = typed("runs", "wait", "latest", "--timeout", "240")
    assert waited.returncode == 0, waited.stderr
    runs = json.loads(typed("runs", "list", "--json").stdout)
    runs = runs if isinstance(runs, list) else runs["runs"]
    assert {run["state"] for run in runs} == {"COMPLETED"}
    assert len(runs) == 3
    for folder in (site.mill.home / "runs").iterdir():
        written = (folder / "job.sbatch").read_text()
        assert f"# runs/{folder.name}/job.sbatch\n{written.rstrip()}\n" in dry.stdout
    assert told
    logs = typed("runs", "logs", "latest")
    assert "4/4" in logs.stdout


def test_an_attached_run_shows_its_log_and_its_exit_code(site: Any, typed: Any) -> None:
    done = typed("steps", "run", "mill/grow", "-r", "site")
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stdout + done.stderr
    failed = typed("steps", "run", "mill/grow", "-r", "site", "raise_at=2")
    assert failed.returncode == 1
    assert "the mill stone broke" in failed.stderr
    refused = typed("steps", "run", "mill/grow", "-r", "site", "refuse_at=2")
    assert refused.returncode == 2


def test_a_run_is_cancelled_from_another_shell(site: Any, typed: Any) -> None:
    done = typed("steps", "run", "mill/grow", "-b", "site", "hold_at=1", "gate=/nowhere")
    assert done.returncode == 0, done.stderr
    cancelled = typed("runs", "cancel", "latest")
    assert cancelled.returncode == 0, cancelled.stderr
    waited = typed("runs", "wait", "latest", "--timeout", "240")
    assert waited.returncode != 0
    assert "CANCELLED" in waited.stdout


def test_what_slurm_would_refuse_is_found_before_anything_is_written(site: Any, typed: Any) -> None:
    site.mill.write("env.toml", PROFILE + 'partition = "nowhere"\n')
    done = typed("steps", "run", "mill/bake", "-b", "site")
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert not site.mill.home.exists()


def test_a_service_runs_in_the_allocation_of_its_step(press: Any, site: Any, typed: Any) -> None:
    done = typed("steps", "run", "mill/press", "-b", "site")
    assert done.returncode == 0, done.stderr
    waited = typed("runs", "wait", "latest", "--timeout", "240")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    artifact = press.store.resolve("mill-press-default")
    assert (artifact.path / "sack.txt").read_text().startswith("3 mill-grow")
    (run,) = list_runs(press.home, step="mill/press")
    service = RunFolder(run.path / "services" / "power").last_attempt
    assert service.record["state"] == "COMPLETED"
    assert service.log.read_text().split() == ["turning", "stopped"]


@pytest.mark.slow
def test_the_main_jobs_run_as_chains(
    slurm: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SteerLM 2.0 in four jobs, then rejection sampling from the same start in two more."""
    pytest.importorskip("torch")
    (tmp_path / "env.toml").write_text(PROFILE)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".nemotron-style"

    for name, text in SMALL.items():
        made = text.format(manifests=MANIFESTS, here=tmp_path)
        (tmp_path / f"{name}.yaml").write_text(made)

    def complete(step: str, config: str) -> None:
        words = ["steps", "run", step, "-c", f"./{config}.yaml", "-b", "site"]
        done = subprocess.run(cli(*words), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        wait = cli("runs", "wait", "latest", "--timeout", "540")
        waited = subprocess.run(wait, capture_output=True, text=True, timeout=560, check=False)
        assert waited.returncode == 0, waited.stdout + waited.stderr

    complete("sft/steerlm2", "steerlm2")
    assert len(list_runs(home)) == 4
    complete("rs/actor", "actor")
    runs = list_runs(home)
    assert len(runs) == 6, "the data and the start are used again"
    assert all((run.path / "outputs.json").is_file() for run in runs)
    jobs = [run.last_attempt.job["id"] for run in runs]
    assert len(set(jobs)) == 6

    (actor,) = list_runs(home, step="rs/actor")
    figures = actor.outputs["figures"]
    assert figures["reward_after"] > figures["reward_before"]
    service = RunFolder(actor.path / "services" / "reward").last_attempt
    assert service.record["state"] == "COMPLETED"
    assert "conversations and 0 errors" in service.log.read_text()


def test_a_job_whose_store_is_in_a_bucket_is_seen_from_here(
    site: Any, typed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if s3_server.REASON:
        pytest.skip(s3_server.REASON)
    with s3_server.running_s3() as bucket:
        bucket.make_bucket("models")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        profile = PROFILE.replace('OMP_NUM_THREADS = "1"', f'AWS_ENDPOINT_URL = "{bucket.url}"')
        secrets = "secrets = ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY']"
        places = f"store = 's3://models/team'\nscratch = '{tmp_path}/shared'\n{secrets}\n"
        site.mill.write("env.toml", profile + places)
        done = typed("steps", "run", "mill/grow", "-r", "site")
        assert done.returncode == 0, done.stderr
        elsewhere = Store("s3://models/team", scratch=tmp_path / "elsewhere")
        made = elsewhere.resolve("mill-grow-default:v1")
        assert (elsewhere.fetch(made) / "sack.txt").is_file()
        assert find_complete_run(elsewhere, made.ref).plan.profile == "site"
