"""The recipe that runs a ``step.py`` of NVIDIA's layout: its config, its command, its end."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nemotron_style.runtime.errors import Interrupted, StepFailed
from nemotron_style.runtime.step.context import ProcessRank, StepContext
from nemotron_style.steps.nemotron.tree.config import Config
from nemotron_style.steps.nemotron.tree.recipe import (
    JOB,
    QuotingDumper,
    run,
    wait_for_ranks,
    write_command,
)
from step_tree import write_tree

MARK = "{output:word_counts}"


class Job:
    """The step ``words/count`` of a tree with the text "a b a", ready to be run."""

    def __init__(self, folder: Path) -> None:
        step = write_tree(folder / "tree") / "words/count"
        self.folder, self.script = folder, step / "step.py"
        (folder / "text").mkdir()
        (folder / "text" / "lines.txt").write_text("a b a\n")
        slot = {"side": "input", "slot": "text_lines", "keys": ["source"], "file": "lines.txt"}
        made = {"side": "output", "slot": "word_counts", "keys": ["result.folder"], "file": None}
        self.job: dict[str, Any] = {
            "step": "acme/words/count",
            "folder": str(step),
            "files": {"step.py": hashlib.sha256(self.script.read_bytes()).hexdigest()},
            "launch": "python",
            "cmd": None,
            "workdir": None,
            "import_root": None,
            "env": {"MOOD": "calm"},
            "slots": [{**slot, "mark": "{input:text_lines}"}, {**made, "mark": MARK}],
        }
        self.values: dict[str, Any] = {
            "source": "unbound",
            "fold": False,
            "least": 1,
            "result": {"folder": MARK, "file": f"{MARK}/counts.json"},
        }

    def make_context(self, **more: Any) -> StepContext:
        return StepContext(
            run_dir=self.folder / "run",
            inputs={"text_lines": SimpleNamespace(path=self.folder / "text")},
            outputs=["word_counts"],
            files={JOB: json.dumps(self.job)},
            **more,
        )

    def run(self, **more: Any) -> dict[str, Any]:
        ctx = self.make_context(**more)
        run(Config.model_validate(self.values), ctx)
        return dict(json.loads((ctx.output("word_counts").path / "counts.json").read_text()))

    def replace_script(self, text: str) -> None:
        self.script.write_text(text)
        self.job["files"] = {"step.py": hashlib.sha256(text.encode()).hexdigest()}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_step_reads_its_inputs_and_writes_where_its_output_is_made(job) -> None:
    report = job.run(arguments=("--loud",))
    assert report == {"counts": {"a": 2, "b": 1}, "arguments": ["--loud"], "mood": "calm"}


def test_an_input_that_is_one_file_of_another_name_is_that_file(job) -> None:
    (job.folder / "text" / "lines.txt").rename(job.folder / "text" / "poem.txt")
    assert job.run()["counts"] == {"a": 2, "b": 1}


def test_a_command_of_its_own_is_run_by_a_shell_with_quoted_paths(job) -> None:
    job.job["cmd"] = f"MOOD=wild {sys.executable} {{script}} --config {{config}}"
    assert job.run(arguments=("two words",))["mood"] == "wild"
    command = write_command(job.job, Path("/a b/step.py"), Path("/c/d.yaml"), job.make_context())
    assert "'/a b/step.py' --config /c/d.yaml" in command[2]


def test_torchrun_is_started_once_whoever_starts_it(job) -> None:
    job.job["launch"] = "torchrun"
    alone = write_command(job.job, job.script, Path("c.yaml"), job.make_context())
    assert alone[1:3] == ["-m", "torch.distributed.run"]
    rank = job.make_context(process=ProcessRank(1, 4, 1))
    assert write_command(job.job, job.script, Path("c.yaml"), rank)[1] == str(job.script)


def test_a_file_that_changed_since_the_plan_is_not_run(job) -> None:
    job.script.write_text("print('another')\n")
    with pytest.raises(StepFailed, match="is not the file that the plan was made with"):
        job.run()
    job.script.unlink()
    with pytest.raises(StepFailed, match=r"step\.py: is not the file"):
        job.run()


def test_a_work_directory_that_is_not_there_is_told(job) -> None:
    job.job["workdir"] = "/opt/not-here"
    with pytest.raises(StepFailed, match="is not there; got /opt/not-here"):
        job.run()


def test_a_step_that_fails_fails_the_run(job) -> None:
    job.replace_script("raise SystemExit(3)\n")
    with pytest.raises(StepFailed, match="ended with exit code 3"):
        job.run()
    job.replace_script("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(StepFailed, match="was ended by signal 9"):
        job.run()


def test_a_second_attempt_finds_what_the_first_one_left(job) -> None:
    job.replace_script(
        "import json, sys, yaml\nfrom pathlib import Path\n"
        "folder = Path(yaml.safe_load(open(sys.argv[2]))['result']['folder'])\n"
        "found = (folder / 'half').exists()\n"
        "(folder / 'half').touch()\n"
        "(folder / 'counts.json').write_text(json.dumps([str(folder / 'half'), found]))\n"
        "sys.exit(0 if found else 1)\n"
    )
    with pytest.raises(StepFailed):
        job.run()
    ctx = job.make_context(attempt=2)
    run(Config.model_validate(job.values), ctx)
    made = ctx.output("word_counts")
    assert sorted(path.name for path in made.path.iterdir()) == ["counts.json", "half"]
    assert made.facts["files_that_name_their_old_folder"] == ["counts.json"]


def test_the_first_rank_waits_for_the_others(job) -> None:
    attempt = job.folder / "run" / "attempts" / "1"
    attempt.mkdir(parents=True)
    ctx = job.make_context(process=ProcessRank(0, 2, 0))
    other = Timer(0.2, wait_for_ranks, (attempt, job.make_context(process=ProcessRank(1, 2, 1))))
    other.start()
    wait_for_ranks(attempt, ctx)
    assert (attempt / "step-done-1").exists()
    other.join(120)
    assert not other.is_alive()
    ctx.stop.requested = True
    (attempt / "step-done-1").unlink()
    with pytest.raises(Interrupted):
        wait_for_ranks(attempt, ctx)


def test_a_request_to_stop_reaches_the_step(job) -> None:
    job.replace_script("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    ctx = job.make_context()
    ctx.stop.requested = True
    with pytest.raises(Interrupted):
        run(Config.model_validate(job.values), ctx)


@pytest.mark.parametrize("text", ["1e-4", "010", "yes", "${a}", "null", "a: b", "é", "0x1"])
def test_text_stays_text_for_every_reader(text) -> None:
    written = yaml.dump({"a": text, "b": 1e-5, "c": None}, Dumper=QuotingDumper)
    assert yaml.safe_load(written) == {"a": text, "b": 1e-5, "c": None}


def test_a_seed_is_in_the_config_only_where_the_files_have_one() -> None:
    assert Config.model_validate({"a": 1}).model_dump() == {"a": 1}
    assert Config.model_validate({"seed": None}).model_dump() == {"seed": None}
