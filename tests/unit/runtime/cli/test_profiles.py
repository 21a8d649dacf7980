"""``profiles list``, ``show`` and ``check``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron_style.runtime.cli import main

Capture = pytest.CaptureFixture[str]

PROFILES = """
[site]
account = "acc"
env = { EOS_TOKEN = "</s>" }

[cluster]
extends = "site"
executor = "slurm"
partition = "batch"
tunnel = "ssh"

[here]
description = "this very machine"
workdir = "."
mounts = ["/:/host"]

[broken]
nodes = 0
"""


def profiles(capsys: Capture, *words: str) -> tuple[int, str, str]:
    code = main(["profiles", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


@pytest.fixture
def project(mill: Any) -> Any:
    mill.write("env.toml", PROFILES)
    return mill


def test_list_tells_bases_and_broken_ones_apart(project: Any, capsys: Capture) -> None:
    code, out, err = profiles(capsys, "list")
    assert code == 0
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
    assert rows.items() >= {"cluster": "slurm", "here": "local", "site": "-"}.items()
    assert "broken" not in rows
    assert "profile broken is left out: env.toml [broken]: nodes" in err
    assert "site" not in err
    told = json.loads(profiles(capsys, "list", "--json")[1])
    assert told["bases"] == ["site"]
    assert list(told["broken"]) == ["broken"]
    assert {"cluster", "here"} <= {each["name"] for each in told["profiles"]}


def test_show_tells_what_is_inherited_and_what_is_not_used(project: Any, capsys: Capture) -> None:
    project.write("env.toml", PROFILES + '[cloud]\nextends = "cluster"\nexecutor = "lepton"\n')
    code, out, _err = profiles(capsys, "show", "cluster")
    assert code == 0
    assert "EOS_TOKEN=</s>" in out
    shown = json.loads(profiles(capsys, "show", "cloud", "--json")[1])
    assert shown["ignored"] == ["partition", "tunnel", "account"]
    assert "partition" not in shown


def test_a_name_that_does_not_exist_exits_with_two(project: Any, capsys: Capture) -> None:
    code, out, err = profiles(capsys, "check", "clutser")
    assert (code, out) == (2, "")
    assert "did you mean 'cluster'" in err


def test_check_answers_line_by_line_and_writes_nothing(project: Any, capsys: Capture) -> None:
    before = project.files()
    code, out, err = profiles(capsys, "check", "here")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[1:]]
    assert [words[:2] for words in lines] == [
        ["ok", "keys"],
        ["ok", "store"],
        ["ok", "workdir"],
        ["ok", "mounts[0]"],
        ["ok", "local"],
    ]
    assert project.files() == before
    told = json.loads(profiles(capsys, "check", "here", "--json")[1])
    assert told["ok"] is True
    assert [each["ok"] for each in told["checks"]] == [True] * 5


def test_check_names_every_problem_and_its_fix(
    project: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("GH_PAT", "c4n4ry-0123456789")
    project.write(
        "env.toml",
        f'[x]\nstore = "{project.root}/env.toml/store"\nworkdir = "/nowhere/at/all"\n'
        'mounts = ["/nowhere:/a", "/:/b"]\nsecrets = ["HF_TOKEN", "GH_PAT"]\nnodes = 2\n',
    )
    code, out, _err = profiles(capsys, "check", "x")
    assert code == 2
    bad = [line for line in out.splitlines() if line.startswith("problem")]
    assert len(bad) == 5
    for part in (
        "store      ",
        "there is no such folder; got /nowhere/at/all; make it: mkdir -p",
        "mounts[0]  /nowhere is not there",
        "secrets    HF_TOKEN is not in the environment; export HF_TOKEN=...",
        "the local executor has one",
    ):
        assert any(part in line for line in bad), part
    assert "GH_PAT is in the environment" in out
    assert "c4n4ry" not in out
    told = json.loads(profiles(capsys, "check", "x", "--json")[1])
    assert told["ok"] is False
    assert sum(not each["ok"] for each in told["checks"]) == 5
    assert main(["profiles", "check", "x", "--json"]) == 2


def test_a_secrets_file_is_private_and_holds_what_is_named(project: Any, capsys: Capture) -> None:
    file = project.root / "secrets"
    project.write("env.toml", f'[x]\nsecrets = ["A_TOKEN", "B_TOKEN"]\nsecrets_file = "{file}"\n')
    assert f"there is no file {file}; make it: install -m 600" in profiles(capsys, "check", "x")[1]
    file.write_text("A_TOKEN=c4n4ry\nC_TOKEN=other\n")
    file.chmod(0o640)
    out = profiles(capsys, "check", "x")[1]
    assert f"{file} can be read by others; got 640; allowed: 600; chmod 600 {file}" in out
    file.chmod(0o600)
    code, out, _err = profiles(capsys, "check", "x")
    assert code == 2
    assert f"A_TOKEN is in {file}" in out
    assert f"B_TOKEN is not in {file}; add a line B_TOKEN=... to it" in out
    assert "c4n4ry" not in out
    file.write_text("A_TOKEN=c4n4ry\nB_TOKEN=other\n")
    assert profiles(capsys, "check", "x")[0] == 0


def test_check_of_a_cluster_says_where_commands_run(project: Any, capsys: Capture) -> None:
    _code, out, _err = profiles(capsys, "check", "cluster")
    assert "note" in out
    assert "type it on the login node" in out


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("slurm_rl_nemo_rl_rlhf", ["account", "store", "env.HF_HOME"]),
        ("lepton_rl_nemo_rl_rlhf", ["node_group"]),
    ],
)
def test_check_names_the_placeholders_of_an_example(
    project: Any, capsys: Capture, name: str, keys: list[str]
) -> None:
    told = json.loads(profiles(capsys, "check", name, "--json")[1])
    found = {
        each["check"]
        for each in told["checks"]
        if "placeholder" in each.get("problem", {}).get("what", "")
    }
    assert found >= set(keys)
