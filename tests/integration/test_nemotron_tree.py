"""Steps of NVIDIA's layout through the whole program: listed, shown, run, committed, reused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from step_tree import write_tree

SOURCE = os.environ.get("NEMOTRON_SOURCE")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tree(tmp_path / "tree")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "lines.txt").write_text("a b a\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMOTRON_STYLE_STEPS", f"acme={tmp_path / 'tree'}")
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    return tmp_path


def call(capsys: Any, *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_step_of_a_tree_is_run_committed_and_traced(project, capsys) -> None:
    listed = call(capsys, "steps", "list", "--produces", "word_counts")["steps"]
    assert [step["id"] for step in listed] == ["acme/words/count"]
    assert call(capsys, "steps", "show", "words/count")["runspec"]["run"]["launch"] == "python"

    command = ("steps", "run", "words/count", "-i", "text_lines=./text", "fold=true")
    assert call(capsys, *command, "-d")["runs"][-1]["decision"] == "run"
    call(capsys, *command)
    [made] = (project / ".nemotron-style").glob("artifacts/acme-words-count-default/v1")
    assert json.loads((made / "counts.json").read_text())["counts"] == {"a": 2, "b": 1}
    record = json.loads((made / "artifact.json").read_text())
    assert record["kind"] == "word_counts"
    assert "step.py" in json.dumps(record), "the record says which files made it"

    assert main(["artifacts", "lineage", "acme-words-count-default"]) == 0
    told = capsys.readouterr().out
    assert "acme/words/count" in told
    assert "text_lines" in told
    assert call(capsys, *command, "-d")["runs"][-1]["decision"] == "reuse"
    with (project / "tree/words/count/step.py").open("a") as script:
        script.write("print('changed')\n")
    assert call(capsys, *command, "-d")["runs"][-1]["decision"] == "run"


def test_a_profile_names_a_tree_too(project, capsys, monkeypatch) -> None:
    monkeypatch.delenv("NEMOTRON_STYLE_STEPS")
    (project / "env.toml").write_text('[here]\nexecutor = "local"\nsteps = ["mine=./tree"]\n')
    words = ("steps", "run", "mine/words/count", "-r", "here", "-i", "text_lines=./text", "-d")
    assert call(capsys, *words)["runs"][-1]["plan"]["step"] == "mine/words/count"
    assert main([*words[:3], "-d"]) == 2
    assert "there is no step 'mine/words/count'" in capsys.readouterr().err


@pytest.mark.skipif(not SOURCE, reason="NEMOTRON_SOURCE names no checkout of NVIDIA Nemotron")
def test_every_step_of_nvidia_is_listed_and_compiles_or_says_what_it_needs(
    project, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("NEMOTRON_STYLE_STEPS", str(SOURCE))
    listed = call(capsys, "steps", "list")
    steps = [step for step in listed["steps"] if step["id"].startswith("nemotron/")]
    assert len(steps) == 24
    assert listed["broken"] == {}
    for name in ("SFT_PACKED_DIR", "PRETRAIN_BLEND_PATH"):
        monkeypatch.delenv(name, raising=False)
    refused = {}
    for step in steps:
        assert call(capsys, "steps", "show", step["id"])["id"] == step["id"]
        capsys.readouterr()
        code = main(["steps", "run", step["id"], "-d", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert code in (0, 2)
        if code:
            refused[step["id"].removeprefix("nemotron/")] = told["error"]["problems"]
    assert set(refused) == {
        "eval/model_eval",  # an artifact of NVIDIA's registry
        "peft/megatron_bridge",  # a variable without a default, as those of pretraining
        "pretrain/automodel",
        "pretrain/megatron_bridge",
        "translate/nemo_curator",  # two languages
    }
    assert all(problem["where"] for problems in refused.values() for problem in problems)
