"""Run the ``step.py`` of a tree in NVIDIA Nemotron's layout, as its own runner does.

The step gets ``--config FILE`` with the merged config, the environment and the work directory of
its runspec. Kept from NVIDIA's runner: its command lines for python, torchrun, ray and ``cmd``.
Left out: its artifact look-ups, its uploads of code and its clones of other repositories. Added:
inputs are artifacts, outputs are committed, and the files of the step are those of the plan.

``step.py`` knows nothing of attempts. It writes into the same folders in each of them, as it would
without us, so that a step that continues from its own checkpoints does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.runtime.step.child_process import ChildProcess
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.nemotron.tree.config import Config

JOB = "nemotron_step.json"
"""The file of the plan that says what to run (``runtime.planning.tree_step`` writes it)."""
SECONDS_BETWEEN_LOOKS = 0.5
TEXT_SUFFIXES = (".json", ".jsonl", ".yaml", ".yml", ".toml", ".txt")
MOST_BYTES = 1 << 20


class QuotingDumper(yaml.SafeDumper):
    """All text in quotes: what is text stays text, in YAML 1.1 and for OmegaConf."""


QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def run(config: Config, ctx: StepContext) -> None:
    """Check the step's files, write its config, and run it to its end."""
    job: dict[str, Any] = json.loads(ctx.file(JOB))
    script = Path(job["folder"], "step.py")
    check_files(script.parent, job["files"], where=job["step"])
    if job["workdir"] and not Path(job["workdir"]).is_dir():
        what, fix = "the work directory of its runspec is not there", "does the job run in its "
        problem = Problem(where=job["step"], what=what, got=job["workdir"], fix=f"{fix}image?")
        raise StepFailed(problem)

    values = fill_paths(config.model_dump(mode="json"), job, ctx)
    attempt = ctx.run_dir / "attempts" / str(ctx.attempt)
    attempt.mkdir(parents=True, exist_ok=True)
    file = attempt / f"config-{ctx.rank}.yaml"
    file.write_text(yaml.dump(values, Dumper=QuotingDumper, sort_keys=False, allow_unicode=True))

    command = write_command(job, script, file, ctx)
    ctx.say(f"$ {shlex.join(command)}")
    code = execute(command, make_environment(job), job["workdir"], ctx)
    if ctx.stopping:
        raise Interrupted("step.py was asked to stop; the same command runs it again")
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise StepFailed(Problem(where=job["step"], what=f"step.py {how}", fix="its log says why"))
    wait_for_ranks(attempt, ctx)
    if ctx.is_first:
        hand_over([entry["slot"] for entry in job["slots"] if entry["side"] == "output"], job, ctx)


def check_files(folder: Path, files: Mapping[str, str], *, where: str) -> None:
    """Raise StepFailed unless every file of the step is what it was when the plan was made."""
    changed = [name for name, digest in files.items() if _hash(folder / name) != digest]
    if changed:
        what = "is not the file that the plan was made with"
        fix = "run the same command again; a job elsewhere must see the folder of the step"
        raise StepFailed(
            Problem(where=where, key=str(folder / name), what=what, fix=fix) for name in changed
        )


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "absent"


def fill_paths(values: dict[str, Any], job: Mapping[str, Any], ctx: StepContext) -> dict[str, Any]:
    """``values`` with real paths at the keys of the slots, and in all text derived from them."""
    paths: dict[str, str] = {}
    for entry in job["slots"]:
        path = find_path(entry, ctx)
        paths[entry["mark"]] = path
        for key in entry["keys"]:
            _put(values, key.split("."), path)
    return dict(_replace(values, paths))


def find_path(entry: Mapping[str, Any], ctx: StepContext) -> str:
    """The path of a slot, with the file below it that its key wants.

    Of an input that is one file under another name, that file.
    """
    slot, file = entry["slot"], entry["file"]
    if entry["side"] == "output":
        folder = output_folder(slot, ctx)
        folder.mkdir(parents=True, exist_ok=True)
        return str(Path(folder, file or ""))
    folder = ctx.input(slot).path
    if not file:
        return str(folder)
    present = list(folder.iterdir())
    is_other = not (folder / file).exists() and "*" not in file
    return str(present[0] if is_other and len(present) == 1 else folder / file)


