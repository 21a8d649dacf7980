"""The example of a step in a package of one's own runs as its page says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own-step"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = shutil.copytree(EXAMPLE, tmp_path / "own-step")
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("NEMOTRON_STYLE_HOME", raising=False)
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


def test_a_step_of_another_package_runs_after_one_of_ours(project, capsys) -> None:
    assert main(["steps", "show", "data/dedup"]) == 0
    assert "case_sensitive" in capsys.readouterr().out
    assert main(["steps", "run", "data/dedup", "-c", "tiny", "--json"]) == 0
    [made] = (project / ".nemotron-style").glob("artifacts/data-dedup-tiny/v1/train.jsonl")
    rows = [json.loads(line)["messages"] for line in made.read_text().splitlines()]
    texts = [json.dumps(row, sort_keys=True).casefold() for row in rows]
    assert texts
    assert len(set(texts)) == len(texts)
    capsys.readouterr()
    assert main(["artifacts", "lineage", "data-dedup-tiny"]) == 0
    told = capsys.readouterr().out
    assert "data/dedup" in told
    assert "data-toy-tiny" in told