def output_folder(slot: str, ctx: StepContext) -> Path:
    """Where ``step.py`` writes an output, in every attempt of the run."""
    return ctx.run_dir / "checkpoints" / "outputs" / slot


def wait_for_ranks(attempt: Path, ctx: StepContext) -> None:
    """Return once ``step.py`` has ended in every rank: until then one may write still.

    Where one fails, torchrun ends the others.
    """
    (attempt / f"step-done-{ctx.rank}").touch()
    while ctx.is_first and len([*attempt.glob("step-done-*")]) < ctx.world_size:
        if ctx.stopping:
            raise Interrupted("stopped while other ranks were at work; the same command goes on")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def hand_over(slots: list[str], job: Mapping[str, Any], ctx: StepContext) -> None:
    """Move what ``step.py`` wrote into the outputs of this attempt, and note what made it.

    Its files are kept as they are, also those that name the folder they were written to.
    """
    for slot in slots:
        output, folder = ctx.output(slot), output_folder(slot, ctx)
        stale = sorted(str(path.relative_to(folder)) for path in find_mentions(folder))
        output.note(step_files=job["files"])
        if stale:
            output.note(files_that_name_their_old_folder=stale)
            told = ", ".join(stale[:5])
            ctx.say(f"warning: {slot}: {told} name the folder of the run, not the artifact")
        if folder.is_dir():  # else the step removed it, and what is missing is told later
            folder.replace(output.path)  # which is empty; at once, so that no half is ever left


def find_mentions(folder: Path) -> Iterator[Path]:
    """The small text files in ``folder`` that hold its own path."""
    for path in folder.rglob("*"):
        if path.suffix not in TEXT_SUFFIXES or not path.is_file():
            continue
        if path.stat().st_size <= MOST_BYTES and str(folder).encode() in path.read_bytes():
            yield path


def _put(values: dict[str, Any], parts: list[str], value: str) -> None:
    for part in parts[:-1]:
        values = values.setdefault(part, {})
    values[parts[-1]] = value


def _replace(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, paths) for item in value]
    if isinstance(value, str):
        for mark, path in paths.items():
            value = value.replace(mark, path)
    return value


def write_command(
    job: Mapping[str, Any], script: Path, config: Path, ctx: StepContext
) -> list[str]:
    """The command of the step: its own ``cmd``, torchrun of one process, or Python."""
    if job["cmd"]:
        text = job["cmd"].format(script=shlex.quote(str(script)), config=shlex.quote(str(config)))
        return ["bash", "-c", " ".join([text, *map(shlex.quote, ctx.arguments)])]
    tail = [str(script), "--config", str(config), *ctx.arguments]
    if job["launch"] != "torchrun" or ctx.world_size > 1:  # a rank of ours is one of torchrun's
        return [sys.executable, *tail]
    # A lone process meets itself by a file of this user's; by default it would listen.
    meeting = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file"]
    meeting += ["--rdzv-endpoint", tempfile.mkstemp()[1], "--local-addr", "127.0.0.1"]
    start = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", "1"]
    return [*start, *tail]


def make_environment(job: Mapping[str, Any]) -> dict[str, str]:
    """The job's environment with that of the step; the package of its tree can be imported."""
    environment = {**os.environ, **job["env"]}
    if job["import_root"]:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job["import_root"], known]))
    return environment


def execute(
    command: list[str], environment: dict[str, str], workdir: str | None, ctx: StepContext
) -> int:
    """Run a command to its end and return its exit code; pass a request to stop on to it.

    What it prints goes through this process, which takes secrets out.
    """
    child = ChildProcess(command, folder=workdir or None, environment=environment)
    told = False
    while (code := child.wait(SECONDS_BETWEEN_LOOKS)) is None:
        if ctx.stopping and not told:
            child.send(signal.SIGTERM)
            told = True
    return code
